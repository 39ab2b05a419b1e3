"""What arguments of the losses must be. Each check names the argument, what was expected and what came.

Checks of values cost a synchronisation on an accelerator: they run eagerly on CPU tensors, become asynchronous
assertions on other devices, and are left out while a graph is being traced or transformed.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from labo.errors import UserError

# Names that torch keeps private and has no public ones for.
_functorch: Any = vars(torch._C)["_functorch"]
_transforms_active: Any = vars(torch._C)["_are_functorch_transforms_active"]
_assert_async: Any = vars(torch)["_assert_async"]

# The class index of targets that count for nothing, as PyTorch and Transformers have it.
IGNORE_INDEX = -100

_PRIOR_SLACK = {torch.float64: 1e-6, torch.float32: 1e-4}


def transformed() -> bool:
    """Whether a torch.func transform is running."""
    return _transforms_active()


def traced(*tensors: Tensor) -> bool:
    """Whether a graph is being traced or transformed, so that no value can be looked at."""
    if torch.compiler.is_compiling():
        return True
    return any(
        _functorch.is_functorch_wrapped_tensor(t) or t.device.type == "meta" or isinstance(t, FakeTensor)
        for t in tensors
    )


def plain(tensor: Tensor) -> bool:
    """Whether a tensor's values can be looked at and nothing but backward differentiation is asked for."""
    return not traced(tensor) and not transformed() and forward_ad.unpack_dual(tensor).tangent is None


def require(condition: Tensor, message: str, *sources: Tensor) -> None:
    """Refuse where `condition` (a bool tensor made from `sources`) is not true everywhere."""
    if condition.device.type == "cpu":
        if not bool(condition.all()):
            raise ValueError(message)
    else:
        _assert_async(condition.all(), message)


def _seen(tensor: Tensor) -> str:
    return "NaN" if bool(tensor.isnan().any()) else f"{tensor.min().item():g} to {tensor.max().item():g}"


def _in_range(name: str, value: float | Tensor, expected: str, low: float, high: float, open_low: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"Expected argument `{name}` to be a float or a tensor, but got {type(value).__name__}.")
    if not isinstance(value, Tensor):
        if not (low < value if open_low else low <= value) or not value <= high:
            raise ValueError(f"Expected argument `{name}` to be {expected}, but got {value}.")
        return
    if value.dtype.is_complex or value.dtype == torch.bool:
        raise TypeError(f"Expected argument `{name}` to be real, but got dtype {value.dtype}.")
    if traced(value) or value.numel() == 0:
        return
    fixed = value.detach()
    fits = ((fixed > low) if open_low else (fixed >= low)) & (fixed <= high)
    came = _seen(fixed) if fixed.device.type == "cpu" else "a value outside"
    require(fits, f"Expected argument `{name}` to be {expected}, but got {came}.")


def share(name: str, value: float | Tensor) -> None:
    """A strength in [0, 1]."""
    _in_range(name, value, "in [0, 1]", 0.0, 1.0, open_low=False)


def positive(name: str, value: float | Tensor) -> None:
    """A number above 0, inf included."""
    _in_range(name, value, "above 0 (inf allowed)", 0.0, math.inf, open_low=True)


def number(name: str, value: float, interval: str) -> None:
    """A real number, no tensor, in an interval as it is written: "[0, 1]", "[0, inf)" for finite ones, "(0, inf)"."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    if isinstance(value, Real) and not isinstance(value, bool):
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if above and below:
            return
    raise UserError(f"Expected argument `{name}` to be a number in {interval}, but got {value!r}.")


def integer(name: str, value: int, minimum: int = 1, maximum: int | None = None) -> None:
    """An integer from `minimum` to `maximum`, both included."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if whole and minimum <= value and (maximum is None or value <= maximum):
        return
    expected = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    raise UserError(f"Expected argument `{name}` to be a whole number {expected}, but got {value!r}.")


def floating(name: str, value: Tensor) -> None:
    """A floating point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(value).__name__}.")
    if not value.dtype.is_floating_point:
        raise TypeError(f"Expected argument `{name}` to be floating point, but got dtype {value.dtype}.")
    if value.dim() == 0:
        raise ValueError(f"Expected argument `{name}` to have a dimension of classes, but got a scalar.")


def probabilities(name: str, value: Tensor | None, classes: int) -> None:
    """Probabilities over `classes` in the last dimension: none negative, summing to 1."""
    if value is None:
        return
    floating(name, value)
    if value.shape[-1] != classes:
        raise ValueError(
            f"Expected argument `{name}` to have {classes} classes in its last dimension, "
            f"but got shape {tuple(value.shape)}."
        )
    if not traced(value):
        distribution(name, value, -1)


def distribution(name: str, value: Tensor, dim: int) -> None:
    """Refuse where `value` is negative or does not sum to 1 along `dim`."""
    if traced(value) or value.numel() == 0:
        return
    fixed = value.detach()
    fixed = fixed.float() if fixed.dtype in (torch.bfloat16, torch.float16) else fixed
    require(fixed >= 0, f"Expected argument `{name}` to have no negative or NaN entries, but got {_least(fixed)}.")
    total = fixed.sum(dim, dtype=None if fixed.dtype == torch.float64 else torch.float32)
    slack = _PRIOR_SLACK.get(value.dtype, 2e-2)
    off = (total - 1).abs()
    came = f"{total.flatten()[off.argmax()].item():g}" if total.device.type == "cpu" else "another sum"
    require(off <= slack, f"Expected argument `{name}` to sum to 1 over the classes, but got {came}.")


def _least(tensor: Tensor) -> str:
    if tensor.device.type != "cpu":
        return "such a value"
    return "NaN" if bool(tensor.isnan().any()) else f"{tensor.min().item():g}"


def class_indices(name: str, value: Tensor, classes: int, ignore_index: int | None) -> bool:
    """Refuse integer targets outside [0, classes) that are not `ignore_index`; whether some may be that."""
    if traced(value) or value.numel() == 0:
        return True
    if value.device.type == "cpu" and (ignore_index is None or not 0 <= ignore_index < classes):
        low, high = value.aminmax()
        if low.item() >= 0 and high.item() < classes:
            return False
    fits = (value >= 0) & (value < classes)
    allowed = f"[0, {classes})"
    if ignore_index is not None:
        fits = fits | (value == ignore_index)
        allowed += f" or ignore_index {ignore_index}"
    came = "an index outside"
    if value.device.type == "cpu" and not bool(fits.all()):
        came = str(value[~fits][0].item())
    require(fits, f"Expected argument `{name}` to be class indices in {allowed}, but got {came}.")
    return True


def predictions(name: str, value: Tensor, target: Tensor) -> None:
    """Predictions (N, C) without NaN or inf, N at least 1, beside class indices (N,); for what is measured by them."""
    floating(name, value)
    if value.dim() != 2 or target.shape != value.shape[:1] or not len(value):
        raise ValueError(
            f"Expected arguments `{name}` (N, C) and `target` (N,) with at least one example, but got shapes "
            f"{tuple(value.shape)} and {tuple(target.shape)}."
        )
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise TypeError(f"Expected argument `target` to be class indices, but got dtype {target.dtype}.")
    require(value < math.inf, f"Expected argument `{name}` to be free of NaN and inf.")
    class_indices("target", target, value.shape[1], None)


def may_be_overwritten(name: str, value: Tensor) -> None:
    """Refuse a tensor that is known to have another user than the operation that overwrites it."""
    base = value._base if value._is_view() else value
    if base is not None and base.is_leaf and base.requires_grad:
        raise UserError(
            f"Expected argument `{name}` to come from an operation with inplace_backward=True, but got a leaf that "
            "requires grad, or a view of one, whose values would be lost."
        )
    if any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)):
        raise UserError(
            f"Expected argument `{name}` to have memory of its own for every element with inplace_backward=True, but "
            "got an expanded tensor."
        )


def same_device(name: str, value: Tensor, other: Tensor) -> None:
    """A scalar tensor may lie on the CPU; anything larger must lie beside the logits."""
    if value.device != other.device and value.dim() > 0:
        raise ValueError(f"Expected argument `{name}` on {other.device}, where the logits are, but got {value.device}.")


def broadcasts(name: str, value: Tensor, shape: torch.Size) -> None:
    """`value` broadcasts to `shape` without widening it."""
    try:
        fits = torch.broadcast_shapes(value.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"Expected argument `{name}` to broadcast over the rows {tuple(shape)}, but got shape {tuple(value.shape)}."
        )


def result_dtype(logits: Tensor) -> torch.dtype:
    """The dtype of a loss of `logits`: theirs, but float32 for half precision under autocast, as torch has it."""
    half = logits.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half and torch.is_autocast_enabled(logits.device.type) else logits.dtype
