"""The fused implementations as PyTorch operators, so that torch.compile keeps them as nodes of its graph.

Each has a fake implementation (shapes and dtypes only) and a gradient. The implementation is chosen when the operator
runs; if no fused one supports the inputs, it is the reference. Called from Python the operators cost more than
autograd.py, so only compiled graphs use them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labo import kernels
from labo.kernels import reference
from labo.kernels.linear import Chunks, Head, solve_linear
from labo.kernels.options import Options


def loss(logits: Tensor, target: Tensor, row_weights: Tensor, options: Options, impl: str, *, total: bool) -> Tensor:
    """The row losses (N,) times their weights, or their sum (); differentiable in the logits."""
    option_tensors = _as_tensors(options)
    gradient = torch.is_grad_enabled() and total and logits.requires_grad and logits.dtype != torch.float16
    return _loss(logits, target, row_weights, *option_tensors, options.value, impl, total, gradient)[0]


def linear_loss(
    hidden: Tensor,
    head: Head,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    chunks: Chunks,
    impl: str,
    *,
    total: bool,
) -> Tensor:
    """Like `loss`, of hidden (N, D) through the last layer; differentiable in hidden, weight and bias."""
    needs = [tensor is not None and tensor.requires_grad for tensor in (hidden, head.weight, head.bias)]
    if not (torch.is_grad_enabled() and total) or hidden.dtype == torch.float16:
        needs = [False, False, False]
    arguments = (hidden, head.weight, head.bias, target, row_weights, *_as_tensors(options), options.value, impl, total)
    return _linear(*arguments, chunks.rows or 0, chunks.accumulate, needs)[0]


def _as_tensors(options: Options) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """alpha, beta, prior and weight as operator arguments: numbers become (1,) tensors on the CPU."""
    alpha, beta = (
        value.detach() if isinstance(value, Tensor) else torch.full((1,), value, dtype=torch.float64, device="cpu")
        for value in (options.alpha, options.beta)
    )
    return alpha, beta, None if options.prior is None else options.prior.detach(), options.weight


def _as_options(alpha: Tensor, beta: Tensor, prior: Tensor | None, weight: Tensor | None, value: str) -> Options:
    return Options(_number_or_rows(alpha), _number_or_rows(beta), prior, weight, value)


def _number_or_rows(value: Tensor) -> float | Tensor:
    if value.numel() != 1:
        return value
    return value.item() if value.device.type == "cpu" else value.squeeze()


@torch.library.custom_op("labo::loss", mutates_args=())
def _loss(
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    alpha: Tensor,
    beta: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    value: str,
    impl: str,
    total: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    options = _as_options(alpha, beta, prior, weight, value)
    solve = kernels.choose(impl, (logits,), target, options) or reference.solve
    losses, grads = solve(logits, target, row_weights, options, gradient=gradient)
    return (losses.sum() if total else losses), _or_empty(grads, logits)


def _scaled(grads: Tensor, grad: Tensor) -> Tensor:
    """The product, rounded once."""
    return (grads.to(grad.dtype) * grad).to(grads.dtype)


def _or_empty(grads: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if grads is None else grads.contiguous()


@_loss.register_fake
def _(logits, target, row_weights, alpha, beta, prior, weight, value, impl, total, gradient):
    losses = row_weights.new_empty(()) if total else torch.empty_like(row_weights)
    return losses, logits.new_empty(logits.shape if gradient else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.value, ctx.impl, ctx.total, ctx.gradient = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, row_weights, *options, grads = ctx.saved_tensors
    if ctx.gradient:
        grad_logits = _scaled(grads, grad)
    else:
        grad_logits = _loss(logits, target, row_weights * grad, *options, ctx.value, ctx.impl, ctx.total, True)[1]
    return grad_logits, *(None,) * 10


_loss.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("labo::linear_loss", mutates_args=())
def _linear(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_weights: Tensor,
    alpha: Tensor,
    beta: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    value: str,
    impl: str,
    total: bool,
    chunk_rows: int,
    accumulate: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = _as_options(alpha, beta, prior, weight, value)
    solve = kernels.choose(impl, (hidden, head), target, options) or reference.solve
    wanted = (needs[0], needs[1], needs[2])
    chunks = Chunks(chunk_rows or None, accumulate)
    losses, grads = solve_linear(solve, hidden, Head(head, bias), target, row_weights, options, wanted, chunks)
    gradients = [_or_empty(x, hidden) for x in grads]
    return (losses.sum() if total else losses), gradients[0], gradients[1], gradients[2]


@_linear.register_fake
def _(hidden, head, bias, target, row_weights, alpha, beta, prior, weight, value, impl, total, rows, accumulate, needs):
    losses = row_weights.new_empty(()) if total else torch.empty_like(row_weights)
    sources = (hidden, head, head.new_empty(head.shape[0]) if bias is None else bias)
    return losses, *(x.new_empty(x.shape if needed else 0) for x, needed in zip(sources, needs, strict=True))


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.value, ctx.impl, ctx.total, ctx.rows, ctx.accumulate, ctx.needs = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _backward_linear(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
    grads = [grad_hidden, grad_weight, grad_bias]
    wanted = [bool(needed) for needed in ctx.needs_input_grad[:3]]
    if all(computed or not needed for computed, needed in zip(ctx.needs, wanted, strict=True)):
        grads = [_scaled(x, grad) for x in grads]
    else:
        hidden, head, bias, target, row_weights, *options = tensors
        chosen = (ctx.value, ctx.impl, ctx.total, ctx.rows, ctx.accumulate)
        grads = _linear(hidden, head, bias, target, row_weights * grad, *options, *chosen, wanted)[1:]
    return *(x if needed else None for x, needed in zip(grads, wanted, strict=True)), *(None,) * 12


_linear.register_autograd(_backward_linear, setup_context=_keep_linear)
