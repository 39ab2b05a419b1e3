"""Argument checks of the losses. Each error names the argument, what was expected and what came.

Checks of values would synchronize with an accelerator. They run eagerly on CPU tensors, become asynchronous assertions
on other devices, and are skipped while a graph is traced or transformed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from labo.errors import UserError
from labo.numeric import integer as integer
from labo.numeric import number as number

# Private names of torch without a public equivalent.
_functorch: Any = vars(torch._C)["_functorch"]
_transforms_active: Any = vars(torch._C)["_are_functorch_transforms_active"]
_assert_async: Any = vars(torch)["_assert_async"]

# The class index of ignored targets in PyTorch and Transformers.
IGNORE_INDEX = -100

_PRIOR_SLACK = {torch.float64: 1e-6, torch.float32: 1e-4}


def transformed() -> bool:
    """Whether a torch.func transform is running."""
    return _transforms_active()


def traced(*tensors: Tensor) -> bool:
    """Whether a graph is being traced or transformed, so that values are not available."""
    if torch.compiler.is_compiling():
        return True
    return any(
        _functorch.is_functorch_wrapped_tensor(t) or t.device.type == "meta" or isinstance(t, FakeTensor)
        for t in tensors
    )


def plain(tensor: Tensor) -> bool:
    """Whether the values of a tensor are available and only reverse-mode differentiation is in use."""
    return not traced(tensor) and not transformed() and forward_ad.unpack_dual(tensor).tangent is None


def require(condition: Tensor, message: str, *sources: Tensor) -> None:
    """Raise an error unless `condition` (a bool tensor computed from `sources`) is true everywhere."""
    if condition.device.type == "cpu":
        if not bool(condition.all()):
            raise ValueError(message)
    else:
        _assert_async(condition.all(), message)


def _value_range(tensor: Tensor) -> str:
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
    actual = _value_range(fixed) if fixed.device.type == "cpu" else "a value outside"
    require(fits, f"Expected argument `{name}` to be {expected}, but got {actual}.")


def share(name: str, value: float | Tensor) -> None:
    """Check that `value` is in [0, 1]."""
    _in_range(name, value, "in [0, 1]", 0.0, 1.0, open_low=False)


def positive(name: str, value: float | Tensor) -> None:
    """Check that `value` is above 0; inf is allowed."""
    _in_range(name, value, "above 0 (inf allowed)", 0.0, math.inf, open_low=True)


def floating(name: str, value: Tensor) -> None:
    """Check that `value` is a floating point tensor with at least one dimension."""
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(value).__name__}.")
    if not value.dtype.is_floating_point:
        raise TypeError(f"Expected argument `{name}` to be floating point, but got dtype {value.dtype}.")
    if value.dim() == 0:
        raise ValueError(f"Expected argument `{name}` to have a dimension of classes, but got a scalar.")


def probabilities(name: str, value: Tensor | None, classes: int) -> None:
    """Check that `value` is None or probabilities over `classes` in the last dimension."""
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
    """Check that `value` is not negative and sums to 1 along `dim`."""
    if traced(value) or value.numel() == 0:
        return
    fixed = value.detach()
    fixed = fixed.float() if fixed.dtype in (torch.bfloat16, torch.float16) else fixed
    require(fixed >= 0, f"Expected argument `{name}` to have no negative or NaN entries, but got {_minimum(fixed)}.")
    total = fixed.sum(dim, dtype=None if fixed.dtype == torch.float64 else torch.float32)
    slack = _PRIOR_SLACK.get(value.dtype, 2e-2)
    error = (total - 1).abs()
    actual = f"{total.flatten()[error.argmax()].item():g}" if total.device.type == "cpu" else "another sum"
    require(error <= slack, f"Expected argument `{name}` to sum to 1 over the classes, but got {actual}.")


def _minimum(tensor: Tensor) -> str:
    if tensor.device.type != "cpu":
        return "such a value"
    return "NaN" if bool(tensor.isnan().any()) else f"{tensor.min().item():g}"


def class_indices(name: str, value: Tensor, classes: int, ignore_index: int | None) -> bool:
    """Check that integer targets are in [0, classes) or `ignore_index`; returns whether some may be ignored."""
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
    actual = "an index outside"
    if value.device.type == "cpu" and not bool(fits.all()):
        actual = str(value[~fits][0].item())
    require(fits, f"Expected argument `{name}` to be class indices in {allowed}, but got {actual}.")
    return True


def predictions(name: str, value: Tensor, target: Tensor) -> None:
    """Check predictions (N, C) without NaN or inf, N at least 1, and class indices (N,), for metrics."""
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
    """Raise an error for a tensor that must not be overwritten: a leaf that requires grad, or an expanded tensor."""
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
    """Check that `value` is on the device of `other`; a scalar may be on the CPU."""
    if value.device != other.device and value.dim() > 0:
        raise ValueError(f"Expected argument `{name}` on {other.device}, where the logits are, but got {value.device}.")


def broadcasts(name: str, value: Tensor, shape: torch.Size) -> None:
    """Check that `value` broadcasts to `shape`."""
    try:
        fits = torch.broadcast_shapes(value.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"Expected argument `{name}` to broadcast over the rows {tuple(shape)}, but got shape {tuple(value.shape)}."
        )


def result_dtype(logits: Tensor) -> torch.dtype:
    """The dtype of a loss of `logits`: theirs, but float32 for half precision under autocast, as in torch."""
    half = logits.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half and torch.is_autocast_enabled(logits.device.type) else logits.dtype
