"""The loss of logits whose classes are split over ranks; only per-row scalars are communicated."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Unpack

from labo import checks
from labo import reduction as _reduction
from labo.kernels import class_shards, reference
from labo.kernels.class_shards import Shard
from labo.kernels.options import LossOptions, Options, SharedArguments, documented
from labo.kernels.statistics import ENTROPY, LossStatistics, Wanted, as_statistics
from labo.reduction import Rows

__all__ = ["vocab_parallel_labo_cross_entropy"]

_GATHER = "gather the logits and use labo.labo_cross_entropy"


@overload
def vocab_parallel_labo_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    return_statistics: Literal[False] = False,
    **options: Unpack[SharedArguments],
) -> Tensor: ...
@overload
def vocab_parallel_labo_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    return_statistics: Literal[True],
    **options: Unpack[SharedArguments],
) -> LossStatistics: ...
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
    z_loss: float = 0.0,
    softcap: float | None = None,
    row_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    return_statistics: bool = False,
    differentiable: bool = False,
) -> Tensor | LossStatistics:
    """`labo.labo_cross_entropy` of logits whose classes are split over ranks: (1 - alpha) * CE(target, p) + alpha * V.

    Rank i of the group holds a contiguous range of classes, after those of the ranks before it; ranges may differ in
    length and may be empty. The forward pass communicates by two all-reduces of a few scalars per row, nothing of the
    size of the classes, also with statistics. The backward pass computes the gradient of each rank's slice without
    communication, provided that every rank backpropagates the same loss.

    Options that the ranks do not split are the same on every rank.

    Args:
        input: this rank's logits (C_local) or (…, C_local), floating point, classes last, as column-parallel heads
            return them; -inf masks a class. Or a DTensor that is sharded on its last dimension over a one-dimensional
            mesh.
        target: class indices (…), counted over all ranks; the same on every rank.
        group: the ranks that hold the classes; None for all ranks. With a DTensor, the group of its mesh.
        {options}

    Returns:
        The loss, or `labo.LossStatistics`, equal on every rank, as `labo.labo_cross_entropy` returns it. alpha, beta
        and prior get no gradient, and second derivatives are not supported.

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
    given = LossOptions(
        alpha, beta, prior, weight, ignore_index, reduction, value, "auto", z_loss, softcap, row_weight, denominator,
        return_statistics, differentiable,
    )  # fmt: skip
    given.check()
    class_shards.refuse_gradients(_GATHER, alpha=alpha, beta=beta, prior=prior)
    class_shards.refuse_transforms(_GATHER, input)
    input, group = _local(input, group)
    rows = class_shards.as_rows(
        input, target, weight, ignore_index, gather=_GATHER, row_weight=row_weight, signed=given.weights_signed
    )
    options, count, logits = class_shards.options_of_rows(given, rows), given.count(rows.raw), rows.logits
    if rows.row_weight is not None and not rows.row_weight.requires_grad:  # its gradient is the loss of every row
        logits = torch.where((rows.row_weight != 0).unsqueeze(-1), logits, 0.0)
    data, term, logsumexp, statistics = _RowTerms.apply(logits, rows, options, group, return_statistics)
    losses = reference.mix(data, term, options.alpha)
    losses = losses + options.z_loss * logsumexp.square() if options.z_loss else losses
    loss = _reduction.reduce(losses, rows, reduction, checks.result_dtype(input), count)
    if statistics is None:
        return loss
    row_weights = _reduction.final_row_weights(rows, reduction, losses.dtype, count)
    if differentiable:
        statistics = torch.stack([data, logsumexp, *statistics[ENTROPY:]])
    statistics = torch.where(row_weights == 0, torch.nan, statistics)
    wanted = Wanted(return_statistics, differentiable)
    return as_statistics(loss, statistics, rows, row_weights, options, reduction, wanted)


class _RowTerms(torch.autograd.Function):
    """CE(target, p), V (or CE(q*, p)) and the log-sum-exp of each row, whose gradients need no communication.

    The fourth result are the statistics (5, N), or None.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, rows: Rows, options: Options, group: dist.ProcessGroup | None, statistics: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        measured = class_shards.measure(logits, rows.target, options, group, statistics=statistics)
        class_shards.check_over_ranks(rows, measured.sizes.sum())
        ctx.save_for_backward(logits, *measured.normalizers())
        ctx.reference = measured.shard.reference
        data, term, logsumexp = measured.terms(options.value == "plugin")
        if not statistics:
            return data, term, logsumexp, None
        buffer = measured.statistics().to(data.dtype)
        ctx.mark_non_differentiable(buffer)
        return data, term, logsumexp, buffer

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Expected no second derivative (create_graph=True) of vocab_parallel_labo_cross_entropy, which has "
                f"none; {_GATHER}."
            )
        logits, *normalizers = ctx.saved_tensors
        shard = Shard(class_shards.capped_rows(logits, ctx.reference.softcap), ctx.reference)
        grad = shard.gradient(tuple(normalizers), *(grad.unsqueeze(-1) for grad in grads[:3]))
        return grad.to(logits.dtype), None, None, None, None


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
