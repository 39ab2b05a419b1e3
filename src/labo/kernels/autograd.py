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
from labo.kernels.statistics import ENTROPY, NOTHING, StatisticsGradient, Wanted, new_buffer, row_gradients

# A solver whose loss is not LABO's with `options` has a method row_losses(logits, class weights) with the reference
# formulas. A solver that holds data per row has a method of(part), the solver for a subset of the rows.
Solve = Callable[..., tuple[Tensor, Tensor | None]]

_LOGITS_OVERWRITTEN = (
    "Expected a single backward pass that is not itself differentiated: with inplace_backward=True the gradient "
    "overwrites the logits. Use inplace_backward=False."
)


def total(
    solve: Solve,
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    *,
    inplace: bool = False,
    wanted: Wanted = NOTHING,
) -> tuple[Tensor, Tensor | None]:
    """The sum of the row losses times their weights, (), differentiable in the logits; and their statistics (5, N).

    With `inplace` the gradient overwrites the logits, which allows only one backward pass.
    """
    gradient = torch.is_grad_enabled() and logits.requires_grad and not defer_gradient(logits)
    result = _Total.apply(logits, target, row_weights, options, solve, gradient, inplace, wanted)
    return result if wanted.statistics else (result, None)


def rows(
    solve: Solve,
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    *,
    inplace: bool = False,
    wanted: Wanted = NOTHING,
) -> tuple[Tensor, Tensor | None]:
    """Like `total`, with the row losses times their weights, (N,); their gradient is computed by solving again."""
    result = _Rows.apply(logits, target, row_weights, options, solve, inplace, wanted)
    return result if wanted.statistics else (result, None)


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
        wanted: Wanted,
    ) -> Any:
        values, overwritten = logits.detach(), inplace and gradient
        buffers, statistics = buffers_for(ctx, row_weights, wanted)
        if overwritten:
            buffers["out"] = values
        losses, ctx.grad_logits = solve(values, target, row_weights, options, gradient=gradient, **buffers)
        ctx.options, ctx.solve, ctx.inplace, ctx.overwritten = options, solve, inplace, overwritten
        if overwritten:
            _mark_overwritten(logits)
            ctx.save_for_backward(target, row_weights)
        else:  # saved by reference, at no cost in memory; a second backward pass needs them
            ctx.save_for_backward(target, row_weights, logits)
        return losses.sum() if statistics is None else (losses.sum(), statistics)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, grad_statistics = grads[0], grads[1] if ctx.differentiable else None
        if ctx.inplace and (torch.is_grad_enabled() or (ctx.overwritten and ctx.grad_logits is None)):
            raise RuntimeError(_LOGITS_OVERWRITTEN)
        grad_logits, ctx.grad_logits = ctx.grad_logits, None
        # Without the saved tensors, whose use would raise an error if the logits were modified since the loss.
        if grad_logits is not None and not torch.is_grad_enabled():
            grad_logits = scale_gradient(grad_logits, grad)
            if grad_statistics is not None:
                target, row_weights, logits = ctx.saved_tensors
                grad_logits = grad_logits + _of_statistics(ctx, logits, target, row_weights, grad_statistics)
            return grad_logits, *(None,) * 7
        return _solve_in_backward(ctx, grad, grad_statistics), *(None,) * 7


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        row_weights: Tensor,
        options: Options,
        solve: Solve,
        inplace: bool,
        wanted: Wanted,
    ) -> Any:
        buffers, statistics = buffers_for(ctx, row_weights, wanted)
        ctx.save_for_backward(target, row_weights, logits)
        ctx.options, ctx.solve, ctx.inplace, ctx.overwritten = options, solve, inplace, False
        losses = solve(logits.detach(), target, row_weights, options, gradient=False, **buffers)[0]
        return losses if statistics is None else (losses, statistics)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _solve_in_backward(ctx, grads[0], grads[1] if ctx.differentiable else None), *(None,) * 6


def buffers_for(ctx: Any, row_weights: Tensor, wanted: Wanted) -> tuple[dict[str, Tensor], Tensor | None]:
    """(arguments of a solver, the buffer of statistics among them), if they are wanted."""
    ctx.differentiable = wanted.differentiable
    if not wanted.statistics:
        return {}, None
    statistics = new_buffer(row_weights)
    if not wanted.differentiable:
        ctx.mark_non_differentiable(statistics)
    return {"statistics": statistics}, statistics


def _of_statistics(ctx: Any, logits: Tensor, target: Tensor, row_weights: Tensor, grad_statistics: Tensor) -> Tensor:
    """The gradient in the logits through the statistics."""
    solve = StatisticsGradient(ctx.solve, *row_gradients(grad_statistics, row_weights))
    grad_logits = solve(logits.detach(), target, row_weights, ctx.options, gradient=True)[1]
    assert grad_logits is not None
    return grad_logits


def _solve_in_backward(ctx: Any, grad: Tensor, grad_statistics: Tensor | None) -> Tensor:
    """The gradient, computed in the backward pass; differentiable with create_graph=True."""
    if ctx.inplace and (torch.is_grad_enabled() or ctx.overwritten):
        raise RuntimeError(_LOGITS_OVERWRITTEN)
    target, row_weights, logits = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _differentiable(logits, target, row_weights, grad, ctx.options, ctx.solve, grad_statistics)
    values = logits.detach()
    out = {"out": values} if ctx.inplace else {}
    grad_logits = ctx.solve(values, target, row_weights * grad, ctx.options, gradient=True, **out)[1]
    if grad_statistics is not None:
        grad_logits = grad_logits + _of_statistics(ctx, values, target, row_weights, grad_statistics)
    if ctx.inplace:
        ctx.overwritten = True
        _mark_overwritten(logits)
    return grad_logits


def _mark_overwritten(logits: Tensor) -> None:
    # Autograd does not see the writes of kernels; an operation that saved the logits for its backward must raise an
    # error.
    torch.autograd.graph.increment_version(logits)


def _differentiable(
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    grad: Tensor,
    options: Options,
    solve: Solve,
    grad_statistics: Tensor | None,
) -> Tensor:
    """The gradient by the reference implementation, differentiable in the logits and in the gradients from above."""
    row_losses = getattr(solve, "row_losses", None)
    # A view, because the gradient from above may itself depend on the logits, and is a constant here.
    logits = logits.view_as(logits)
    total = weighted_sum(logits, target, row_weights, grad, options, row_losses, grad_statistics)
    (gradient,) = torch.autograd.grad(total, logits, create_graph=True)
    return gradient


def weighted_sum(
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    grad: Tensor,
    options: Options,
    row_losses: Callable[[Tensor, Tensor | None], Tensor] | None = None,
    grad_statistics: Tensor | None = None,
) -> Tensor:
    """The sum of the row losses times weights and `grad`, by the reference implementation; skips rows of weight 0.

    `row_losses` computes the losses for solvers whose loss is not that of `options`; `grad_statistics` (5, N) adds nll
    and logsumexp times their gradients.
    """
    clean = torch.where((row_weights != 0).unsqueeze(-1), logits, 0.0)
    if row_losses is None:
        losses = reference.row_losses(clean, target, **options.named())
    else:
        losses = row_losses(clean, options.weight)
    total = torch.where(row_weights == 0, 0.0, row_weights * grad.to(losses.dtype) * losses).sum()
    if grad_statistics is None:
        return total
    statistics = reference.statistics(clean, target, options, differentiable=True)
    terms = torch.stack(row_gradients(grad_statistics, row_weights)) * statistics[:ENTROPY]
    return total + torch.where(row_weights == 0, 0.0, terms).sum()
