"""Fused implementations under autograd: the gradient is made in the forward pass, where it will be needed.

A fused implementation is a function `solve(logits, target, row_weights, options, gradient=…)` as in blocked.py. It
gives no gradient but the logits'. A second backward makes the first one's gradient again, and a backward that is itself
to be differentiated goes through the reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labo.kernels import reference, triton
from labo.kernels.options import Options

# One that has a loss of its own, and not LABO's with `options`, has a method row_losses(logits, class weights) for the
# reference formulas; one that knows more of its rows has of(part), the solver of some of them.
Solve = Callable[..., tuple[Tensor, Tensor | None]]

_GIVEN_AWAY = (
    "Expected one backward pass that is not itself differentiated: inplace_backward=True gave the memory of the logits "
    "to their gradient. Take inplace_backward=False."
)


def total(
    solve: Solve, logits: Tensor, target: Tensor, row_weights: Tensor, options: Options, *, inplace: bool = False
) -> Tensor:
    """The sum of the row losses times their weights, (); differentiable in the logits.

    With `inplace` the gradient is written over the logits, which then serve one backward pass.
    """
    gradient = torch.is_grad_enabled() and logits.requires_grad and not defer_gradient(logits)
    return _Total.apply(logits, target, row_weights, options, solve, gradient, inplace)


def rows(
    solve: Solve, logits: Tensor, target: Tensor, row_weights: Tensor, options: Options, *, inplace: bool = False
) -> Tensor:
    """The row losses times their weights, (N,); differentiable in the logits, by solving again; `inplace` as above."""
    return _Rows.apply(logits, target, row_weights, options, solve, inplace)


def defer_gradient(tensor: Tensor) -> bool:
    """Whether its gradient is left to the backward pass: float16 rounds small ones to 0 before a loss scale comes."""
    return tensor.dtype == torch.float16


def scale_gradient(grads: Tensor, factor: Tensor) -> Tensor:
    """Multiply `grads` by a scalar in place: no pass over them where it is 1, and no wait for a device."""
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
        else:  # by reference: the logits are there anyway, and a second backward needs them
            ctx.save_for_backward(target, row_weights, logits)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if ctx.inplace and (torch.is_grad_enabled() or (ctx.overwritten and ctx.grad_logits is None)):
            raise RuntimeError(_GIVEN_AWAY)
        _ = ctx.saved_tensors  # which refuses logits that were changed since
        grad_logits, ctx.grad_logits = ctx.grad_logits, None
        if grad_logits is not None and not torch.is_grad_enabled():
            return scale_gradient(grad_logits, grad), *(None,) * 6
        return _solved_again(ctx, grad), *(None,) * 6


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
        return _solved_again(ctx, grads[0]), *(None,) * 5


def _solved_again(ctx: Any, grad: Tensor) -> Tensor:
    """The gradient, made in the backward pass; differentiable where that is asked for."""
    if ctx.inplace and (torch.is_grad_enabled() or ctx.overwritten):
        raise RuntimeError(_GIVEN_AWAY)
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
    # Kernels write where autograd does not see it: an operation that kept the logits for its own backward must refuse.
    torch.autograd.graph.increment_version(logits)


def _differentiable(
    logits: Tensor, target: Tensor, row_weights: Tensor, grad: Tensor, options: Options, solve: Solve
) -> Tensor:
    """The gradient by the reference implementation, differentiable in the logits and in `grad`."""
    own = getattr(solve, "row_losses", None)
    total = weighted_sum(logits, target, row_weights, grad, options, own)
    (gradient,) = torch.autograd.grad(total, logits, create_graph=True)
    return gradient


def weighted_sum(
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    grad: Tensor,
    options: Options,
    own: Callable[[Tensor, Tensor | None], Tensor] | None = None,
) -> Tensor:
    """The sum of the row losses times weights and `grad`, by the reference implementation; rows of weight 0 left out.

    `own` gives the losses of a solver that has formulas of its own.
    """
    clean = torch.where((row_weights != 0).unsqueeze(-1), logits, 0.0)
    losses = reference.row_losses(clean, target, **options.named()) if own is None else own(clean, options.weight)
    return torch.where(row_weights == 0, 0.0, row_weights * grad.to(losses.dtype) * losses).sum()
