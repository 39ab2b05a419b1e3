"""The last linear layer and the loss in one: logits are made a few rows at a time and become their gradient in place.

Rows that count nothing are dropped before the product. What needs no gradient gets none computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from labo.kernels.autograd import Solve, defer_gradient, scale_gradient, weighted_sum
from labo.kernels.options import Options

# The logits that are held at a time.
CHUNK_BYTES = 2**25


@dataclass(frozen=True)
class Head:
    """The last layer: `weight` (V, D), `bias` (V,) or None."""

    weight: Tensor
    bias: Tensor | None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def total(solve: Solve, hidden: Tensor, head: Head, target: Tensor, row_weights: Tensor, options: Options) -> Tensor:
    """The sum of the row losses times their weights, (), of hidden (N, D); differentiable in hidden and head."""
    return _apply(hidden, head, target, row_weights, options, solve, False)


def rows(solve: Solve, hidden: Tensor, head: Head, target: Tensor, row_weights: Tensor, options: Options) -> Tensor:
    """The row losses times their weights, (N,); differentiable as `total` is, by solving again."""
    return _apply(hidden, head, target, row_weights, options, solve, True)


def _apply(hidden: Tensor, head: Head, *rest: Any) -> Tensor:
    tensors = (hidden, head.weight, head.bias)
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors)
    return _LinearLoss.apply(*tensors, *rest, wanted)


def solve_linear(
    solve: Solve,
    hidden: Tensor,
    head: Head,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Gradients]:
    """The losses (N,) times their weights, and the gradients of their sum in hidden, weight and bias where needed."""
    needs_hidden, needs_weight, needs_bias = needs
    losses = torch.zeros_like(row_weights)
    made = _Made(
        torch.zeros_like(hidden) if needs_hidden else None,
        torch.zeros_like(head.weight, dtype=row_weights.dtype) if needs_weight else None,
        torch.zeros_like(head.bias, dtype=row_weights.dtype) if needs_bias and head.bias is not None else None,
    )
    counting = torch.nonzero(row_weights).squeeze(-1)
    step = max(1, CHUNK_BYTES // max(1, head.weight.shape[0] * hidden.element_size()))
    for at in counting.split(step) if len(counting) else ():
        # All rows in their order are a slice, which copies nothing.
        part = slice(int(at[0]), int(at[-1]) + 1) if len(at) == int(at[-1] - at[0]) + 1 else at
        chunk = hidden[part]
        logits = linear(chunk, head.weight, head.bias)
        some = getattr(solve, "of", None)  # a solver that knows its rows
        losses[part], gradient = (solve if some is None else some(part))(
            logits, target[part], row_weights[part], options.of(part), gradient=any(needs), out=logits
        )
        if gradient is not None:
            made.add(part, chunk, gradient, head.weight)
        del logits, gradient  # before the next chunk is made, not after
    return losses, made.of(head)


@dataclass(frozen=True)
class _Made:
    """Gradients as they grow; those of the head in working precision, rounded once at the end."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def add(self, part: Any, chunk: Tensor, gradient: Tensor, weight: Tensor) -> None:
        if self.hidden is not None:
            self.hidden[part] = gradient @ weight
        if self.weight is not None:
            if gradient.dtype == self.weight.dtype:
                self.weight.addmm_(gradient.T, chunk)
            else:
                self.weight.add_(gradient.T @ chunk)
        if self.bias is not None:
            self.bias.add_(gradient.sum(0, dtype=self.bias.dtype))

    def of(self, head: Head) -> Gradients:
        weight = None if self.weight is None else self.weight.to(head.weight.dtype)
        bias = None if self.bias is None or head.bias is None else self.bias.to(head.bias.dtype)
        return self.hidden, weight, bias


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        hidden, weight, bias, target, row_weights, options, solve, per_row, wanted = arguments
        needs = (False, False, False) if per_row or defer_gradient(hidden) else wanted
        head = Head(weight.detach(), None if bias is None else bias.detach())
        losses, ctx.made = solve_linear(solve, hidden.detach(), head, target, row_weights, options, needs)
        ctx.save_for_backward(hidden, weight, bias, target, row_weights)
        ctx.options, ctx.solve, ctx.per_row, ctx.wanted = options, solve, per_row, wanted
        return losses if per_row else losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, row_weights = ctx.saved_tensors
        (grad,) = grads
        rest = (None,) * 6
        if torch.is_grad_enabled():
            inputs = [tensor for tensor, needed in zip((hidden, weight, bias), ctx.wanted, strict=True) if needed]
            # What a row that counts nothing holds, such as NaN, is in no product.
            logits = linear(torch.where((row_weights != 0).unsqueeze(-1), hidden, 0.0), weight, bias)
            found = iter(_again(inputs, logits, target, row_weights, grad, ctx.options, ctx.solve))
            return *(next(found) if needed else None for needed in ctx.wanted), *rest
        made, ctx.made = ctx.made, None
        if ctx.per_row or defer_gradient(hidden) or made is None:
            head = Head(weight, bias)
            _, made = solve_linear(ctx.solve, hidden, head, target, row_weights * grad, ctx.options, ctx.wanted)
        else:
            made = tuple(None if value is None else scale_gradient(value, grad) for value in made)
        return *made, *rest


def _again(
    inputs: list[Tensor],
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    grad: Tensor,
    options: Options,
    solve: Solve,
) -> tuple[Tensor, ...]:
    """The gradients by the reference implementation, differentiable."""
    total = weighted_sum(logits, target, row_weights, grad, options, getattr(solve, "row_losses", None))
    return torch.autograd.grad(total, inputs, create_graph=True)
