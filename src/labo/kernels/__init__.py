"""Implementations of the loss, and the choice among them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labo import checks
from labo.errors import UserError, unknown
from labo.kernels.options import Options
from labo.kernels.statistics import NOTHING, Wanted

if TYPE_CHECKING:
    from labo.kernels.autograd import Solve

Sources = Mapping[str, Tensor | None]
_NO_SOURCES: Sources = MappingProxyType({})

IMPLEMENTATIONS = ("reference", "blocked", "numba", "triton")


def implementations() -> tuple[str, ...]:
    """The implementations that this machine can run, by the names that `impl=` accepts.

    Example:
        >>> "reference" in implementations()
        True
    """
    return tuple(name for name in IMPLEMENTATIONS if unavailable_reason(name) is None)


def unavailable_reason(name: str) -> str | None:
    """Why this machine cannot run an implementation; None if it can."""
    from labo.kernels import numba, triton

    optional = {"numba": numba.unavailable_reason, "triton": triton.unavailable_reason}
    return optional[name]() if name in optional else None


def check(impl: str) -> None:
    """Raise an error for an unknown implementation, or one that this machine cannot run."""
    if impl == "auto":
        return
    if impl not in IMPLEMENTATIONS:
        raise unknown("impl", impl, ("auto", *IMPLEMENTATIONS))
    if torch.compiler.is_compiling():  # the operator checks when it runs
        return
    if reason := unavailable_reason(impl):
        raise UserError(f"impl='{impl}' cannot run here: {reason}.")


def choose(
    impl: str, inputs: tuple[Tensor, ...], target: Tensor, options: Options, weights: Sources = _NO_SOURCES
) -> Solve | None:
    """The fused implementation for these inputs (the logits, or a layer) and options; None for the reference.

    `weights` are the tensors that the weights of rows are computed from, by the names of the arguments.

    "auto" chooses the fastest that supports these inputs and options. Only the reference has gradients in anything else
    than `inputs`, and runs under torch.func and forward-mode differentiation. On a GPU it is many times slower than the
    kernels, so "auto" warns once per reason when it falls back to it.

    Raises:
        ValueError: `impl` does not support the inputs or options; the message says why.
    """
    if impl == "reference":
        return None
    reason, fallback, name = unsupported_by_all(inputs, target, options, weights), "reference", impl
    if not reason:
        name = _fastest(inputs[0]) if impl == "auto" else impl
        reason, fallback = _SUPPORT_CHECKS[name](inputs, target, options)
    if reason and impl != "auto":
        raise UserError(f"impl='{impl}' {reason}; use impl='{fallback}'.")
    if reason and fallback == "reference":
        if name == "triton":
            _warn_of_reference(reason)
        return None
    return _module(fallback if reason else name).solve


@cache
def _module(name: str) -> Any:
    return import_module(f"labo.kernels.{name}")


def as_operator(impl: str, target: Tensor, options: Options, weights: Sources, wanted: Wanted = NOTHING) -> bool:
    """Whether a compiled graph contains the loss as one operator, which chooses the implementation when it runs."""
    return (
        torch.compiler.is_compiling()
        and impl != "reference"
        and not wanted.differentiable
        and not checks.transformed()
        and not _first_with_gradient(_constants(target, options, weights))
    )


def _fastest(tensor: Tensor) -> str:
    if tensor.device.type != "cpu":
        return "triton"
    return "numba" if unavailable_reason("numba") is None else "blocked"


@cache
def _warn_of_reference(reason: str) -> None:
    warnings.warn(
        f"The loss is computed by impl='reference', which is many times slower here: impl='triton' {reason}.",
        stacklevel=2,
    )


def unsupported_by_all(
    inputs: tuple[Tensor, ...], target: Tensor, options: Options, weights: Sources = _NO_SOURCES
) -> str:
    """Why no fused implementation supports these inputs and options; empty if one may."""
    constants = _constants(target, options, weights)
    if name := _first_with_gradient(constants):
        return f"gives no gradient in `{name}`"
    tensors = (*inputs, *constants.values())
    if torch.compiler.is_compiling() or checks.transformed() or checks.traced(*tensors):
        return "cannot be traced"
    return "has no forward-mode derivative" if checks.forward_mode(*tensors) else ""


def _constants(target: Tensor, options: Options, weights: Sources) -> dict[str, Tensor]:
    """All tensors in which a fused implementation gives no gradient, with their names as arguments of the loss.

    These are the arguments of an implementation (`labo.kernels.autograd.Solve`) beside the logits.
    """
    named = {**vars(options), "target": target, **weights}  # its class weights and those of the sources are the same
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def _first_with_gradient(constants: dict[str, Tensor]) -> str:
    """The name of the first of these inputs that requires a gradient; empty if none does."""
    if torch.is_grad_enabled():
        for name, value in constants.items():
            if value.requires_grad:
                return name
    return ""


def _blocked_unsupported_reason(inputs: tuple[Tensor, ...], target: Tensor, options: Options) -> tuple[str, str]:
    """Why this implementation does not support the inputs (empty if it does), and which one does."""
    devices = [tensor.device for tensor in inputs if tensor.device.type != "cpu"]
    return (f"runs on CPU tensors, but got some on {devices[0]}" if devices else ""), "reference"


def _numba_unsupported_reason(inputs: tuple[Tensor, ...], target: Tensor, options: Options) -> tuple[str, str]:
    from labo.kernels import blocked, numba

    reason, _ = _blocked_unsupported_reason(inputs, target, options)
    if reason:
        return reason, "reference"
    if inputs[0].dtype not in numba.DTYPES:
        return f"takes float32 and bfloat16, but got {inputs[0].dtype}", "blocked"
    if target.dim() == 2:
        return "takes class indices, not probabilities", "blocked"
    if options.softcap is not None:
        return "does not take `softcap`", "blocked"
    if not blocked.is_supported(options):
        return (
            f"takes alpha * beta up to {blocked.MAX_FACTOR:g} (or beta = inf), one prior with mass on every class "
            "(or beta = inf) and the inner value",
            "blocked",
        )
    return "", ""


def _triton_unsupported_reason(inputs: tuple[Tensor, ...], target: Tensor, options: Options) -> tuple[str, str]:
    return _triton_reason(inputs, target, options), "reference"


_SUPPORT_CHECKS = {
    "blocked": _blocked_unsupported_reason,
    "numba": _numba_unsupported_reason,
    "triton": _triton_unsupported_reason,
}


def _triton_reason(inputs: tuple[Tensor, ...], target: Tensor, options: Options) -> str:
    from labo.kernels import triton

    if reason := triton.unavailable_reason():
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
