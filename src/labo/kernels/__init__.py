"""Implementations of the loss, and the one place that chooses among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from labo import checks
from labo.errors import UserError, unknown

if TYPE_CHECKING:
    from labo.kernels.autograd import Solve

IMPLEMENTATIONS = ("reference", "blocked")


def implementations() -> tuple[str, ...]:
    """The implementations that this machine can run, as `impl=` takes them.

    Example:
        >>> "reference" in implementations()
        True
    """
    return IMPLEMENTATIONS


def check(impl: str) -> None:
    """Refuse a name that no implementation has."""
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        raise unknown("impl", impl, ("auto", *IMPLEMENTATIONS))


def choose(impl: str, *inputs: Tensor, **options: Any) -> Solve | None:
    """The fused implementation to take for these inputs (the logits, or a layer) and options; None for the reference.

    "auto" takes the fastest that can do what is asked. The reference alone gives gradients in alpha, beta and the
    prior, and runs under torch.func, forward-mode differentiation and torch.compile.

    Raises:
        ValueError: `impl` cannot do what is asked; the message names what it is.
    """
    if impl == "reference":
        return None
    from labo.kernels import blocked

    obstacle = _obstacle(inputs, options)
    if obstacle and impl != "auto":
        raise UserError(f"impl='{impl}' {obstacle}; take impl='reference'.")
    return None if obstacle else blocked.solve


def _obstacle(inputs: tuple[Tensor, ...], options: dict[str, Any]) -> str:
    """Why the fused implementation for the CPU cannot be taken; empty if it can."""
    if torch.compiler.is_compiling() or checks.transformed() or checks.traced(*inputs):
        return "cannot be traced"
    for tensor in inputs:
        if tensor.device.type != "cpu":
            return f"runs on CPU tensors, but got some on {tensor.device}"
        if forward_ad.unpack_dual(tensor).tangent is not None:
            return "has no forward-mode derivative"
    if torch.is_grad_enabled():
        for name, option in options.items():
            if isinstance(option, Tensor) and option.requires_grad:
                return f"gives no gradient in `{name}`"
    return ""
