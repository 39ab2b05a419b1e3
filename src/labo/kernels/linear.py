"""The last linear layer fused with the loss: the gradient of each chunk of logits overwrites it.

Only gradients that are needed are computed. On the CPU, rows of weight 0 are dropped before the product. On a device,
where finding them would require synchronization, chunks are slices and these rows have weight 0 in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from labo import checks
from labo.errors import unknown
from labo.kernels.autograd import Solve, buffers_for, defer_gradient, scale_gradient, weighted_sum
from labo.kernels.options import Options
from labo.kernels.statistics import NOTHING, StatisticsGradient, Wanted, row_gradients

# On the CPU: the bytes of a chunk of logits, which stay in its caches.
CHUNK_BYTES = 2**25
# On a device: the rows of a chunk, enough for efficient products. Each chunk reads the weights twice and their gradient
# once.
CHUNK_ROWS = 2048
# Up to this size, a chunk of logits is allocated without checking the free memory.
SMALL_CHUNK_BYTES = 2**30
ACCUMULATE = ("float32", "input")


@dataclass(frozen=True)
class Head:
    """The last layer: `weight` (V, D), `bias` (V,) or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Chunks:
    """The number of rows per chunk (None for a default), and the dtype that accumulates the head's gradient.

    `accumulate` is "float32", or "input" for the dtype of the weight: half the memory in half precision, but one
    rounding per chunk.
    """

    rows: int | None = None
    accumulate: str = "float32"

    def rows_of(self, hidden: Tensor, classes: int) -> int:
        """The number of rows per chunk."""
        if self.rows is not None:
            return self.rows
        row_bytes = max(1, classes * hidden.element_size())
        if hidden.device.type == "cpu":
            return max(1, CHUNK_BYTES // row_bytes)
        if hidden.device.type != "cuda" or CHUNK_ROWS * row_bytes <= SMALL_CHUNK_BYTES:
            return CHUNK_ROWS
        free = torch.cuda.mem_get_info(hidden.device)[0]
        free += torch.cuda.memory_reserved(hidden.device) - torch.cuda.memory_allocated(hidden.device)
        return min(CHUNK_ROWS, max(1, free // 4 // row_bytes))


DEFAULT_CHUNKS = Chunks()


def check_chunks(chunk_rows: int | None, accumulate: str) -> None:
    """Check the options that only the linear form has."""
    if chunk_rows is not None:
        checks.integer("chunk_rows", chunk_rows)
    if accumulate not in ACCUMULATE:
        raise unknown("accumulate", accumulate, ACCUMULATE)


def check_layer(input: Tensor, head: Head) -> None:
    """Check hidden states (…, D) and the head that they meet, whose parts are `linear_weight` and `linear_bias`."""
    linear_weight, linear_bias = head.weight, head.bias
    checks.floating("input", input)
    checks.floating("linear_weight", linear_weight)
    if linear_weight.dim() != 2 or linear_weight.shape[1] != input.shape[-1]:
        raise ValueError(
            f"Expected argument `linear_weight` of shape (V, {input.shape[-1]}) for an input of width "
            f"{input.shape[-1]}, but got {tuple(linear_weight.shape)}."
        )
    _check_like("linear_weight", linear_weight, input)
    if linear_bias is None:
        return
    checks.floating("linear_bias", linear_bias)
    if linear_bias.shape != linear_weight.shape[:1]:
        raise ValueError(
            f"Expected argument `linear_bias` of shape ({linear_weight.shape[0]},), but got {tuple(linear_bias.shape)}."
        )
    _check_like("linear_bias", linear_bias, input)


def _check_like(name: str, value: Tensor, input: Tensor) -> None:
    """Check that a part of the layer is on the device of its input, and of its dtype without autocast."""
    checks.same_device(name, value, input)
    if value.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(
            f"Expected argument `{name}` of `input`'s dtype {input.dtype}, but got {value.dtype}; convert one of them, "
            "or call the loss under torch.autocast."
        )


def under_autocast(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Hidden states and head in the precision of autocast."""
    kind = hidden.device.type
    if not torch.is_autocast_enabled(kind):
        return hidden, head
    dtype = torch.get_autocast_dtype(kind)
    return hidden.to(dtype), Head(head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype))


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def total(
    solve: Solve,
    hidden: Tensor,
    head: Head,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    chunks: Chunks,
    wanted: Wanted = NOTHING,
) -> tuple[Tensor, Tensor | None]:
    """The sum of the row losses times their weights, (), of hidden (N, D), and their statistics (5, N).

    It is differentiable in hidden and the head.
    """
    return _apply(hidden, head, target, row_weights, options, solve, chunks, False, wanted)


def rows(
    solve: Solve,
    hidden: Tensor,
    head: Head,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    chunks: Chunks,
    wanted: Wanted = NOTHING,
) -> tuple[Tensor, Tensor | None]:
    """Like `total`, with the row losses times their weights, (N,); their gradient is computed by recomputation."""
    return _apply(hidden, head, target, row_weights, options, solve, chunks, True, wanted)


def _apply(hidden: Tensor, head: Head, *rest: Any) -> tuple[Tensor, Tensor | None]:
    tensors = (hidden, head.weight, head.bias)
    needs = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors)
    result = _LinearLoss.apply(*tensors, *rest, needs)
    return result if isinstance(result, tuple) else (result, None)


def solve_linear(
    solve: Solve,
    hidden: Tensor,
    head: Head,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    needs: tuple[bool, bool, bool],
    chunks: Chunks,
    statistics: Tensor | None = None,
) -> tuple[Tensor, Gradients]:
    """The losses (N,) times their weights, and the gradients of their sum in hidden, weight and bias where needed.

    It never synchronizes with a device. The logits of all chunks share one buffer, which their gradient overwrites.
    `statistics` is a buffer (5, N) for the statistics of the rows.
    """
    step = min(chunks.rows_of(hidden, head.weight.shape[0]), max(1, len(hidden)))
    on_cpu = _on_cpu(row_weights)
    drops = on_cpu and not bool(row_weights.all())
    losses = torch.zeros_like(row_weights) if drops else torch.empty_like(row_weights)
    one_chunk = step >= len(hidden)
    grads = _Gradients(hidden, head, needs, chunks.accumulate == "input" or one_chunk, cleared=drops)
    buffer = torch.empty(step, head.weight.shape[0], dtype=hidden.dtype, device=hidden.device)
    for part in _parts(row_weights, step, drops):
        chunk, weights = hidden[part], row_weights[part]
        if not on_cpu:
            # Keeps NaN in rows of weight 0 out of the products.
            chunk = torch.where((weights != 0).unsqueeze(-1), chunk, 0.0)
        logits = _product(chunk, head, buffer[: len(chunk)])
        select = getattr(solve, "of", None)  # of a solver that holds data per row
        written = {} if statistics is None else {"statistics": statistics[:, part]}
        losses[part], grad_logits = (solve if select is None else select(part))(
            logits, target[part], weights, options.of(part), gradient=any(needs), out=logits, **written
        )
        if statistics is not None and not isinstance(part, slice):  # indexing has made a copy
            statistics[:, part] = written["statistics"]
        if grad_logits is not None:
            grads.add(part, chunk, grad_logits, head.weight)
    return losses, grads.finished(head)


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _parts(row_weights: Tensor, step: int, drops: bool) -> Iterator[slice | Tensor]:
    """The rows of each chunk: a slice, or indices if rows of weight 0 lie in between."""
    if not drops:
        for start in range(0, len(row_weights), step):
            yield slice(start, start + step)
        return
    nonzero = torch.nonzero(row_weights).squeeze(-1)
    for at in nonzero.split(step) if len(nonzero) else ():
        # Consecutive rows are a slice, which needs no copy.
        yield slice(int(at[0]), int(at[-1]) + 1) if len(at) == int(at[-1] - at[0]) + 1 else at


def _product(chunk: Tensor, head: Head, out: Tensor) -> Tensor:
    if head.bias is None:
        return torch.mm(chunk, head.weight.T, out=out)
    return torch.addmm(head.bias, chunk, head.weight.T, out=out)


class _Gradients:
    """Accumulates gradients: the first chunk writes those of the head, later chunks add inside the product."""

    def __init__(
        self, hidden: Tensor, head: Head, needs: tuple[bool, bool, bool], narrow: bool, *, cleared: bool
    ) -> None:
        work = torch.promote_types(hidden.dtype, torch.float32)
        self.hidden = (torch.zeros_like if cleared else torch.empty_like)(hidden) if needs[0] else None
        weight_dtype = head.weight.dtype if narrow else work
        self.weight = torch.empty_like(head.weight, dtype=weight_dtype) if needs[1] else None
        self.bias = torch.zeros_like(head.bias, dtype=work) if needs[2] and head.bias is not None else None
        self.first = True

    def add(self, part: slice | Tensor, chunk: Tensor, grad_logits: Tensor, weight: Tensor) -> None:
        """Add the gradients of a chunk (n, D), from the gradient of its logits (n, V)."""
        if self.hidden is not None:
            if isinstance(part, slice):
                torch.mm(grad_logits, weight, out=self.hidden[part])
            else:
                self.hidden[part] = grad_logits @ weight
        if self.weight is not None:
            _accumulate(self.weight, grad_logits.T, chunk, self.first)
        if self.bias is not None:
            self.bias.add_(grad_logits.sum(0, dtype=self.bias.dtype))
        self.first = False

    def finished(self, head: Head) -> Gradients:
        """The gradients of hidden, weight and bias, in their dtypes."""
        weight = self.weight
        if weight is not None:
            weight = weight.zero_() if self.first else weight
            weight = weight.to(head.weight.dtype)
        bias = None if self.bias is None or head.bias is None else self.bias.to(head.bias.dtype)
        return self.hidden, weight, bias


def _accumulate(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """Write left @ right into `total` the first time, and add it afterwards, inside the product if possible."""
    if total.dtype == left.dtype:
        if first:
            torch.mm(left, right, out=total)
        else:
            total.addmm_(left, right)
    elif total.device.type == "cuda" and total.dtype == torch.float32 and _sums_in_float32():
        product: Any = torch.mm if first else torch.addmm
        product(*(() if first else (total,)), left, right, out_dtype=torch.float32, out=total)
    elif first:
        total.copy_(left @ right)
    else:
        total.add_(left @ right)


def _sums_in_float32() -> bool:
    """Whether this PyTorch multiplies half precision into float32 (2.8 and newer, on CUDA)."""
    return "dtype_out" in torch.ops.aten.addmm.overloads()


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        hidden, weight, bias, target, row_weights, options, solve, chunks, per_row, asked, wanted = arguments
        needs = (False, False, False) if per_row or defer_gradient(hidden) else wanted
        buffers, statistics = buffers_for(ctx, row_weights, asked)
        head = Head(weight.detach(), None if bias is None else bias.detach())
        losses, grads = solve_linear(
            solve, hidden.detach(), head, target, row_weights, options, needs, chunks, **buffers
        )
        ctx.grads = grads if any(needs) else None  # else the backward pass computes them
        ctx.save_for_backward(hidden, weight, bias, target, row_weights)
        ctx.options, ctx.solve, ctx.chunks, ctx.per_row, ctx.wanted = options, solve, chunks, per_row, wanted
        loss = losses if per_row else losses.sum()
        return loss if statistics is None else (loss, statistics)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, grad_statistics = grads[0], grads[1] if ctx.differentiable else None
        rest = (None,) * 8
        saved, ctx.grads = ctx.grads, None
        # Without the saved tensors, whose use would raise an error if one was modified since the loss.
        if saved is not None and not torch.is_grad_enabled():
            scaled: Any = tuple(None if value is None else scale_gradient(value, grad) for value in saved)
            return *(scaled if grad_statistics is None else _with_statistics(ctx, scaled, grad_statistics)), *rest
        hidden, weight, bias, target, row_weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Views, because the gradient from above may itself depend on these tensors, and is a constant here.
            hidden, weight = hidden.view_as(hidden), weight.view_as(weight)
            bias = None if bias is None else bias.view_as(bias)
            inputs: Any = [tensor for tensor, needed in zip((hidden, weight, bias), ctx.wanted, strict=True) if needed]
            # Keeps NaN in rows of weight 0 out of the products.
            logits = linear(torch.where((row_weights != 0).unsqueeze(-1), hidden, 0.0), weight, bias)
            total = weighted_sum(
                logits, target, row_weights, grad, ctx.options, getattr(ctx.solve, "row_losses", None), grad_statistics
            )
            computed = iter(torch.autograd.grad(total, inputs, create_graph=True))
            return *(next(computed) if needed else None for needed in ctx.wanted), *rest
        weights, head = row_weights * grad, Head(weight, bias)
        _, grads_in = solve_linear(ctx.solve, hidden, head, target, weights, ctx.options, ctx.wanted, ctx.chunks)
        return *(grads_in if grad_statistics is None else _with_statistics(ctx, grads_in, grad_statistics)), *rest


def _with_statistics(ctx: Any, grads: Gradients, grad_statistics: Tensor) -> Gradients:
    """Add the gradients through the statistics, for which the logits are computed again."""
    hidden, weight, bias, target, row_weights = ctx.saved_tensors
    solve, head = StatisticsGradient(ctx.solve, *row_gradients(grad_statistics, row_weights)), Head(weight, bias)
    added = solve_linear(solve, hidden, head, target, row_weights, ctx.options, ctx.wanted, ctx.chunks)[1]
    first, second, third = (x if x is None or y is None else x + y for x, y in zip(grads, added, strict=True))
    return first, second, third
