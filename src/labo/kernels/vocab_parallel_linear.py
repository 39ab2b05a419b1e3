"""The last layer fused with the loss where the classes are split over ranks, each with its slice of the weights.

A chunk of rows costs two all-reduces of a few scalars per row, as in vocab_parallel.py; the gradient of the hidden
states, to which every rank contributes, is summed over the ranks in the backward pass. Before the first chunk the ranks
compare what they were called with, so that arguments that do not fit end every rank with a sentence, and none waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from labo import checks
from labo import reduction as _reduction
from labo.errors import UserError
from labo.kernels import class_shards, linear, reference
from labo.kernels.linear import CHUNK_ROWS, Chunks, Head
from labo.kernels.options import VALUES, LossOptions, Options, documented
from labo.kernels.statistics import LossStatistics, Wanted, as_statistics
from labo.reduction import REDUCTIONS, Rows

__all__ = ["vocab_parallel_linear_labo_cross_entropy"]

_GATHER = "gather the head and use labo.linear_labo_cross_entropy"
_FSDP = (
    "a head that is sharded over ranks with examples of their own (fully_shard) is passed whole, as "
    'linear_weight.full_tensor(grad_placements=[Partial("avg")]) or inside the forward of the module that holds it'
)
# What must be the same on every rank.
_SHARED = (
    "rows of `input`",
    "width of `input`",
    "precision of `input`",
    "need of a gradient of `input`",
    "presence of `linear_bias`",
    "number of dimensions of `prior`",
    "number of entries of `weight`",
    "`alpha`",
    "`beta`",
    "`reduction`",
    "`value`",
    "`z_loss`",
    "`softcap`",
    "`return_statistics`",
    "`chunk_rows`",
    "number of classes",
    "`target`",
    "`row_weight`",
)


@documented(
    prior="None for uniform, or this rank's slice (V_local,) or (…, V_local) of probabilities that sum to 1 over the "
    "classes of all ranks.",
    weight="(V,) class weights, of all ranks.",
)
def vocab_parallel_linear_labo_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
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
    chunk_rows: int | None = None,
    accumulate: str = "float32",
) -> Tensor | LossStatistics:
    """`labo.linear_labo_cross_entropy` with a slice of the head on each rank: the logits of a few rows at a time.

    Rank i of the group holds a contiguous range of classes, after those of the ranks before it; ranges may differ in
    length and may be empty. A chunk communicates by two all-reduces of a few scalars per row, the backward pass by one
    all-reduce of the gradient of the hidden states. `labo.linear_labo_cross_entropy` does the same for a
    `linear_weight` that is a DTensor sharded on its classes. Options that the ranks do not split are the same on every
    rank.

    Args:
        input: hidden states (…, D), the same on every rank.
        linear_weight: this rank's slice (V_local, D).
        target: class indices (…), counted over all ranks; the same on every rank.
        linear_bias: this rank's slice (V_local,), or None.
        group: the ranks that hold the classes; None for all ranks.
        {options}
        chunk_rows, accumulate: as in `labo.linear_labo_cross_entropy`; on a GPU a chunk has 2,048 rows by default.

    Returns:
        The loss, or `labo.LossStatistics`, equal on every rank. The gradient of `input` is that of the whole loss, the
        same on every rank; those of the slices stay on their rank. Options get no gradient, and there are no second
        derivatives.

    Raises:
        ValueError, TypeError: an argument is out of range, does not fit, or is another one on another rank; the message
            names it, and every rank raises an error.
        RuntimeError: torch.distributed is not initialised; the loss is differentiated twice.

    Source:
        As in `labo.vocab_parallel_labo_cross_entropy`.

    Example:
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> vocab_parallel_linear_labo_cross_entropy(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))
        tensor(1.3863)
        >>> dist.destroy_process_group()
    """
    class_shards.require_initialized()
    class_shards.require_member(group)
    with _agreement(group, input) as shared:
        given = LossOptions(
            alpha, beta, prior, weight, ignore_index, reduction, value, "auto", z_loss, softcap, row_weight,
            denominator, return_statistics,
        )  # fmt: skip
        given.check()
        linear.check_chunks(chunk_rows, accumulate)
        class_shards.refuse_gradients(_GATHER, **given.named())
        class_shards.refuse_transforms(_GATHER, input)
        head = Head(linear_weight, linear_bias)
        linear.check_layer(input, head)
        classes = linear_weight.shape[0]
        rows = class_shards.as_rows(
            input.new_empty(()).expand(*input.shape[:-1], classes), target, weight, ignore_index, gather=_GATHER,
            row_weight=row_weight, signed=given.weights_signed,
        )  # fmt: skip
        options = class_shards.options_of_rows(given, rows)
        chunks, wanted, count = Chunks(chunk_rows, accumulate), Wanted(return_statistics), given.count(rows.raw)
        shared.update(_shared_values(input, head, rows, options, reduction, chunks, wanted))
    class_shards.check_over_ranks(rows, shared["classes of each rank"].sum())
    return _loss(input, head, rows, options, reduction, group, shared, chunks, count, wanted)


def is_sharded(linear_weight: Any) -> bool:
    """Whether a head is a DTensor."""
    return getattr(linear_weight, "device_mesh", None) is not None


def local_layer(input: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Hidden states as a plain tensor, and this rank's slice of a head that is a DTensor.

    Raises:
        UserError: the head is not sharded on its classes, or the parts lie on different meshes.
    """
    from torch.distributed.tensor import DTensor

    mesh = _mesh(head)
    weight = _local_slice("linear_weight", head.weight, mesh)
    bias = None if head.bias is None else _local_slice("linear_bias", head.bias, mesh)
    if isinstance(input, DTensor):
        if input.device_mesh != mesh or not all(placement.is_replicate() for placement in input.placements):
            raise UserError(
                "Expected argument `input`, a DTensor, to be replicated on the mesh of `linear_weight`, but got "
                f"placements {tuple(input.placements)} on {input.device_mesh}: redistribute it."
            )
        input = input.to_local()
    head = Head(weight, bias)
    linear.check_layer(input, head)
    return input, head


def solved(
    input: Tensor,
    head: Head,
    rows: Rows,
    options: Options,
    reduction: str,
    *,
    impl: str,
    count: Tensor | None,
    chunks: Chunks,
    wanted: Wanted,
) -> Tensor | LossStatistics:
    """The reduced loss under a head that is a DTensor; `rows` and `options` are those of all classes."""
    mesh = _mesh(head)
    classes, group = head.weight.shape[0], mesh.get_group()
    with _agreement(group, input) as shared:
        if impl != "auto":
            raise UserError(f"impl='{impl}' takes no head that is split over ranks; use impl='auto'.")
        if rows.has_probabilities:
            raise UserError(
                f"Expected class indices with a head that is split over ranks; for probabilities {_GATHER}."
            )
        if wanted.differentiable:
            raise UserError(f"Expected differentiable=False with a head that is split over ranks; {_GATHER}.")
        weights = {"weight": rows.weight, "row_weight": rows.row_weight, "denominator": count}
        class_shards.refuse_gradients(_GATHER, **(options.named() | weights))
        class_shards.refuse_transforms(_GATHER, input)
        hidden, slices = local_layer(input, head)
        # torch.chunk's sizes, as DTensor has them.
        first = min(mesh.get_local_rank() * -(-classes // mesh.size()), classes)
        if options.prior is not None:
            prior = options.prior[..., first : first + slices.weight.shape[0]]
            options = replace(options, prior=prior)
        shared.update(_shared_values(hidden, slices, rows, options, reduction, chunks, wanted, classes))
    return _loss(hidden, slices, rows, options, reduction, group, shared, chunks, count, wanted)


def _mesh(head: Head) -> Any:
    """The mesh of a sharded head."""
    weight: Any = head.weight
    if weight.device_mesh.ndim != 1 or weight.device_mesh.get_coordinate() is None:
        raise UserError(
            "Expected argument `linear_weight`, a DTensor, on a one-dimensional mesh that includes this process, but "
            f"got {weight.device_mesh}; {_GATHER}."
        )
    return weight.device_mesh


def _local_slice(name: str, value: Any, mesh: Any) -> Tensor:
    placements = getattr(value, "placements", None)
    if placements is None:
        raise UserError(
            f"Expected argument `{name}` to be a DTensor that is sharded as `linear_weight` is, but got a plain tensor."
        )
    if value.device_mesh != mesh:
        raise UserError(
            f"Expected argument `{name}` on the mesh of `linear_weight`, {mesh}, but got {value.device_mesh}."
        )
    if not placements[0].is_shard(0):
        raise UserError(
            f"Expected argument `{name}`, a DTensor, to be sharded on dimension 0, that of classes (Shard(0)), but got "
            f"placements {tuple(placements)}; {_GATHER}."
        )
    return value.to_local()


def _shared_values(
    hidden: Tensor,
    head: Head,
    rows: Rows,
    options: Options,
    reduction: str,
    chunks: Chunks,
    wanted: Wanted,
    classes: int = -1,
) -> dict[str, Any]:
    """The values of `_SHARED`, and "classes of each rank", which are not compared. `classes` is -1 if unknown."""
    strengths = (-1.0 if isinstance(value, Tensor) else float(value) for value in (options.alpha, options.beta))
    values: tuple[Any, ...] = (
        rows.raw.shape[0],
        hidden.shape[-1],
        torch.finfo(hidden.dtype).eps,
        hidden.requires_grad and torch.is_grad_enabled(),
        head.bias is not None,
        0 if options.prior is None else options.prior.dim(),
        0 if rows.weight is None else rows.weight.numel(),
        *strengths,
        REDUCTIONS.index(reduction),
        VALUES.index(options.value),
        options.z_loss,
        options.softcap or 0,
        wanted.statistics,
        chunks.rows or 0,
        classes,
        _checksum(rows.target if rows.kept is None else torch.where(rows.kept, rows.target, -1)),
        0 if rows.row_weight is None else _checksum((rows.row_weight != 0).long()),
    )
    return {**dict(zip(_SHARED, values, strict=True)), "classes of each rank": head.weight.shape[0]}


def _checksum(values: Tensor) -> Tensor:
    """A number that differs, almost surely, for other integers (N,); exact in float64."""
    factors = torch.arange(len(values), device=values.device).remainder_(8191).add_(1)
    return (values * factors).sum().remainder(2**52)


@contextmanager
def _agreement(group: dist.ProcessGroup | None, input: Any) -> Iterator[dict[str, Any]]:
    """Within this context, fill the dictionary with `_shared_values`; on leaving it, the ranks compare them.

    Afterwards "classes of each rank" is a tensor with all of them. An error in this context on any rank, or values that
    differ, raise an error on every rank; on an accelerator, where nothing waits for the device, by an assertion there.
    """
    shared: dict[str, Any] = {}
    device = input.device if isinstance(input, Tensor) else torch.device("cpu")
    try:
        yield shared
    except Exception:
        _all_gather({}, device, group)
        raise
    gathered = _all_gather(shared, device, group)
    *columns, sizes = gathered.T
    expected, total = columns[_SHARED.index("number of classes")], sizes.sum()
    if device.type == "cpu":
        _raise_for_differences(gathered)
    agree = (gathered[:, :-1] == gathered[:1, :-1]).all() & ((expected[0] == total) | (expected[0] == -1))
    checks.require(agree, "Expected every rank to be called with slices of one head and the same other arguments.")
    shared["classes of each rank"] = sizes.long()


def _all_gather(shared: Mapping[str, Any], device: torch.device, group: dist.ProcessGroup | None) -> Tensor:
    """The values of all ranks, (ranks, values); NaN of a rank that has none."""
    numbers = [0.0 if isinstance(value, Tensor) else float(value) for value in shared.values()]
    gathered = torch.zeros(dist.get_world_size(group), len(_SHARED) + 1, dtype=torch.float64, device=device)
    own = gathered[dist.get_rank(group)]
    own.copy_(torch.tensor(numbers or [torch.nan] * len(own), dtype=torch.float64, device=device))
    for place, value in enumerate(shared.values()):
        if isinstance(value, Tensor):
            own[place] = value
    dist.all_reduce(gathered, group=group)
    return gathered


def _raise_for_differences(gathered: Tensor) -> None:
    failed = gathered.isnan().all(1).nonzero().flatten().tolist()
    if failed:
        raise ValueError(
            f"Expected fitting arguments on every rank, but rank {failed[0]} of the group raised an error."
        )
    for name, column in zip(_SHARED, gathered.T.tolist(), strict=False):
        if len(set(column)) > 1:
            values = ", ".join(f"{value:g}" for value in column)
            reason = f"others; {_FSDP}" if name == "`target`" else f"{values} (by rank)"
            raise ValueError(
                f"Expected the same {name} on every rank that holds a slice of the head, but got {reason}."
            )


def _loss(
    hidden: Tensor,
    head: Head,
    rows: Rows,
    options: Options,
    reduction: str,
    group: dist.ProcessGroup | None,
    shared: Mapping[str, Any],
    chunks: Chunks,
    count: Tensor | None,
    wanted: Wanted,
) -> Tensor | LossStatistics:
    dtype = checks.result_dtype(hidden)
    hidden, head = linear.under_autocast(hidden.reshape(-1, hidden.shape[-1]), head)
    row_weights = _reduction.final_row_weights(rows, reduction, reference.working_dtype(hidden), count)
    hidden = _SharedByRanks.apply(hidden, group)
    step = chunks.rows
    if step is None:  # the same on every rank, and none waits for its device to find it
        on_cpu = hidden.device.type == "cpu"
        step = chunks.rows_of(hidden, int(shared["classes of each rank"].max())) if on_cpu else CHUNK_ROWS
    apply = linear.rows if reduction == "none" else linear.total
    arguments = (hidden, head, rows.target, row_weights, options, Chunks(step, chunks.accumulate), wanted)
    loss, statistics = apply(_ShardSolve(group), *arguments)
    loss = (loss.reshape(rows.shape) if reduction == "none" else loss).to(dtype)
    if statistics is None:
        return loss
    return as_statistics(loss, statistics, rows, row_weights, options, reduction, wanted)


class _SharedByRanks(torch.autograd.Function):
    """Hidden states that every rank uses: their gradient is the sum over the ranks."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _ShardSolve:
    """`labo.kernels.blocked.solve` for this rank's slice of the classes; the losses are those over all classes."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        row_weights: Tensor,
        options: Options,
        *,
        gradient: bool,
        out: Tensor | None = None,
        statistics: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        measured = class_shards.measure(logits, target, options, self.group, statistics=statistics is not None)
        data, term, logsumexp = measured.terms(options.value == "plugin")
        losses = reference.mix(data, term, options.alpha)
        losses = losses + options.z_loss * logsumexp.square() if options.z_loss else losses
        losses = torch.where(row_weights == 0, 0.0, row_weights * losses)
        if statistics is not None:
            statistics.copy_(torch.where(row_weights == 0, torch.nan, measured.statistics()))
        if not gradient:
            return losses, None
        alpha = options.alpha.to(data.dtype) if isinstance(options.alpha, Tensor) else options.alpha
        grad_data, grad_term = ((part * row_weights).unsqueeze(-1) for part in (1 - alpha, alpha))
        grad_logsumexp = (2 * options.z_loss * row_weights * logsumexp).unsqueeze(-1) if options.z_loss else 0.0
        grad = measured.shard.gradient(measured.normalizers(), grad_data, grad_term, grad_logsumexp)
        return losses, grad.to(logits.dtype) if out is None else out.copy_(grad)

    def row_losses(self, logits: Tensor, weight: Tensor | None) -> Tensor:
        """There are no differentiable formulas of a slice."""
        raise RuntimeError(
            f"Expected no second derivative (create_graph=True) of a loss whose head is split over ranks; {_GATHER}."
        )
