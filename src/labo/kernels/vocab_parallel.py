"""The loss of logits whose classes are split over the ranks of a process group; only per-row scalars are communicated.

The algebra is that of `labo.inner`: two log-sum-exps, each relative to its own maximum. The first all-reduce
communicates the maxima, the second the sums relative to them, including the prior mass of the unmasked classes, which
renormalises the prior. Scalars are communicated in float64: they are few, and a prior that is tiny where the logits are
large then neither underflows nor is rounded twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from labo import checks, inner
from labo import reduction as _reduction
from labo.kernels import reference
from labo.kernels.options import LossOptions, documented
from labo.reduction import Rows

__all__ = ["vocab_parallel_labo_cross_entropy"]

_GATHER = "gather the logits and use labo.labo_cross_entropy"


@documented(
    prior="None for uniform, or this rank's slice (C_local,) or (…, C_local) of probabilities that sum to 1 over the "
    "classes of all ranks.",
    weight="(C,) class weights, of all ranks.",
)
def vocab_parallel_labo_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    alpha: float | Tensor = 0.1,
    beta: float | Tensor = 2.0,
    prior: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    value: str = "inner",
) -> Tensor:
    """`labo.labo_cross_entropy` of logits whose classes are split over ranks: (1 - alpha) * CE(target, p) + alpha * V.

    Rank i of the group holds a contiguous range of classes, after those of the ranks before it; ranges may differ in
    length and may be empty. The forward pass communicates by two all-reduces of a few scalars per row, nothing of the
    size of the classes. The backward pass computes the gradient of each rank's slice without communication, provided
    that every rank backpropagates the same loss.

    Options that the ranks do not split are the same on every rank.

    Args:
        input: this rank's logits (C_local) or (…, C_local), floating point, classes last, as column-parallel heads
            return them; -inf masks a class. Or a DTensor that is sharded on its last dimension over a one-dimensional
            mesh.
        target: class indices (…), counted over all ranks; the same on every rank.
        group: the ranks that hold the classes; None for all ranks. With a DTensor, the group of its mesh.
        {options}

    Returns:
        The loss, equal on every rank, as `labo.labo_cross_entropy` returns it. alpha, beta and prior get no gradient,
        and second derivatives are not supported.

    Raises:
        ValueError, TypeError: an argument is out of range, does not fit or requires a gradient; the message names it.
        RuntimeError: torch.distributed is not initialised; the loss is differentiated twice.

    Source:
        The loss as in `labo.labo_cross_entropy`. Splitting the classes of a cross-entropy: Shoeybi et al.,
        *Megatron-LM* (arXiv 1909.08053), section 3.

    Example:
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> vocab_parallel_labo_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
        >>> dist.destroy_process_group()
    """
    given = LossOptions(alpha, beta, prior, weight, ignore_index, reduction, value)
    given.check()
    _refuse_gradients(alpha, beta, prior)
    input, group = _local(input, group)
    rows = _as_rows(input, target, weight, ignore_index)
    alpha, beta = rows.per_row("alpha", alpha), rows.per_row("beta", beta)
    data, term = _RowTerms.apply(rows.logits, rows, beta, prior, group, value == "plugin")
    return _reduction.reduce(reference.mix(data, term, alpha), rows, reduction, checks.result_dtype(input))


@dataclass(frozen=True)
class _RowReference:
    """The reference values for the logits of a rank.

    `r`, (C_local,) or (N, C_local), is its slice of the prior up to a factor; uniform is 1. `top` (N, 1) is the maximum
    over the classes of all ranks, `support_top` over those with prior mass: a prior may exclude the largest logit.
    `target` (N,) is relative to the first class of this rank; outside [0, C_local) it belongs to another rank.
    """

    beta: Tensor
    r: Tensor
    top: Tensor
    support_top: Tensor
    target: Tensor


class _Shard:
    """The classes of a rank for every row (N, C_local), relative to the maxima over all ranks."""

    def __init__(self, rows: Tensor, measure: _RowReference) -> None:
        finite = rows != -math.inf
        self.mass = torch.where(finite, measure.r, 0.0)
        self.support = self.mass > 0
        self.shifted = rows - measure.top
        # 0 in masked places keeps every later product finite; they carry no prior mass.
        self.distance = torch.where(finite, rows - measure.support_top, 0.0)
        self.u = self.distance / measure.beta
        self.scores = torch.where(self.support, self.u + measure.r.log(), -math.inf)
        self.is_target = torch.arange(rows.shape[-1], device=rows.device) == measure.target.unsqueeze(-1)


class _RowTerms(torch.autograd.Function):
    """CE(target, p) and V (or CE(q*, p)) of each row; this rank's slice of the gradients p - onehot(target), p - q*."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        rows: Rows,
        beta: float | Tensor,
        prior: Tensor | None,
        group: dist.ProcessGroup | None,
        plugin: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = inner.working(logits)
        r, prior_total = _prior_of_rows(rows, prior, wide.dtype)
        tops, sizes = _maxima(wide, r, group)
        _check_over_ranks(rows, sizes.sum())
        local_target = rows.target - sizes[: dist.get_rank(group)].sum()
        measure = _RowReference(inner.over_rows("beta", beta, wide), r, *tops, local_target)
        sums = torch.stack((*_sums(_Shard(wide, measure), measure, plugin), prior_total))
        dist.all_reduce(sums, op=dist.ReduceOp.SUM, group=group)
        if prior is not None:
            # Only the total over all slices is known here; check it as a distribution over one class.
            checks.distribution("prior", sums[-1].to(prior.dtype).unsqueeze(-1), -1)
        exp_z_sum, label_sum = sums[:2].unsqueeze(-1)
        ctx.save_for_backward(logits, exp_z_sum.to(wide.dtype), label_sum.log().to(wide.dtype))
        ctx.measure = measure
        data, term = _combine(sums, measure, plugin)
        return data.to(wide.dtype), term.to(wide.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Expected no second derivative (create_graph=True) of vocab_parallel_labo_cross_entropy, which has "
                f"none; {_GATHER}."
            )
        logits, exp_z_sum, log_label_sum = ctx.saved_tensors
        shard = _Shard(inner.working(logits), ctx.measure)
        grad_data, grad_term = (grad.unsqueeze(-1) for grad in grads)
        p = shard.shifted.exp() / exp_z_sum
        q = torch.where(shard.support, (shard.scores - log_label_sum).exp(), 0.0)
        grad = p * (grad_data + grad_term) - q * grad_term
        grad = torch.where(shard.is_target, grad - grad_data, grad)
        # A row whose classes are all masked has no gradient.
        return torch.where(exp_z_sum == 0, 0.0, grad).to(logits.dtype), None, None, None, None, None


def _maxima(logits: Tensor, r: Tensor, group: dist.ProcessGroup | None) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Maxima (N, 1) over all ranks of the logits and of those with prior mass, and each rank's number of classes."""
    count = logits.shape[0]
    local = torch.full((2 * count + dist.get_world_size(group),), -math.inf, dtype=torch.float64, device=logits.device)
    if logits.shape[-1]:
        local[:count] = logits.amax(-1)
        local[count : 2 * count] = torch.where(r > 0, logits, -math.inf).amax(-1)
    local[2 * count + dist.get_rank(group)] = logits.shape[-1]
    dist.all_reduce(local, op=dist.ReduceOp.MAX, group=group)
    tops = torch.where(local == -math.inf, 0.0, local)[: 2 * count].to(logits.dtype).view(2, count, 1)
    return (tops[0], tops[1]), local[2 * count :].long()


def _sums(shard: _Shard, measure: _RowReference, plugin: bool) -> tuple[Tensor, ...]:
    """This rank's part of the sums for `_combine`, float64 (N,) each."""
    log_label_sum = shard.scores.logsumexp(-1)
    label_sum = log_label_sum.double().exp()
    if plugin:
        pull = (inner.masked_softmax(shard.scores) * shard.distance).sum(-1).double() * label_sum
    else:
        terms = torch.where(torch.isinf(measure.beta), shard.distance, torch.expm1(shard.u))
        pull = (measure.r * torch.where(shard.support, terms, 0.0)).sum(-1).double()
    return (
        shard.shifted.exp().sum(-1).double(),
        label_sum,
        pull,
        shard.mass.sum(-1, dtype=torch.float64),
        torch.where(shard.is_target, shard.shifted, 0.0).sum(-1).double(),
    )


def _combine(sums: Tensor, measure: _RowReference, plugin: bool) -> tuple[Tensor, Tensor]:
    """CE(target, p) and V (or CE(q*, p)) of each row from the sums over all ranks.

    With mean = sum r expm1(u) / mass, the log of sum r exp(u) / mass is log1p(mean), without cancellation unless the
    mean is below -1/2; there the plain log is accurate (as in `labo.inner`). At beta = inf the second sum is that of
    r * distance instead.
    """
    exp_z_sum, label_sum, pull, mass, target, _ = sums
    log_exp_z_sum = exp_z_sum.log()
    data = torch.where(exp_z_sum == 0, math.inf, log_exp_z_sum - target)
    if plugin:
        pull = pull / label_sum
    else:
        beta, mean = measure.beta.squeeze(-1).double(), pull / mass
        log_mean = torch.where(mean > -0.5, mean.clamp(min=-0.5).log1p(), (label_sum / mass).log())
        pull = torch.where(torch.isinf(beta), mean, beta * log_mean)
    gap = (measure.top - measure.support_top).squeeze(-1)  # 0 unless the prior excludes the largest logit
    return data, torch.where(mass == 0, math.inf, log_exp_z_sum + gap - pull)


def _as_rows(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Rows:
    """Like `reduction.as_rows`, for targets over the classes of all ranks, whose range is checked later."""
    checks.floating("input", input)
    checks.tensor("target", target)
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise TypeError(
            f"Expected argument `target` to hold integer class indices, but got dtype {target.dtype}; for "
            f"probabilities {_GATHER}."
        )
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"Expected argument `target` to be class indices of shape {tuple(input.shape[:-1])}, `input`'s without its "
            f"last dimension, that of classes, but got shape {tuple(target.shape)}."
        )
    checks.same_device("target", target, input)
    if weight is not None:
        checks.class_weight("weight", weight)
        checks.same_device("weight", weight, input)
    logits, shape = input.reshape(target.numel(), input.shape[-1]), target.shape
    target = checks.as_targets(target).reshape(-1)
    kept = target != ignore_index
    return Rows(logits, torch.where(kept, target, 0), kept, weight, shape)


def _prior_of_rows(rows: Rows, prior: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """This rank's slice, (C_local,) or (N, C_local), and its total in each row, NaN where an entry is negative."""
    count, classes = rows.logits.shape
    if prior is None:
        return rows.logits.new_ones(classes, dtype=dtype), rows.logits.new_zeros(count, dtype=torch.float64)
    checks.floating("prior", prior)
    if prior.shape[-1] != classes:
        raise ValueError(
            f"Expected argument `prior` to hold this rank's {classes} classes in its last dimension, but got shape "
            f"{tuple(prior.shape)}."
        )
    checks.same_device("prior", prior, rows.logits)
    # NaN in the total raises the error on every rank; an error on this rank only would leave the others waiting.
    total = torch.where((prior < 0).any(-1), math.nan, prior.sum(-1, dtype=torch.float64))
    checks.broadcasts("prior", total, rows.shape)
    if prior.dim() > 1:
        prior = prior.expand(*rows.shape, classes).reshape(count, classes)
    return prior.to(dtype), total.expand(rows.shape).reshape(-1)


def _check_over_ranks(rows: Rows, classes: Tensor) -> None:
    """Check targets and class weights against the classes of all ranks, without device synchronization."""
    if classes.device.type == "cpu" and not torch.compiler.is_compiling():
        checks.class_indices("target", rows.target, int(classes), None)
    else:
        fits = (rows.target >= 0) & (rows.target < classes)
        checks.require(fits, "Expected argument `target` to be indices of the classes of all ranks, but got others.")
    if rows.weight is not None:
        shape = tuple(rows.weight.shape)
        fits = (classes == rows.weight.numel()) & (rows.weight.dim() == 1)
        checks.require(fits, f"Expected argument `weight` to have the classes of all ranks, but got shape {shape}.")


def _refuse_gradients(alpha: Any, beta: Any, prior: Tensor | None) -> None:
    for name, option in (("alpha", alpha), ("beta", beta), ("prior", prior)):
        if isinstance(option, Tensor) and option.requires_grad:
            raise ValueError(
                f"Expected argument `{name}` not to require grad: split classes have no gradient in it; {_GATHER}."
            )


def _local(input: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, dist.ProcessGroup | None]:
    """This rank's logits and the group: from a DTensor and its mesh, or the arguments themselves."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("Expected torch.distributed to be initialised: call torch.distributed.init_process_group.")
    if (mesh := getattr(input, "device_mesh", None)) is not None:
        sharded: Any = input
        if group is not None or mesh.ndim != 1 or not sharded.placements[0].is_shard(input.dim() - 1):
            raise ValueError(
                "Expected argument `input`, a DTensor, to come without `group` and to be sharded on its last dimension "
                f"over a one-dimensional mesh, but got group {group} and placements {tuple(sharded.placements)}."
            )
        input, group = sharded.to_local(), mesh.get_group()
    if dist.get_rank(group) < 0:
        raise ValueError("Expected argument `group` to include this process, but it is not among the group's ranks.")
    return input, group
