"""Implementations of the loss, and the one place that chooses among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad

from labo import checks
from labo.errors import UserError, unknown
from labo.kernels.options import Options

if TYPE_CHECKING:
    from labo.kernels.autograd import Solve

IMPLEMENTATIONS = ("reference", "blocked", "triton")


def implementations() -> tuple[str, ...]:
    """The implementations that this machine can run, as `impl=` takes them.

    Example:
        >>> "reference" in implementations()
        True
    """
    from labo.kernels import triton

    return tuple(name for name in IMPLEMENTATIONS if name != "triton" or triton.refusal() is None)


def check(impl: str) -> None:
    """Refuse a name that no implementation has, and one that this machine cannot run."""
    if impl == "triton":
        from labo.kernels import triton

        if reason := triton.refusal():
            raise UserError(f"impl='triton' cannot run here: {reason}.")
    elif impl != "auto" and impl not in IMPLEMENTATIONS:
        raise unknown("impl", impl, ("auto", *IMPLEMENTATIONS))


def choose(impl: str, inputs: tuple[Tensor, ...], target: Tensor, options: Options) -> Solve | None:
    """The fused implementation for these inputs (the logits, or a layer) and options; None for the reference.

    "auto" takes the fastest that can do what is asked. The reference alone gives gradients in alpha, beta and the
    prior, and runs under torch.func, forward-mode differentiation and torch.compile.

    Raises:
        ValueError: `impl` cannot do what is asked; the message names what it is.
    """
    name = ("blocked" if inputs[0].device.type == "cpu" else "triton") if impl == "auto" else impl
    if name == "reference":
        return None
    obstacle = _obstacle(inputs, options) or (_no_block if name == "blocked" else _no_triton)(inputs, target, options)
    if obstacle and impl != "auto":
        raise UserError(f"impl='{impl}' {obstacle}; take impl='reference'.")
    if obstacle:
        return None
    from labo.kernels import blocked, triton

    return blocked.solve if name == "blocked" else triton.solve


def _obstacle(inputs: tuple[Tensor, ...], options: Options) -> str:
    """Why no fused implementation can be taken; empty where one can."""
    if torch.compiler.is_compiling() or checks.transformed() or checks.traced(*inputs):
        return "cannot be traced"
    for tensor in inputs:
        if forward_ad.unpack_dual(tensor).tangent is not None:
            return "has no forward-mode derivative"
    if torch.is_grad_enabled():
        for name in ("alpha", "beta", "prior"):
            option = getattr(options, name)
            if isinstance(option, Tensor) and option.requires_grad:
                return f"gives no gradient in `{name}`"
    return ""


def _no_block(inputs: tuple[Tensor, ...], target: Tensor, options: Options) -> str:
    elsewhere = [tensor.device for tensor in inputs if tensor.device.type != "cpu"]
    return f"runs on CPU tensors, but got some on {elsewhere[0]}" if elsewhere else ""


def _no_triton(inputs: tuple[Tensor, ...], target: Tensor, options: Options) -> str:
    from labo.kernels import triton

    if reason := triton.refusal():
        return f"cannot run here: {reason}"
    if inputs[0].dtype not in triton.DTYPES:
        return f"takes float32, bfloat16 and float16, but got {inputs[0].dtype}"
    if inputs[0].device.type != "cuda" and not triton.interpreted():
        return f"runs on CUDA tensors, but got some on {inputs[0].device}"
    if target.dim() == 2:
        return "takes class indices, not probabilities"
    if options.value != "inner":
        return "reports the inner value, not the plug-in value"
    if options.prior is not None and options.prior.dim() == 2:
        return "takes one prior for all rows"
    return ""
