"""The loss through the last linear layer, with only a few rows of logits in memory at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from labo import checks, kernels
from labo import reduction as _reduction
from labo.errors import UserError
from labo.kernels import linear as fused
from labo.kernels import operators, reference
from labo.kernels import vocab_parallel_linear as sharded
from labo.kernels.autograd import Solve
from labo.kernels.linear import DEFAULT_CHUNKS, Chunks, Head
from labo.kernels.options import Options
from labo.kernels.statistics import NOTHING, LossStatistics, Wanted, as_statistics, new_buffer
from labo.reduction import Rows

# The number of logits per chunk of the reference implementation.
CHUNK_ELEMENTS = 2**22


def rows_of(
    input: Tensor,
    head: Head,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    *,
    row_weight: Tensor | None = None,
    signed: bool = False,
) -> Rows:
    """The rows of hidden states (…, D) under `head`, as of `reduction.as_rows`; their logits need no memory."""
    if not sharded.is_sharded(head.weight):  # else the ranks check their slices together, in `solved`
        fused.check_layer(input, head)
    # An expanded view has the right shape for the checks, and needs no memory.
    shape = (*input.shape[:-1], head.weight.shape[0])
    logits = torch.empty((), dtype=input.dtype, device=input.device).expand(shape)
    given: dict[str, Any] = {"row_weight": row_weight, "signed": signed}
    return _reduction.as_rows(logits, target, weight, ignore_index, class_dim=-1, **given)


def reduced(
    input: Tensor,
    head: Head,
    rows: Rows,
    options: Options,
    reduction: str,
    *,
    impl: str = "auto",
    count: Tensor | None = None,
    chunks: Chunks = DEFAULT_CHUNKS,
) -> Tensor:
    """The reduced loss of hidden states (…, D) under `head`; `count` replaces the denominator of "mean"."""
    loss = solved(input, head, rows, options, reduction, impl=impl, count=count, chunks=chunks)
    assert isinstance(loss, Tensor)
    return loss


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
    wanted: Wanted = NOTHING,
) -> Tensor | LossStatistics:
    """Like `reduced`, with statistics where they are wanted."""
    if sharded.is_sharded(head.weight):
        return sharded.solved(
            input, head, rows, options, reduction, impl=impl, count=count, chunks=chunks, wanted=wanted
        )
    hidden = input.reshape(-1, input.shape[-1])
    dtype = checks.result_dtype(input)
    row_weights = _reduction.final_row_weights(rows, reduction, reference.working_dtype(hidden), count)
    sources = _reduction.weight_sources(rows, count)
    operator = kernels.as_operator(impl, rows.target, options, sources, wanted)
    solve = None if operator else kernels.choose(impl, _tensors(input, head), rows.target, options, sources)
    if solve is None and not operator:
        losses, statistics = _chunked(hidden, (head.weight, head.bias), rows, options, chunks.rows, wanted)
        loss = _reduction.reduce(losses, rows, reduction, dtype, count)
        if statistics is not None:
            statistics = torch.where(row_weights == 0, math.nan, statistics)
    else:
        hidden, head = fused.under_autocast(hidden, head)
        row_weights = row_weights.to(reference.working_dtype(hidden))
        total = reduction != "none"
        arguments = (hidden, head, rows.target, row_weights, options.normalised())
        if solve is None:
            loss, statistics = operators.linear_loss(*arguments, chunks, impl, total=total, wanted=wanted)
        else:
            loss, statistics = (fused.total if total else fused.rows)(solve, *arguments, chunks, wanted)
        loss = (loss if total else loss.reshape(rows.shape)).to(dtype)
    if statistics is None:
        return loss
    return as_statistics(loss, statistics, rows, row_weights, options, reduction, wanted)


def reduced_by(
    solve: Solve, input: Tensor, head: Head, rows: Rows, reduction: str, *, count: Tensor | None = None
) -> Tensor:
    """Like `reduced`, with the given implementation."""
    if sharded.is_sharded(head.weight):
        raise UserError(
            "Expected a whole head for the loss of this method, but got a DTensor: compute the logits (linear=False)."
        )
    hidden, head = fused.under_autocast(input.reshape(-1, input.shape[-1]), head)
    row_weights = _reduction.final_row_weights(rows, reduction, reference.working_dtype(hidden), count)
    options = Options(1.0, math.inf, weight=rows.weight if rows.has_probabilities else None)
    sources = _reduction.weight_sources(rows, count)
    if reason := kernels.unsupported_by_all(_tensors(input, head), rows.target, options, sources):
        raise UserError(f"The loss of hidden states with these options {reason}: compute the logits (linear=False).")
    arguments = (hidden, head, rows.target, row_weights, options)
    if reduction == "none":
        return fused.rows(solve, *arguments, DEFAULT_CHUNKS)[0].reshape(rows.shape).to(checks.result_dtype(input))
    return fused.total(solve, *arguments, DEFAULT_CHUNKS)[0].to(checks.result_dtype(input))


def _tensors(input: Tensor, head: Head) -> tuple[Tensor, ...]:
    return (input, head.weight) if head.bias is None else (input, head.weight, head.bias)


def _chunked(
    hidden: Tensor, head: tuple[Tensor, Tensor | None], rows: Rows, options: Options, step: int | None, wanted: Wanted
) -> tuple[Tensor, Tensor | None]:
    """Row losses (N,) and statistics by the reference implementation; the backward pass recomputes the logits."""
    step = step or max(1, CHUNK_ELEMENTS // max(1, head[0].shape[0]))
    parts: list[Any] = []
    for start in range(0, hidden.shape[0], step):
        at = slice(start, start + step)
        kept = None if rows.kept is None else rows.kept[at]
        args = hidden[at], head, rows.target[at], kept, options.of(at), wanted
        parts.append(_chunk(*args) if _keeps_graph(hidden) else checkpoint(_chunk, *args, use_reentrant=False))
    if not parts:
        losses = (hidden.sum() * 0.0).expand(0)
        return losses, new_buffer(losses) if wanted.statistics else None
    losses, statistics = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(statistics, 1) if wanted.statistics else None


def _chunk(
    hidden: Tensor,
    head: tuple[Tensor, Tensor | None],
    target: Tensor,
    kept: Tensor | None,
    options: Options,
    wanted: Wanted,
) -> tuple[Tensor, Tensor | None]:
    if kept is not None:
        hidden = torch.where(kept.unsqueeze(-1), hidden, 0.0)
    logits = linear(hidden, *head)
    losses = reference.row_losses(logits, target, **options.named())
    if not wanted.statistics:
        return losses, None
    return losses, reference.statistics(logits, target, options, differentiable=wanted.differentiable)


def _keeps_graph(tensor: Tensor) -> bool:
    """Whether recomputation is useless, or impossible (saved-tensor hooks do not work under torch.func)."""
    return not torch.is_grad_enabled() or checks.transformed()
