"""The CPU implementation: a few rows at a time, so that every pass but the first reads from the cache.

The loss of a row is lse(z) - (1 - alpha) z_y - alpha * beta * lse(z / beta + log r). One sweep over a block computes
the sums of exponentials, and the gradient p - (1 - alpha) e_y - alpha q* is computed from the same exponentials in its
final place. Blocks for which the sweep is not accurate or not implemented (masked classes, a prior with zeros, large
finite beta, probability targets, the plug-in value) use the reference formulas, also block by block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labo.kernels import reference
from labo.kernels.options import Options

# A block and scratch memory of the same size fit in the cache of a core together.
BLOCK_BYTES = 2**19
# exp2 is the fastest exponential on all processors.
_LOG2_E = 1 / math.log(2)
# alpha * beta times the rounding of log-sum-exp is the error of the sweep's loss; above, the reference formulas are
# used.
MAX_FACTOR = 8.0
# Batches of up to so many logits are computed at once, by a form that loses digits if alpha is close to 1.
SMALL = 2**15
_MAX_STRENGTH = 0.8
# With less prior mass on the best class, sums relative to its logit could underflow.
_MIN_PRIOR = 1e-20


def is_supported(options: Options) -> bool:
    """Whether the sweep supports these options, and is accurate with them."""
    prior, limit = options.prior, not isinstance(options.beta, Tensor) and options.beta == math.inf
    if options.value != "inner" or (prior is not None and prior.dim() == 2):
        return False
    if prior is not None and not limit and not bool((prior >= _MIN_PRIOR).all()):
        return False  # at beta = inf the label is the prior, and needs no sum of exponentials
    if isinstance(options.beta, Tensor):
        return bool((options.beta * options.alpha <= MAX_FACTOR).all())
    if options.beta == math.inf or options.beta <= MAX_FACTOR:  # alpha is at most 1
        return True
    return bool((torch.as_tensor(options.alpha, device="cpu") * options.beta <= MAX_FACTOR).all())


def solve(
    logits: Tensor, target: Tensor, row_weights: Tensor, options: Options, *, gradient: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The losses of rows times their weights, and the gradient of their sum.

    Args:
        logits: (N, C), any floating dtype and strides; not written to unless they are `out`. Rows of weight 0 may hold
            anything.
        target: (N,) class indices, valid everywhere, or (N, C) probabilities.
        row_weights: (N,) in working precision: the weight of the loss of each row.
        options: alpha, beta, prior, class weights (inside rows with probability targets), value.
        gradient: whether to compute the gradient.
        out: buffer for the gradient, of the logits' shape and dtype; may be the logits themselves.

    Returns:
        (N,) in working precision, and None or (N, C) of the logits' dtype.
    """
    rows, classes = logits.shape
    work = reference.working_dtype(logits)
    if out is None and logits.numel() <= SMALL and target.dim() == 1 and _is_plain(options):
        result = _solve_small(logits.to(work), target, row_weights, options, gradient)
        if result is not None:
            return result[0], None if result[1] is None else result[1].to(logits.dtype)
    losses = logits.new_empty(rows, dtype=work)
    if not gradient:
        out = None
    elif out is None:
        out = logits.new_empty(rows, classes)
    step = max(1, BLOCK_BYTES // max(1, classes * work.itemsize))
    use_sweep = target.dim() == 1 and is_supported(options)
    scratch = _Scratch(min(step, rows), classes, work, own=out is None or logits.dtype != work)
    skipped = not bool(row_weights.all())
    for start in range(0, rows, step):
        at = slice(start, start + step)
        block = logits[at].to(work)
        weights = row_weights[at]
        if skipped:
            block = torch.where((weights != 0).unsqueeze(-1), block, 0.0)
        block_out = None if out is None else out[at]
        if use_sweep and math.isfinite(block.sum().item()):
            buffer, spare = scratch.of(block_out, len(block))
            losses[at] = _sweep(block, target[at], weights, options.of(at), buffer, spare, gradient)
            if block_out is not None and buffer is not block_out:
                block_out.copy_(buffer)
        else:
            losses[at], _ = reference.solve(
                block, target[at], weights, options.of(at), gradient=gradient, out=block_out
            )
    return losses, out


class _Scratch:
    """Buffers that all blocks share; `buffer` is None if the gradient is computed in its final place."""

    def __init__(self, rows: int, classes: int, dtype: torch.dtype, *, own: bool) -> None:
        self.spare = torch.empty(rows, classes, dtype=dtype, device="cpu")
        self.buffer = torch.empty_like(self.spare) if own else None

    def of(self, block_out: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
        """(buffer of the gradient, scratch) for a block of `rows` rows."""
        buffer = block_out if self.buffer is None else self.buffer[:rows]
        assert buffer is not None
        return buffer, self.spare[:rows]


def _is_plain(options: Options) -> bool:
    """Whether `_solve_small` is made for these options, and accurate with them."""
    alpha, beta = options.alpha, options.beta
    if isinstance(alpha, Tensor) or isinstance(beta, Tensor) or options.prior is not None or options.value != "inner":
        return False
    return alpha <= _MAX_STRENGTH and (beta == math.inf or alpha * beta <= MAX_FACTOR)


def _solve_small(
    z: Tensor, target: Tensor, row_weights: Tensor, options: Options, gradient: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Like `solve`, for a small batch of finite logits, in few operations, whose overhead dominates.

    beta * log q_k - log p_k is the same for every class k, so the loss is beta * alpha * (log q_y + log C) - log p_y.
    Returns None if a logit is not finite or a row has weight 0.
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
    grad_logits = None
    weights = row_weights.unsqueeze(-1)
    if gradient:
        grad_logits = log_p.exp_()
        if log_q is not None:
            grad_logits.sub_(log_q.exp_(), alpha=alpha)
        elif alpha:
            grad_logits.sub_(alpha / classes)
        grad_logits.scatter_(-1, index, alpha - 1, reduce="add").mul_(weights)
    return losses.mul_(weights).squeeze(-1), grad_logits


def _sweep(
    z: Tensor, target: Tensor, weights: Tensor, options: Options, out: Tensor, spare: Tensor, gradient: bool
) -> Tensor:
    """Losses times weights of a block of finite logits; leaves the gradient in `out`. Both buffers are overwritten."""
    weights, target = weights.unsqueeze(-1), target.unsqueeze(-1)
    alpha = options.alpha.to(z.dtype).unsqueeze(-1) if isinstance(options.alpha, Tensor) else options.alpha
    beta = options.beta.to(z.dtype).unsqueeze(-1) if isinstance(options.beta, Tensor) else options.beta
    prior = None if options.prior is None else options.prior.to(z.dtype)
    top = z.amax(-1, keepdim=True)
    torch.sub(z, top, out=out)
    target_gap = -out.gather(-1, target)
    exp_z, exp_z_sum, label, label_sum, pull = _exponentials(out, spare, alpha, beta, prior)
    losses = weights * (exp_z_sum.log() + (1 - alpha) * target_gap - pull)
    if gradient:
        _combine(
            out, exp_z, weights / exp_z_sum, label, None if label_sum is None else alpha * weights / label_sum, prior
        )
        out.scatter_add_(-1, target, (alpha - 1) * weights)
    return losses.squeeze(-1)


def _exponentials(
    gaps: Tensor, spare: Tensor, alpha: float | Tensor, beta: float | Tensor, prior: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | float]:
    """(exp(gaps), its sum, exp(gaps / beta), its sum under the prior, alpha * (V's second term)) of gaps <= 0.

    The first is stored in `spare`, or in `gaps` if there is no second; the second in `gaps`. None means that the label
    is the prior.
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
    out: Tensor, exp_z: Tensor, p_factor: Tensor, label: Tensor | None, q_factor: Tensor | None, prior: Tensor | None
) -> None:
    """Write exp_z * p_factor - label * q_factor * prior into `out`; the arguments are overwritten."""
    exp_z.mul_(p_factor)
    if label is not None and q_factor is not None:
        label.mul_(q_factor)
        if prior is not None:
            label.mul_(prior)
        torch.sub(exp_z, label, out=out)
    elif q_factor is not None:  # the label is the prior
        if prior is None:
            out.sub_(q_factor / out.shape[-1])
        else:
            out.addr_(q_factor.squeeze(-1), prior, alpha=-1)
