"""Argument checks of the losses. Each error names the argument, what was expected and what came.

Checks of values would synchronize with an accelerator. They run eagerly on CPU tensors, become asynchronous assertions
on other devices, and are skipped while a graph is traced or transformed. Only the check of class indices is part of
compiled graphs: there some formulas would use an index that is no class without an error.
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
from labo.numeric import integer as integer
from labo.numeric import number as number

# Private names of torch without a public equivalent.
_functorch: Any = vars(torch._C)["_functorch"]
_transforms_active: Any = vars(torch._C)["_are_functorch_transforms_active"]
_assert_async: Any = vars(torch)["_assert_async"]
_forward_mode: Any = vars(forward_ad)

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
    for tensor in tensors:  # a loop, because small batches wait for it
        if _functorch.is_functorch_wrapped_tensor(tensor) or tensor.is_meta or isinstance(tensor, FakeTensor):
            return True
    return False


def plain(tensor: Tensor) -> bool:
    """Whether the values of a tensor are available and only reverse-mode differentiation is in use."""
    return not traced(tensor) and not transformed() and not forward_mode(tensor)


def forward_mode(*tensors: Tensor) -> bool:
    """Whether a tensor has a tangent, the derivative of forward-mode differentiation."""
    if _forward_mode["_current_level"] < 0:  # none is active, which is all that small batches need to know
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def require(condition: Tensor, message: str) -> None:
    """Raise an error unless `condition`, a bool tensor, is true everywhere; in a compiled graph, when it runs."""
    if condition.device.type == "cpu" and not torch.compiler.is_compiling():
        if not bool(condition.all()):
            raise ValueError(message)
    else:
        _assert_async(condition.all(), message)


def _value_range(tensor: Tensor) -> str:
    return "NaN" if bool(tensor.isnan().any()) else f"{tensor.min().item():g} to {tensor.max().item():g}"


def _in_range(name: str, value: float | Tensor, expected: str, low: float, high: float, open_low: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, Real, Tensor)):
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


def as_tensor(value: Any) -> Tensor:
    """A tensor unchanged, and numbers as a tensor on the CPU, whatever the default device."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")


def python_number(value: Any) -> Any:
    """A number of another library, such as NumPy's scalars, as Python's int or float; anything else unchanged."""
    if type(value) in (bool, int, float):
        return value
    return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else value


def tensor(name: str, value: Any) -> None:
    """Check that `value` is a tensor, and not one that is split over processes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(value).__name__}.")
    placements = getattr(value, "placements", None)
    if placements is not None:
        raise UserError(
            f"Expected argument `{name}` to be a plain tensor, but got a DTensor with placements {tuple(placements)}: "
            "labo.vocab_parallel_labo_cross_entropy takes logits that are split over the classes; otherwise pass the "
            "to_local() of whole rows, or full_tensor()."
        )


def floating(name: str, value: Tensor) -> None:
    """Check that `value` is a floating point tensor with at least one dimension."""
    tensor(name, value)
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


def as_targets(target: Tensor) -> Tensor:
    """Class indices of any integer dtype as int64, before they are compared; probabilities (and bool) unchanged.

    `ignore_index` or the number of classes may not fit a narrower dtype: in uint8, -100 is class 156.
    """
    indices = not (target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool)
    return target.long() if indices else target


def class_weight(name: str, value: Tensor | None, classes: int | None = None) -> None:
    """Check that `value` is None or class weights (C,), finite and not negative; `classes` is C where it is known."""
    if value is None:
        return
    floating(name, value)
    if value.dim() != 1 or (classes is not None and len(value) != classes):
        shape = "(C,)" if classes is None else f"({classes},)"
        raise ValueError(f"Expected argument `{name}` to have shape {shape}, but got {tuple(value.shape)}.")
    if traced(value) or not len(value):
        return
    fixed = value.detach()
    actual = _value_range(fixed) if fixed.device.type == "cpu" else "others"
    require((fixed >= 0) & (fixed < math.inf), f"Expected argument `{name}` to be finite and >= 0, but got {actual}.")


def denominator(name: str, value: float | Tensor) -> None:
    """Check that `value` is a number or a scalar tensor, finite and not negative."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"Expected argument `{name}` to be a scalar, but got shape {tuple(value.shape)}.")
        _in_range(name, value, "finite and >= 0", 0.0, torch.finfo(torch.float64).max, open_low=False)
    else:
        number(name, value, "[0, inf)")


def row_weight(name: str, value: Tensor, shape: torch.Size, kept: Tensor | None, *, signed: bool) -> None:
    """Check that `value` is a finite weight for each row; not negative unless `signed`. Ignored rows hold anything."""
    tensor(name, value)
    if not value.dtype.is_floating_point:
        raise TypeError(f"Expected argument `{name}` to be floating point, but got dtype {value.dtype}.")
    if value.shape != shape:
        raise ValueError(
            f"Expected argument `{name}` to have a weight for each row, shape {tuple(shape)}, but got "
            f"{tuple(value.shape)}."
        )
    if traced(value) or not value.numel():
        return
    fixed = value.detach().reshape(-1)
    fixed = fixed if kept is None else torch.where(kept, fixed, 0.0)
    actual = _value_range(fixed) if fixed.device.type == "cpu" else "others"
    require(fixed.isfinite(), f"Expected argument `{name}` to be finite, but got {actual}.")
    if not signed:
        require(
            fixed >= 0,
            f"Expected argument `{name}` to be >= 0 with reduction='mean', which divides by the sum of the weights, "
            f"but got {actual}; negative weights need denominator= or reduction='sum'.",
        )


def class_indices(name: str, value: Tensor, classes: int, ignore_index: int | None) -> bool:
    """Check that int64 targets are in [0, classes) or `ignore_index`; returns whether some may be ignored."""
    if torch.compiler.is_compiling():
        if not batched_in_graph(value):
            require(are_classes(value, classes, ignore_index), f"{_expected(name, classes, ignore_index)} others.")
        return True
    if traced(value) or value.numel() == 0:
        return True
    if value.device.type == "cpu" and (ignore_index is None or not 0 <= ignore_index < classes):
        low, high = value.aminmax()
        if low.item() >= 0 and high.item() < classes:
            return False
    fits = are_classes(value, classes, ignore_index)
    actual = "others"
    if value.device.type == "cpu" and not bool(fits.all()):
        actual = str(value[~fits][0].item())
    require(fits, f"{_expected(name, classes, ignore_index)} {actual}.")
    return True


def batched_in_graph(value: Tensor) -> bool:
    """Whether `value` is a batch of torch.func.vmap in a compiled graph, of which nothing can be asserted."""
    return torch.compiler.is_compiling() and _functorch.is_batchedtensor(value)


def are_classes(value: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """Whether each target is in [0, classes) or `ignore_index`."""
    fits = (value >= 0) & (value < classes)
    return fits if ignore_index is None else fits | (value == ignore_index)


def _expected(name: str, classes: int, ignore_index: int | None) -> str:
    allowed = f"[0, {classes})" + ("" if ignore_index is None else f" or ignore_index {ignore_index}")
    return f"Expected argument `{name}` to be class indices in {allowed}, but got"


def predictions(name: str, value: Tensor, target: Tensor, target_name: str = "target") -> None:
    """Check predictions (N, C) without NaN or inf, N at least 1, and class indices (N,)."""
    floating(name, value)
    if value.dim() != 2 or target.shape != value.shape[:1] or not len(value):
        raise ValueError(
            f"Expected arguments `{name}` (N, C) and `{target_name}` (N,) with at least one example, but got shapes "
            f"{tuple(value.shape)} and {tuple(target.shape)}."
        )
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise TypeError(f"Expected argument `{target_name}` to be class indices, but got dtype {target.dtype}.")
    require(value < math.inf, f"Expected argument `{name}` to be free of NaN and inf.")
    class_indices(target_name, as_targets(target), value.shape[1], None)


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
