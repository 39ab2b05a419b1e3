"""The CPU implementation: a few rows at a time, so that every pass but the first reads from the cache.

The loss of a row is lse(z) - (1 - alpha) z_y - alpha * beta * lse(z / beta + log r). One sweep over a block computes
the sums of exponentials, and the gradient p - (1 - alpha) e_y - alpha q* is computed from the same exponentials in its
final place. Blocks for which the sweep is not accurate or not implemented (masked classes, a prior with zeros, large
finite beta, probability targets, the plug-in value) use the reference formulas, also block by block. Soft-capped
logits exist for one block at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from labo.kernels import reference
from labo.kernels.options import Options
from labo.kernels.statistics import CORRECT, ENTROPY, LABEL_ENTROPY, LOGSUMEXP, NLL

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
# exp(-x) of float32 is a normal number up to here.
_MAX_EXPONENT = 80.0
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
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    *,
    gradient: bool,
    out: Tensor | None = None,
    statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The losses of rows times their weights, and the gradient of their sum.

    Args:
        logits: (N, C), any floating dtype and strides; not written to unless they are `out`. Rows of weight 0 may hold
            anything.
        target: (N,) class indices, valid everywhere, or (N, C) probabilities.
        row_weights: (N,) in working precision: the weight of the loss of each row.
        options: alpha, beta, prior, class weights (inside rows with probability targets), value, z_loss, softcap.
        gradient: whether to compute the gradient.
        out: buffer for the gradient, of the logits' shape and dtype; may be the logits themselves.
        statistics: buffer (5, N) in working precision for the statistics of the rows, NaN at first, see statistics.py.

    Returns:
        (N,) in working precision, and None or (N, C) of the logits' dtype.
    """
    rows, classes = logits.shape
    work = reference.working_dtype(logits)
    if out is None and logits.numel() <= SMALL and target.dim() == 1 and _is_plain(options, classes):
        result = _solve_small(logits.to(work), target, row_weights, options, gradient, statistics)
        if result is not None:
            return result[0], None if result[1] is None else result[1].to(logits.dtype)
    losses = logits.new_empty(rows, dtype=work)
    if not gradient:
        out = None
    elif out is None:
        out = logits.new_empty(rows, classes)
    step = max(1, BLOCK_BYTES // max(1, classes * work.itemsize))
    use_sweep = target.dim() == 1 and is_supported(options)
    sizes = (min(step, rows), classes)
    scratch = _Scratch(*sizes, work, own=out is None or logits.dtype != work, gaps=statistics is not None)
    skipped = not bool(row_weights.all())
    for start in range(0, rows, step):
        at = slice(start, start + step)
        block = logits[at].to(work)
        weights = row_weights[at]
        if skipped:
            block = torch.where((weights != 0).unsqueeze(-1), block, 0.0)
        block_out = None if out is None else out[at]
        block_statistics = None if statistics is None else statistics[:, at]
        if use_sweep and math.isfinite(block.sum().item()):
            losses[at] = _swept(block, target[at], weights, options.of(at), scratch, block_out, block_statistics)
        else:
            inputs = (block, target[at], weights, options.of(at))
            buffers: dict[str, Tensor | None] = {"out": block_out, "statistics": block_statistics}
            losses[at], _ = reference.solve(*inputs, gradient=gradient, **buffers)
    if skipped and statistics is not None:
        statistics.masked_fill_(row_weights == 0, math.nan)
    return losses, out


def _swept(
    block: Tensor,
    target: Tensor,
    weights: Tensor,
    options: Options,
    scratch: _Scratch,
    out: Tensor | None,
    statistics: Tensor | None,
) -> Tensor:
    """Losses times weights of a block of finite logits; the gradient is written to `out`, if there is one."""
    block = reference.capped(block, options.softcap)
    buffers = scratch.of(out, len(block))
    losses = _sweep(block, target, weights, options, buffers, out is not None, statistics)
    if out is not None and options.softcap is not None:
        buffers.out.mul_(reference.capped_slope(block, options.softcap))
    if out is not None and buffers.out is not out:
        out.copy_(buffers.out)
    return losses


class _Buffers(NamedTuple):
    """Memory for a block: of its gradient, of a second row of sums, and of the gaps to the largest logit.

    The gaps need memory of their own if the statistics read them later.
    """

    out: Tensor
    spare: Tensor
    gaps: Tensor


class _Scratch:
    """Buffers that all blocks share; `buffer` is None if the gradient is computed in its final place."""

    def __init__(self, rows: int, classes: int, dtype: torch.dtype, *, own: bool, gaps: bool) -> None:
        self.spare = torch.empty(rows, classes, dtype=dtype, device="cpu")
        self.buffer = torch.empty_like(self.spare) if own else None
        self.gaps = torch.empty_like(self.spare) if gaps else None

    def of(self, block_out: Tensor | None, rows: int) -> _Buffers:
        """The buffers for a block of `rows` rows."""
        buffer = block_out if self.buffer is None else self.buffer[:rows]
        assert buffer is not None
        return _Buffers(buffer, self.spare[:rows], buffer if self.gaps is None else self.gaps[:rows])


def _is_plain(options: Options, classes: int) -> bool:
    """Whether `_solve_small` is made for these options, and accurate with them."""
    alpha, beta = options.alpha, options.beta
    if isinstance(alpha, Tensor) or isinstance(beta, Tensor) or options.prior is not None or options.value != "inner":
        return False
    if options.softcap is not None or math.log(max(1, classes)) > _MAX_EXPONENT * beta:
        return False  # the largest p is at least 1 / C: p^(1 / beta) may underflow everywhere
    return alpha <= _MAX_STRENGTH and (beta == math.inf or alpha * beta <= MAX_FACTOR)


def _solve_small(
    z: Tensor, target: Tensor, row_weights: Tensor, options: Options, gradient: bool, statistics: Tensor | None
) -> tuple[Tensor, Tensor | None] | None:
    """Like `solve`, for a small batch of finite logits, in few operations, whose overhead dominates.

    With m = mean p^(1 / beta), the loss is (alpha - 1) * log p_y - alpha * beta * log m, and q = p^(1 / beta) / (C m).
    Returns None if a logit is not finite or a row has weight 0.
    """
    alpha, beta, classes = float(options.alpha), float(options.beta), z.shape[-1]
    if not math.isfinite(z.sum().item()) or not row_weights.all().item():
        return None
    index = target.unsqueeze(-1)
    log_p = z.log_softmax(-1)
    log_p_target = log_p.gather(-1, index)
    logsumexp = z.gather(-1, index) - log_p_target if options.z_loss or statistics is not None else None
    if statistics is not None and logsumexp is not None:
        _write_statistics_of_small(statistics, log_p, log_p_target, logsumexp, beta)
    label = label_mean = None
    if alpha and beta < math.inf:
        label = torch.mul(log_p, 1 / beta).exp_()
        label_mean = label.mean(-1, keepdim=True)
        losses = label_mean.log().mul_(-alpha * beta).add_(log_p_target, alpha=alpha - 1)
    elif alpha:
        losses = log_p_target.mul_(alpha - 1).sub_(log_p.mean(-1, keepdim=True), alpha=alpha)
    else:
        losses = log_p_target.neg()
    grad_logits = None
    weights = row_weights.unsqueeze(-1)
    if options.z_loss and logsumexp is not None:
        losses += options.z_loss * logsumexp * logsumexp
    if gradient:
        grad_logits = log_p.exp_()
        if options.z_loss and logsumexp is not None:
            grad_logits.mul_(1 + 2 * options.z_loss * logsumexp)
        if label is not None and label_mean is not None:
            grad_logits.addcdiv_(label, label_mean, value=-alpha / classes)
        elif alpha:
            grad_logits.sub_(alpha / classes)
        grad_logits.scatter_(-1, index, alpha - 1, reduce="add").mul_(weights)
    return losses.mul_(weights).squeeze(-1), grad_logits


def _write_statistics_of_small(
    statistics: Tensor, log_p: Tensor, log_p_target: Tensor, logsumexp: Tensor, beta: float
) -> None:
    """Write the statistics of finite logits, from the log of p and of its entries of the targets (N, 1)."""
    classes = log_p.shape[-1]
    log_q = None if beta == math.inf else (log_p / beta).log_softmax(-1)
    statistics[NLL] = -log_p_target.squeeze(-1)
    statistics[LOGSUMEXP] = logsumexp.squeeze(-1)
    statistics[ENTROPY] = -torch.linalg.vecdot(log_p.exp(), log_p)
    statistics[LABEL_ENTROPY] = math.log(classes) if log_q is None else -torch.linalg.vecdot(log_q.exp(), log_q)
    statistics[CORRECT] = (log_p_target == log_p.amax(-1, keepdim=True)).squeeze(-1)


def _sweep(
    z: Tensor,
    target: Tensor,
    weights: Tensor,
    options: Options,
    buffers: _Buffers,
    gradient: bool,
    statistics: Tensor | None,
) -> Tensor:
    """Losses times weights of a block of finite logits; leaves the gradient in `buffers.out`."""
    out = buffers.out
    weights, target = weights.unsqueeze(-1), target.unsqueeze(-1)
    alpha = options.alpha.to(z.dtype).unsqueeze(-1) if isinstance(options.alpha, Tensor) else options.alpha
    beta = options.beta.to(z.dtype).unsqueeze(-1) if isinstance(options.beta, Tensor) else options.beta
    prior = None if options.prior is None else options.prior.to(z.dtype)
    top = z.amax(-1, keepdim=True)
    torch.sub(z, top, out=buffers.gaps)
    target_gap = -buffers.gaps.gather(-1, target)
    # The entropy of the label is that of the label, also where alpha is 0.
    exp_z, exp_z_sum, label, label_sum, pull = _exponentials(buffers, alpha, beta, prior, statistics is not None)
    log_exp_z_sum = exp_z_sum.log()
    losses = log_exp_z_sum + (1 - alpha) * target_gap - pull
    p_factor = weights / exp_z_sum
    if options.z_loss:
        logsumexp = log_exp_z_sum + top
        losses += options.z_loss * logsumexp * logsumexp
        p_factor = p_factor * (1 + 2 * options.z_loss * logsumexp)
    losses = weights * losses
    if statistics is not None:
        statistics[NLL] = (log_exp_z_sum + target_gap).squeeze(-1)
        statistics[LOGSUMEXP] = (log_exp_z_sum + top).squeeze(-1)
        label_entropy, mean_gap = _weighted_gaps(buffers.gaps, exp_z, exp_z_sum, label, label_sum, beta, prior)
        statistics[ENTROPY] = log_exp_z_sum.squeeze(-1) - mean_gap
        statistics[LABEL_ENTROPY] = label_entropy
        statistics[CORRECT] = (target_gap == 0).squeeze(-1)
    if gradient:
        _combine(out, exp_z, p_factor, label, None if label_sum is None else alpha * weights / label_sum, prior)
        out.scatter_add_(-1, target, (alpha - 1) * weights)
    return losses.squeeze(-1)


def _exponentials(
    buffers: _Buffers, alpha: float | Tensor, beta: float | Tensor, prior: Tensor | None, always_labelled: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | float]:
    """(exp(gaps), its sum, exp(gaps / beta), its sum under the prior, alpha * (V's second term)) of gaps <= 0.

    The first is stored in `spare`, or in `out` if there is no second; the second in `out`. None means that the label is
    the prior, or not needed.
    """
    out, spare, gaps = buffers
    classes = gaps.shape[-1]
    limit = not isinstance(beta, Tensor) and beta == math.inf
    if not isinstance(alpha, Tensor) and alpha == 0 and (limit or not always_labelled):
        return _exp(gaps, out), out.sum(-1, keepdim=True), None, None, 0.0
    if limit:
        mean = gaps.mean(-1, keepdim=True) if prior is None else torch.mv(gaps, prior).unsqueeze(-1)
        return _exp(gaps, out), out.sum(-1, keepdim=True), None, torch.ones_like(mean), alpha * mean
    if not isinstance(beta, Tensor) and beta in (2.0, 4.0):
        torch.mul(gaps, _LOG2_E / beta, out=out).exp2_()
        torch.mul(out, out, out=spare)
        if beta == 4.0:
            spare.mul_(spare)
    else:
        torch.mul(gaps, _LOG2_E, out=spare)
        torch.div(spare, beta, out=out).exp2_()
        spare.exp2_()
    total = out.sum(-1, keepdim=True) if prior is None else torch.mv(out, prior).unsqueeze(-1)
    mean = total / classes if prior is None else total
    return spare, spare.sum(-1, keepdim=True), out, total, alpha * beta * mean.log()


def _exp(gaps: Tensor, out: Tensor) -> Tensor:
    return torch.mul(gaps, _LOG2_E, out=out).exp2_()


def _weighted_gaps(
    gaps: Tensor,
    exp_z: Tensor,
    exp_z_sum: Tensor,
    label: Tensor | None,
    label_sum: Tensor | None,
    beta: float | Tensor,
    prior: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(entropies of labels proportional to label * prior, where label = exp(gaps / beta); means of gaps under p), (N,).

    The gaps are overwritten: multiplying in place is what fits into the cache.
    """
    if label is None or label_sum is None:  # the label is the prior
        entropy = gaps.new_tensor(math.log(gaps.shape[-1])) if prior is None else torch.special.entr(prior).sum()
        return entropy, gaps.mul_(exp_z).sum(-1) / exp_z_sum.squeeze(-1)
    power_of_label = prior is None and not isinstance(beta, Tensor) and beta == 2.0
    products = gaps.mul_(label) if power_of_label else label * gaps
    total = label_sum.squeeze(-1)
    inverse_beta = beta.reciprocal().squeeze(-1) if isinstance(beta, Tensor) else 1 / beta
    if prior is None:
        label_mean = products.sum(-1) * inverse_beta
    else:
        label_mean = torch.mv(products, prior) * inverse_beta - torch.mv(label, torch.special.entr(prior))
    mean = gaps.mul_(label if power_of_label else exp_z).sum(-1) / exp_z_sum.squeeze(-1)
    return total.log() - label_mean / total, mean


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
