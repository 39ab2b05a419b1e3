"""The loss through the last linear layer, with only a few rows of logits in memory at a time."""

from __future__ import annotations

import math

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
from labo.reduction import Rows

# The number of logits per chunk of the reference implementation.
CHUNK_ELEMENTS = 2**22


def rows_of(input: Tensor, head: Head, target: Tensor, weight: Tensor | None, ignore_index: int) -> Rows:
    """The rows of hidden states (…, D) under `head`; their logits have a shape but no memory."""
    if not sharded.is_sharded(head.weight):  # else the ranks check their slices together, in `reduced`
        fused.check_layer(input, head)
    # An expanded view has the right shape for the checks, and needs no memory.
    shape = (*input.shape[:-1], head.weight.shape[0])
    logits = torch.empty((), dtype=input.dtype, device=input.device).expand(shape)
    return _reduction.as_rows(logits, target, weight, ignore_index, class_dim=-1)


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
    if sharded.is_sharded(head.weight):
        return sharded.reduced(input, head, rows, options, reduction, impl=impl, count=count, chunks=chunks)
    hidden = input.reshape(-1, input.shape[-1])
    dtype = checks.result_dtype(input)
    row_weights = _reduction.final_row_weights(rows, reduction, reference.working_dtype(hidden), count)
    operator = kernels.as_operator(impl, rows.target, options, row_weights)
    solve = None if operator else kernels.choose(impl, _tensors(input, head), rows.target, options, row_weights)
    if solve is None and not operator:
        losses = _chunked(hidden, (head.weight, head.bias), rows, options, chunks.rows)
        return _reduction.reduce(losses, rows, reduction, dtype, count)
    hidden, head = fused.under_autocast(hidden, head)
    row_weights = row_weights.to(reference.working_dtype(hidden))
    total = reduction != "none"
    arguments = (hidden, head, rows.target, row_weights, options.normalised())
    if solve is None:
        loss = operators.linear_loss(*arguments, chunks, impl, total=total)
    else:
        loss = (fused.total if total else fused.rows)(solve, *arguments, chunks)
    return (loss if total else loss.reshape(rows.shape)).to(dtype)


def solved(
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
    if reason := kernels.unsupported_by_all(_tensors(input, head), rows.target, options, row_weights):
        raise UserError(f"The loss of hidden states with these options {reason}: compute the logits (linear=False).")
    arguments = (hidden, head, rows.target, row_weights, options)
    if reduction == "none":
        return fused.rows(solve, *arguments, DEFAULT_CHUNKS).reshape(rows.shape).to(checks.result_dtype(input))
    return fused.total(solve, *arguments, DEFAULT_CHUNKS).to(checks.result_dtype(input))


def _tensors(input: Tensor, head: Head) -> tuple[Tensor, ...]:
    return (input, head.weight) if head.bias is None else (input, head.weight, head.bias)


def _chunked(
    hidden: Tensor, head: tuple[Tensor, Tensor | None], rows: Rows, options: Options, step: int | None
) -> Tensor:
    """The row losses (N,) by the reference implementation, which recomputes the logits in the backward pass."""
    step = step or max(1, CHUNK_ELEMENTS // max(1, head[0].shape[0]))
    parts = []
    for start in range(0, hidden.shape[0], step):
        at = slice(start, start + step)
        kept = None if rows.kept is None else rows.kept[at]
        args = hidden[at], head, rows.target[at], kept, options.of(at)
        parts.append(_chunk(*args) if _keeps_graph(hidden) else checkpoint(_chunk, *args, use_reentrant=False))
    return torch.cat(parts) if parts else (hidden.sum() * 0.0).expand(0)


def _chunk(
    hidden: Tensor, head: tuple[Tensor, Tensor | None], target: Tensor, kept: Tensor | None, options: Options
) -> Tensor:
    if kept is not None:
        hidden = torch.where(kept.unsqueeze(-1), hidden, 0.0)
    return reference.row_losses(linear(hidden, *head), target, **options.named())


def _keeps_graph(tensor: Tensor) -> bool:
    """Whether recomputation is useless, or impossible (saved-tensor hooks do not work under torch.func)."""
    return not torch.is_grad_enabled() or checks.transformed()
