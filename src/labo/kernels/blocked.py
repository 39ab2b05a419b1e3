"""The CPU implementation: a few rows at a time, so that every pass but the first reads from the cache.

The loss of a row is lse(z) - (1 - alpha) z_y - alpha * beta * lse(z / beta + log r): sums of exponentials that one
sweep over a block makes, and the gradient p - (1 - alpha) e_y - alpha q* is made of the same exponentials where it
will lie. Blocks that the sweep is not accurate or not made for (masked classes, a prior with zeros, large finite beta,
probability targets, the plug-in value) go through the reference formulas, block by block as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labo.kernels import reference
from labo.kernels.options import Options

# A block and as much scratch lie in the cache of a core together.
BLOCK_BYTES = 2**19
# exp2 is the exponential that is fast on every processor.
_LOG2_E = 1 / math.log(2)
# alpha * beta times the rounding of log-sum-exp is the error of the sweep's loss; above, the reference's form is taken.
MAX_FACTOR = 8.0
# A batch of so few logits is taken at once; its form loses digits where little is left of the target's own loss.
SMALL = 2**15
_MAX_STRENGTH = 0.8
# With less prior mass on the best class, sums that are measured from it could underflow.
_MIN_PRIOR = 1e-20


def suits(options: Options) -> bool:
    """Whether the sweep is made for these options, and accurate with them."""
    prior, limit = options.prior, not isinstance(options.beta, Tensor) and options.beta == math.inf
    if options.value != "inner" or (prior is not None and prior.dim() == 2):
        return False
    if prior is not None and not limit and not bool((prior >= _MIN_PRIOR).all()):
        return False  # with the prior itself as label no sum of its exponentials is taken
    if isinstance(options.beta, Tensor):
        return bool((options.beta * options.alpha <= MAX_FACTOR).all())
    if options.beta == math.inf or options.beta <= MAX_FACTOR:  # alpha is at most 1
        return True
    return bool((torch.as_tensor(options.alpha) * options.beta <= MAX_FACTOR).all())


def solve(
    logits: Tensor, target: Tensor, row_weights: Tensor, options: Options, *, gradient: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The losses of rows, times their weights, and the gradient of their sum.

    Args:
        logits: (N, C), any floating dtype and strides; not written to unless they are `out`. Rows of weight 0 may hold
            anything.
        target: (N,) class indices, valid everywhere, or (N, C) probabilities.
        row_weights: (N,) in working precision: what the loss of each row counts.
        options: alpha, beta, prior, class weights (inside rows with probability targets), value.
        gradient: whether it is wanted.
        out: where to write it, of the logits' shape and dtype; may be the logits themselves.

    Returns:
        (N,) in working precision, and None or (N, C) of the logits' dtype.
    """
    rows, classes = logits.shape
    work = reference.working_dtype(logits)
    if out is None and logits.numel() <= SMALL and target.dim() == 1 and _is_plain(options):
        found = _at_once(logits.to(work), target, row_weights, options, gradient)
        if found is not None:
            return found[0], None if found[1] is None else found[1].to(logits.dtype)
    losses = torch.empty(rows, dtype=work)
    if not gradient:
        out = None
    elif out is None:
        out = torch.empty(rows, classes, dtype=logits.dtype)
    step = max(1, BLOCK_BYTES // max(1, classes * work.itemsize))
    swept = target.dim() == 1 and suits(options)
    scratch = _Scratch(min(step, rows), classes, work, own=out is None or logits.dtype != work)
    skipped = not bool(row_weights.all())
    for start in range(0, rows, step):
        at = slice(start, start + step)
        block = logits[at].to(work)
        share = row_weights[at]
        if skipped:
            block = torch.where((share != 0).unsqueeze(-1), block, 0.0)
        into = None if out is None else out[at]
        if swept and math.isfinite(block.sum().item()):
            buffer, spare = scratch.of(into, len(block))
            losses[at] = _sweep(block, target[at], share, options.of(at), buffer, spare, gradient)
            if into is not None and buffer is not into:
                into.copy_(buffer)
        else:
            losses[at], _ = reference.solve(block, target[at], share, options.of(at), gradient=gradient, out=into)
    return losses, out


class _Scratch:
    """Buffers of one block that all blocks share; `buffer` is None where the gradient is made in its own place."""

    def __init__(self, rows: int, classes: int, dtype: torch.dtype, *, own: bool) -> None:
        self.spare = torch.empty(rows, classes, dtype=dtype)
        self.buffer = torch.empty(rows, classes, dtype=dtype) if own else None

    def of(self, into: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
        """(where the gradient is made, scratch) for a block of so many rows."""
        buffer = into if self.buffer is None else self.buffer[:rows]
        assert buffer is not None
        return buffer, self.spare[:rows]


def _is_plain(options: Options) -> bool:
    """Whether `_at_once` is made for these options, and accurate with them."""
    alpha, beta = options.alpha, options.beta
    if isinstance(alpha, Tensor) or isinstance(beta, Tensor) or options.prior is not None or options.value != "inner":
        return False
    return alpha <= _MAX_STRENGTH and (beta == math.inf or alpha * beta <= MAX_FACTOR)


def _at_once(
    z: Tensor, target: Tensor, row_weights: Tensor, options: Options, gradient: bool
) -> tuple[Tensor, Tensor | None] | None:
    """What `solve` gives, for a small batch of finite logits, in few operations: each costs more than its work.

    beta * log q_k - log p_k is the same for every class k, so the loss is beta * alpha * (log q_y + log C) - log p_y.
    Returns None where a logit is not finite or a row counts nothing.
    """
    if not math.isfinite(z.sum().item()) or not row_weights.all().item():
        return None
    alpha, beta, classes = float(options.alpha), float(options.beta), z.shape[-1]
    index = target.unsqueeze(-1)
    log_p = z.log_softmax(-1)
    losses = log_p.gather(-1, index)
    log_q = None
    if alpha and beta < math.inf:
        log_q = (log_p / beta).log_softmax(-1)
        losses = torch.sub(log_q.gather(-1, index).add_(math.log(classes)).mul_(alpha * beta), losses)
    elif alpha:
        losses = losses.mul_(alpha - 1).sub_(log_p.mean(-1, keepdim=True), alpha=alpha)
    else:
        losses = losses.neg_()
    made = None
    share = row_weights.unsqueeze(-1)
    if gradient:
        made = log_p.exp_()
        if log_q is not None:
            made.sub_(log_q.exp_(), alpha=alpha)
        elif alpha:
            made.sub_(alpha / classes)
        made.scatter_(-1, index, alpha - 1, reduce="add").mul_(share)
    return losses.mul_(share).squeeze(-1), made


def _sweep(
    z: Tensor, target: Tensor, share: Tensor, options: Options, out: Tensor, spare: Tensor, gradient: bool
) -> Tensor:
    """Losses times weights of a block of finite logits; leaves the gradient in `out`. Both buffers are overwritten."""
    share, target = share.unsqueeze(-1), target.unsqueeze(-1)
    alpha = options.alpha.to(z.dtype).unsqueeze(-1) if isinstance(options.alpha, Tensor) else options.alpha
    beta = options.beta.to(z.dtype).unsqueeze(-1) if isinstance(options.beta, Tensor) else options.beta
    prior = None if options.prior is None else options.prior.to(z.dtype)
    top = z.amax(-1, keepdim=True)
    torch.sub(z, top, out=out)
    target_gap = -out.gather(-1, target)
    exponentials = _exponentials(out, spare, alpha, beta, prior)
    belief, belief_sum, label, label_sum, pull = exponentials
    losses = share * (belief_sum.log() + (1 - alpha) * target_gap - pull)
    if gradient:
        _combine(
            out, belief, share / belief_sum, label, None if label_sum is None else alpha * share / label_sum, prior
        )
        out.scatter_add_(-1, target, (alpha - 1) * share)
    return losses.squeeze(-1)


def _exponentials(
    gaps: Tensor, spare: Tensor, alpha: float | Tensor, beta: float | Tensor, prior: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | float]:
    """(exp(gaps), its sum, exp(gaps / beta), its sum under the prior, alpha * (V's second term)) of gaps <= 0.

    The first lies in `spare` or, where there is no second, in `gaps`; the second in `gaps`. None stands for a label
    that is the prior itself.
    """
    classes = gaps.shape[-1]
    if not isinstance(alpha, Tensor) and alpha == 0:
        return _exp(gaps), gaps.sum(-1, keepdim=True), None, None, 0.0
    if not isinstance(beta, Tensor) and beta == math.inf:
        mean = gaps.mean(-1, keepdim=True) if prior is None else torch.mv(gaps, prior).unsqueeze(-1)
        return _exp(gaps), gaps.sum(-1, keepdim=True), None, torch.ones_like(mean), alpha * mean
    if not isinstance(beta, Tensor) and beta in (2.0, 4.0):
        gaps.mul_(_LOG2_E / beta).exp2_()
        torch.mul(gaps, gaps, out=spare)
        if beta == 4.0:
            spare.mul_(spare)
    else:
        torch.mul(gaps, _LOG2_E, out=spare)
        torch.div(spare, beta, out=gaps).exp2_()
        spare.exp2_()
    total = gaps.sum(-1, keepdim=True) if prior is None else torch.mv(gaps, prior).unsqueeze(-1)
    mean = total / classes if prior is None else total
    return spare, spare.sum(-1, keepdim=True), gaps, total, alpha * beta * mean.log()


def _exp(gaps: Tensor) -> Tensor:
    return gaps.mul_(_LOG2_E).exp2_()


def _combine(
    out: Tensor, belief: Tensor, p_factor: Tensor, label: Tensor | None, q_factor: Tensor | None, prior: Tensor | None
) -> None:
    """Write belief * p_factor - label * q_factor * prior into `out`; the arguments are overwritten."""
    belief.mul_(p_factor)
    if label is not None and q_factor is not None:
        label.mul_(q_factor)
        if prior is not None:
            label.mul_(prior)
        torch.sub(belief, label, out=out)
    elif q_factor is not None:  # the label is the prior
        if prior is None:
            out.sub_(q_factor / out.shape[-1])
        else:
            out.addr_(q_factor.squeeze(-1), prior, alpha=-1)
