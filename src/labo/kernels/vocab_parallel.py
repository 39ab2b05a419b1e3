"""The loss of logits whose classes are split over ranks; only per-row scalars are communicated."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from labo import checks, inner
from labo import reduction as _reduction
from labo.kernels import class_shards, reference
from labo.kernels.class_shards import RowReference, Shard
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
    class_shards.refuse_gradients(_GATHER, alpha=alpha, beta=beta, prior=prior)
    input, group = _local(input, group)
    rows = class_shards.as_rows(input, target, weight, ignore_index, gather=_GATHER)
    alpha, beta = rows.per_row("alpha", alpha), rows.per_row("beta", beta)
    data, term = _RowTerms.apply(rows.logits, rows, beta, prior, group, value == "plugin")
    return _reduction.reduce(reference.mix(data, term, alpha), rows, reduction, checks.result_dtype(input))


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
        tops, sizes = class_shards.maxima(wide, r, group)
        class_shards.check_over_ranks(rows, sizes.sum())
        local_target = rows.target - sizes[: dist.get_rank(group)].sum()
        measure = RowReference(inner.over_rows("beta", beta, wide), r, *tops, local_target)
        sums = class_shards.sum_over_ranks(Shard(wide, measure), prior_total, plugin, group)
        if prior is not None:
            class_shards.check_prior(sums, prior.dtype)
        ctx.save_for_backward(logits, *class_shards.normalizers(sums, wide.dtype))
        ctx.measure = measure
        data, term = class_shards.combine(sums, measure, plugin)
        return data.to(wide.dtype), term.to(wide.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Expected no second derivative (create_graph=True) of vocab_parallel_labo_cross_entropy, which has "
                f"none; {_GATHER}."
            )
        logits, *normalizers = ctx.saved_tensors
        grad_data, grad_term = (grad.unsqueeze(-1) for grad in grads)
        grad = Shard(inner.working(logits), ctx.measure).gradient(tuple(normalizers), grad_data, grad_term)
        return grad.to(logits.dtype), None, None, None, None, None


def _prior_of_rows(rows: Rows, prior: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """This rank's slice, (C_local,) or (N, C_local), and its total in each row, NaN where an entry is negative."""
    count, classes = rows.logits.shape
    if prior is None:
        return rows.logits.new_ones(classes, dtype=dtype), rows.logits.new_zeros(count, dtype=torch.float64)
    class_shards.check_prior_slice(prior, rows)
    total = class_shards.prior_totals(prior)
    if prior.dim() > 1:
        prior = prior.expand(*rows.shape, classes).reshape(count, classes)
    return prior.to(dtype), total.expand(rows.shape).reshape(-1)


def _local(input: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, dist.ProcessGroup | None]:
    """This rank's logits and the group: from a DTensor and its mesh, or the arguments themselves."""
    class_shards.require_initialized()
    if (mesh := getattr(input, "device_mesh", None)) is not None:
        sharded: Any = input
        if group is not None or mesh.ndim != 1 or not sharded.placements[0].is_shard(input.dim() - 1):
            raise ValueError(
                "Expected argument `input`, a DTensor, to come without `group` and to be sharded on its last dimension "
                f"over a one-dimensional mesh, but got group {group} and placements {tuple(sharded.placements)}."
            )
        input, group = sharded.to_local(), mesh.get_group()
    class_shards.require_member(group)
    return input, group
