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
from labo.kernels.statistics import COUNT, NOTHING, Wanted, new_buffer


def loss(
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    impl: str,
    *,
    total: bool,
    wanted: Wanted = NOTHING,
) -> tuple[Tensor, Tensor | None]:
    """The row losses (N,) times their weights, or their sum (), differentiable in the logits; and their statistics."""
    option_tensors = _as_tensors(options)
    gradient = torch.is_grad_enabled() and total and logits.requires_grad and logits.dtype != torch.float16
    arguments = (logits, target, row_weights, *option_tensors, options.value, impl, total, gradient)
    losses, _, statistics = _loss(*arguments, options.z_loss, options.softcap or 0.0, wanted.statistics)
    return losses, statistics if wanted.statistics else None


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
    wanted: Wanted = NOTHING,
) -> tuple[Tensor, Tensor | None]:
    """Like `loss`, of hidden (N, D) through the last layer; differentiable in hidden, weight and bias."""
    needs = [tensor is not None and tensor.requires_grad for tensor in (hidden, head.weight, head.bias)]
    if not (torch.is_grad_enabled() and total) or hidden.dtype == torch.float16:
        needs = [False, False, False]
    arguments = (hidden, head.weight, head.bias, target, row_weights, *_as_tensors(options), options.value, impl, total)
    chosen = (chunks.rows or 0, chunks.accumulate, needs, options.z_loss, options.softcap or 0.0, wanted.statistics)
    losses, *_, statistics = _linear(*arguments, *chosen)
    return losses, statistics if wanted.statistics else None


def _as_tensors(options: Options) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """alpha, beta, prior and weight as operator arguments: numbers become (1,) tensors on the CPU."""
    alpha, beta = (
        value.detach() if isinstance(value, Tensor) else torch.full((1,), value, dtype=torch.float64, device="cpu")
        for value in (options.alpha, options.beta)
    )
    return alpha, beta, None if options.prior is None else options.prior.detach(), options.weight


def _as_options(
    alpha: Tensor,
    beta: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    value: str,
    z_loss: float,
    softcap: float,
) -> Options:
    """The options; a softcap of 0 is none."""
    return Options(_number_or_rows(alpha), _number_or_rows(beta), prior, weight, value, z_loss, softcap or None)


def _buffer(row_weights: Tensor, wanted: bool) -> dict[str, Tensor]:
    return {"statistics": new_buffer(row_weights)} if wanted else {}


def _statistics_or_empty(buffer: dict[str, Tensor], like: Tensor) -> Tensor:
    return buffer.get("statistics", like.new_empty(0))


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
    z_loss: float = 0.0,
    softcap: float = 0.0,
    statistics: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    options = _as_options(alpha, beta, prior, weight, value, z_loss, softcap)
    solve = kernels.choose(impl, (logits,), target, options) or reference.solve
    buffer = _buffer(row_weights, statistics)
    losses, grads = solve(logits, target, row_weights, options, gradient=gradient, **buffer)
    return (losses.sum() if total else losses), _or_empty(grads, logits), _statistics_or_empty(buffer, row_weights)


def _scaled(grads: Tensor, grad: Tensor) -> Tensor:
    """The product, rounded once."""
    return (grads.to(grad.dtype) * grad).to(grads.dtype)


def _or_empty(grads: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if grads is None else grads.contiguous()


@_loss.register_fake
def _(
    logits, target, row_weights, alpha, beta, prior, weight, value, impl, total, gradient, z_loss=0.0, softcap=0.0,
    statistics=False,
):  # fmt: skip
    losses = row_weights.new_empty(()) if total else torch.empty_like(row_weights)
    return losses, logits.new_empty(logits.shape if gradient else 0), _fake_statistics(row_weights, statistics)


def _fake_statistics(row_weights: Tensor, wanted: bool) -> Tensor:
    return row_weights.new_empty((COUNT, row_weights.shape[0]) if wanted else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.value, ctx.impl, ctx.total, ctx.gradient, ctx.z_loss, ctx.softcap, _ = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, row_weights, *options, grads = ctx.saved_tensors
    if ctx.gradient:
        grad_logits = _scaled(grads, grad)
    else:
        chosen = (ctx.value, ctx.impl, ctx.total, True, ctx.z_loss, ctx.softcap)
        grad_logits = _loss(logits, target, row_weights * grad, *options, *chosen)[1]
    return grad_logits, *(None,) * 13


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
    z_loss: float = 0.0,
    softcap: float = 0.0,
    statistics: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = _as_options(alpha, beta, prior, weight, value, z_loss, softcap)
    solve = kernels.choose(impl, (hidden, head), target, options) or reference.solve
    wanted = (needs[0], needs[1], needs[2])
    chunks = Chunks(chunk_rows or None, accumulate)
    buffer = _buffer(row_weights, statistics)
    arguments = (hidden, Head(head, bias), target, row_weights, options, wanted, chunks)
    losses, grads = solve_linear(solve, *arguments, **buffer)
    first, second, third = (_or_empty(x, hidden) for x in grads)
    return (losses.sum() if total else losses), first, second, third, _statistics_or_empty(buffer, row_weights)


@_linear.register_fake
def _(
    hidden, head, bias, target, row_weights, alpha, beta, prior, weight, value, impl, total, rows, accumulate, needs,
    z_loss=0.0, softcap=0.0, statistics=False,
):  # fmt: skip
    losses = row_weights.new_empty(()) if total else torch.empty_like(row_weights)
    sources = (hidden, head, head.new_empty(head.shape[0]) if bias is None else bias)
    grads = (x.new_empty(x.shape if needed else 0) for x, needed in zip(sources, needs, strict=True))
    return losses, *grads, _fake_statistics(row_weights, statistics)


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *first, z_loss, softcap, _ = inputs
    *tensors, ctx.value, ctx.impl, ctx.total, ctx.rows, ctx.accumulate, ctx.needs = first
    ctx.logits_options = (z_loss, softcap)
    ctx.save_for_backward(*tensors, *output[1:4])


def _backward_linear(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
    grads = [grad_hidden, grad_weight, grad_bias]
    wanted = [bool(needed) for needed in ctx.needs_input_grad[:3]]
    if all(computed or not needed for computed, needed in zip(ctx.needs, wanted, strict=True)):
        grads = [_scaled(x, grad) for x in grads]
    else:
        hidden, head, bias, target, row_weights, *options = tensors
        chosen = (ctx.value, ctx.impl, ctx.total, ctx.rows, ctx.accumulate)
        weights = row_weights * grad
        grads = _linear(hidden, head, bias, target, weights, *options, *chosen, wanted, *ctx.logits_options)[1:4]
    return *(x if needed else None for x, needed in zip(grads, wanted, strict=True)), *(None,) * 15


_linear.register_autograd(_backward_linear, setup_context=_keep_linear)
