"""Fused implementations under autograd: the gradient is made in the forward pass, where it will be needed.

A fused implementation is a function `solve(logits, target, shares, options, gradient=…)` as in blocked.py. It gives no
gradient but the logits'. A second backward makes the first one's gradient again, and a backward that is itself to be
differentiated goes through the reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labo.kernels import reference
from labo.kernels.options import Options

# One that has a loss of its own, and not LABO's with `options`, has a method row_losses(logits, class weights) for the
# reference formulas; one that knows more of its rows has of(part), the solver of some of them.
Solve = Callable[..., tuple[Tensor, Tensor | None]]


def total(solve: Solve, logits: Tensor, target: Tensor, shares: Tensor, options: Options) -> Tensor:
    """The sum of the row losses times their shares, (); differentiable in the logits."""
    gradient = torch.is_grad_enabled() and logits.requires_grad and not waits(logits)
    return _Total.apply(logits, target, shares, options, solve, gradient)


def rows(solve: Solve, logits: Tensor, target: Tensor, shares: Tensor, options: Options) -> Tensor:
    """The row losses times their shares, (N,); differentiable in the logits, by solving again."""
    return _Rows.apply(logits, target, shares, options, solve)


def waits(tensor: Tensor) -> bool:
    """Whether its gradient waits for the backward pass: float16 rounds small ones to 0 before a loss scale comes."""
    return tensor.dtype == torch.float16


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, shares: Tensor, options: Options, solve: Solve, gradient: bool
    ) -> Tensor:
        losses, ctx.made = solve(logits.detach(), target, shares, options, gradient=gradient)
        # By reference: the logits are there anyway, and a second backward needs them.
        ctx.save_for_backward(logits, target, shares)
        ctx.options, ctx.solve = options, solve
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, shares = ctx.saved_tensors
        (grad,) = grads
        if torch.is_grad_enabled():
            return _again(logits, target, shares, grad, ctx.options, ctx.solve), None, None, None, None, None
        made, ctx.made = ctx.made, None
        if made is None:
            made = ctx.solve(logits, target, shares * grad, ctx.options, gradient=True)[1]
        elif grad.device.type != "cpu" or grad.item() != 1.0:
            made.mul_(grad)
        return made, None, None, None, None, None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, shares: Tensor, options: Options, solve: Solve) -> Tensor:
        ctx.save_for_backward(logits, target, shares)
        ctx.options, ctx.solve = options, solve
        return solve(logits.detach(), target, shares, options, gradient=False)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, shares = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _again(logits, target, shares, grads[0], ctx.options, ctx.solve), None, None, None, None
        return ctx.solve(logits, target, shares * grads[0], ctx.options, gradient=True)[1], None, None, None, None


def _again(logits: Tensor, target: Tensor, shares: Tensor, grad: Tensor, options: Options, solve: Solve) -> Tensor:
    """The gradient by the reference implementation, differentiable in the logits and in `grad`."""
    own = getattr(solve, "row_losses", None)
    total = weighed(logits, target, shares, grad, options, own)
    (gradient,) = torch.autograd.grad(total, logits, create_graph=True)
    return gradient


def weighed(
    logits: Tensor,
    target: Tensor,
    shares: Tensor,
    grad: Tensor,
    options: Options,
    own: Callable[[Tensor, Tensor | None], Tensor] | None = None,
) -> Tensor:
    """The sum of the row losses times shares and `grad`, by the reference implementation; rows of share 0 left out.

    `own` gives the losses of a solver that has formulas of its own.
    """
    clean = torch.where((shares != 0).unsqueeze(-1), logits, 0.0)
    losses = reference.row_losses(clean, target, **options.named()) if own is None else own(clean, options.weight)
    return torch.where(shares == 0, 0.0, shares * grad.to(losses.dtype) * losses).sum()
