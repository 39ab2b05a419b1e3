"""Fused implementations under autograd: the forward pass also computes the gradient, if it will be needed.

A fused implementation is a function `solve(logits, target, row_weights, options, gradient=…)` as in blocked.py. It has
a gradient only in the logits. A second backward pass recomputes the gradient, and a backward pass that is
differentiated itself uses the reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labo.kernels import reference, triton
from labo.kernels.options import Options

# A solver whose loss is not LABO's with `options` has a method row_losses(logits, class weights) with the reference
# formulas. A solver that holds data per row has a method of(part), the solver for a subset of the rows.
Solve = Callable[..., tuple[Tensor, Tensor | None]]

_LOGITS_OVERWRITTEN = (
    "Expected a single backward pass that is not itself differentiated: with inplace_backward=True the gradient "
    "overwrites the logits. Use inplace_backward=False."
)


def total(
    solve: Solve, logits: Tensor, target: Tensor, row_weights: Tensor, options: Options, *, inplace: bool = False
) -> Tensor:
    """The sum of the row losses times their weights, (); differentiable in the logits.

    With `inplace` the gradient overwrites the logits, which allows only one backward pass.
    """
    gradient = torch.is_grad_enabled() and logits.requires_grad and not defer_gradient(logits)
    return _Total.apply(logits, target, row_weights, options, solve, gradient, inplace)


def rows(
    solve: Solve, logits: Tensor, target: Tensor, row_weights: Tensor, options: Options, *, inplace: bool = False
) -> Tensor:
    """The row losses times their weights, (N,); differentiable in the logits, by solving again; `inplace` as above."""
    return _Rows.apply(logits, target, row_weights, options, solve, inplace)


def defer_gradient(tensor: Tensor) -> bool:
    """Whether to compute the gradient in the backward pass: float16 rounds small values to 0 before loss scaling."""
    return tensor.dtype == torch.float16


def scale_gradient(grads: Tensor, factor: Tensor) -> Tensor:
    """Multiply `grads` by a scalar in place, without a pass if it is 1, and without device synchronization."""
    if factor.device.type == "cpu":
        return grads if factor.item() == 1.0 else grads.mul_(factor)
    fits = grads.device.type == "cuda" and grads.dtype in triton.DTYPES and grads.is_contiguous()
    if fits and triton.unavailable_reason() is None:
        return triton.scale_gradient(grads, factor)
    return grads.mul_(factor)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        row_weights: Tensor,
        options: Options,
        solve: Solve,
        gradient: bool,
        inplace: bool,
    ) -> Tensor:
        values, overwritten = logits.detach(), inplace and gradient
        out = {"out": values} if overwritten else {}
        losses, ctx.grad_logits = solve(values, target, row_weights, options, gradient=gradient, **out)
        ctx.options, ctx.solve, ctx.inplace, ctx.overwritten = options, solve, inplace, overwritten
        if overwritten:
            _mark_overwritten(logits)
            ctx.save_for_backward(target, row_weights)
        else:  # saved by reference, at no cost in memory; a second backward pass needs them
            ctx.save_for_backward(target, row_weights, logits)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if ctx.inplace and (torch.is_grad_enabled() or (ctx.overwritten and ctx.grad_logits is None)):
            raise RuntimeError(_LOGITS_OVERWRITTEN)
        grad_logits, ctx.grad_logits = ctx.grad_logits, None
        # Without the saved tensors, whose use would raise an error if the logits were modified since the loss.
        if grad_logits is not None and not torch.is_grad_enabled():
            return scale_gradient(grad_logits, grad), *(None,) * 6
        return _solve_in_backward(ctx, grad), *(None,) * 6


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, row_weights: Tensor, options: Options, solve: Solve, inplace: bool
    ) -> Tensor:
        ctx.save_for_backward(target, row_weights, logits)
        ctx.options, ctx.solve, ctx.inplace, ctx.overwritten = options, solve, inplace, False
        return solve(logits.detach(), target, row_weights, options, gradient=False)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _solve_in_backward(ctx, grads[0]), *(None,) * 5


def _solve_in_backward(ctx: Any, grad: Tensor) -> Tensor:
    """The gradient, computed in the backward pass; differentiable with create_graph=True."""
    if ctx.inplace and (torch.is_grad_enabled() or ctx.overwritten):
        raise RuntimeError(_LOGITS_OVERWRITTEN)
    target, row_weights, logits = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _differentiable(logits, target, row_weights, grad, ctx.options, ctx.solve)
    values = logits.detach()
    out = {"out": values} if ctx.inplace else {}
    grad_logits = ctx.solve(values, target, row_weights * grad, ctx.options, gradient=True, **out)[1]
    if ctx.inplace:
        ctx.overwritten = True
        _mark_overwritten(logits)
    return grad_logits


def _mark_overwritten(logits: Tensor) -> None:
    # Autograd does not see the writes of kernels; an operation that saved the logits for its backward must raise an
    # error.
    torch.autograd.graph.increment_version(logits)


def _differentiable(
    logits: Tensor, target: Tensor, row_weights: Tensor, grad: Tensor, options: Options, solve: Solve
) -> Tensor:
    """The gradient by the reference implementation, differentiable in the logits and in `grad`."""
    row_losses = getattr(solve, "row_losses", None)
    total = weighted_sum(logits, target, row_weights, grad, options, row_losses)
    (gradient,) = torch.autograd.grad(total, logits, create_graph=True)
    return gradient


def weighted_sum(
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    grad: Tensor,
    options: Options,
    row_losses: Callable[[Tensor, Tensor | None], Tensor] | None = None,
) -> Tensor:
    """The sum of the row losses times weights and `grad`, by the reference implementation; skips rows of weight 0.

    `row_losses` computes the losses for solvers whose loss is not that of `options`.
    """
    clean = torch.where((row_weights != 0).unsqueeze(-1), logits, 0.0)
    if row_losses is None:
        losses = reference.row_losses(clean, target, **options.named())
    else:
        losses = row_losses(clean, options.weight)
    return torch.where(row_weights == 0, 0.0, row_weights * grad.to(losses.dtype) * losses).sum()
