"""The Triton implementation: requirements and launch of the kernels. Triton is imported at the first launch."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labo.kernels.options import Options
from labo.kernels.statistics import ENTROPY, LABEL_ENTROPY
from labo.kernels.triton_shapes import Shape, parts_of, power_of_2, shape_of, tile_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Explicit because the default changes in Triton 3.10, and unfused multiply-adds are twice the instructions.
COMPILE_OPTIONS = {"enable_fp_fusion": True}

SUMS = 6
# Up to this beta, beta times the rounding of a plain sum of exponentials is within the loss's accuracy.
MAX_PLAIN_BETA = 16.0
# Compile-time forms of beta, beside 2, 3 and 4; the same as in triton_algebra.py, which is not imported here.
PLAIN, SERIES, LIMIT = 1, 0, -1
SCALE_BLOCK = 4096


def unavailable_reason() -> str | None:
    """Why this machine cannot run the Triton kernels; None if it can.

    Example:
        >>> reason = unavailable_reason()
        >>> reason is None or isinstance(reason, str)
        True
    """
    if importlib.util.find_spec("triton") is None:
        return "the package `triton` is not installed"
    if interpreted() or torch.cuda.is_available():
        return None
    return "there is no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors; Triton checks once, when they are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def solve(
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    *,
    gradient: bool,
    out: Tensor | None = None,
    statistics: Tensor | None = None,
    shape: Shape | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Each row's (1 - alpha) * CE(onehot(target), p) + alpha * V(logits) times its weight, and the gradient in logits.

    Args:
        logits: (N, C), float32, bfloat16 or float16, of any strides; -inf masks a class. Not written to unless they
            are `out`.
        target: (N,) int64 class indices, valid in every row.
        row_weights: (N,) float32. A row of weight 0 is not read: loss 0, gradient 0.
        options: alpha and beta floats, () or (N,); prior None for uniform, or probabilities (C,) that sum to 1; z_loss
            and softcap.
        gradient: whether to compute the gradient.
        out: buffer for the gradient, of the logits' shape and dtype; may be the logits themselves.
        statistics: buffer (5, N) in float32 for the statistics of the rows, NaN at first, see statistics.py.
        shape: launch configuration; by default from the table in triton_shapes.py.

    Returns:
        The losses (N,) in float32, and None or the gradient (N, C) in the dtype of `logits`, rounded once. Without
        z_loss and softcap it is row_weights * (p - (1 - alpha) * onehot(target) - alpha * q*),
        q* = softmax(logits / beta + log prior).

    Raises:
        TypeError: `logits` has another dtype.
        ValueError: this machine, or the device of `logits`, cannot run the kernels.
    """
    if reason := unavailable_reason():
        raise ValueError(f"Expected a machine that runs Triton kernels, but {reason}.")
    if logits.dtype not in DTYPES:
        raise TypeError(f"Expected argument `logits` of dtype float32, bfloat16 or float16, but got {logits.dtype}.")
    if logits.device.type != "cuda" and not interpreted():
        raise ValueError(f"Expected argument `logits` on a CUDA device, but got {logits.device}.")
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    grad_logits = _output(logits, out) if gradient else None
    if losses.numel():
        batch = _Batch(logits.detach(), target.contiguous(), row_weights.contiguous(), losses, grad_logits, statistics)
        with _on(logits.device):
            _launch(batch, options, shape or shape_of(logits.shape[1], logits.element_size()))
    if grad_logits is None:
        return losses, None
    return losses, grad_logits.to(logits.dtype) if out is None or grad_logits is out else out.copy_(grad_logits)


def scale_gradient(grads: Tensor, factor: Tensor) -> Tensor:
    """Multiply `grads`, contiguous, by the scalar `factor` in place; if it is 1, only the factor is read."""
    from labo.kernels import triton_kernels

    kernels: Any = triton_kernels
    programs = min(1024, -(-grads.numel() // SCALE_BLOCK))
    if programs:
        with _on(grads.device):
            constants = {"block": SCALE_BLOCK, "num_warps": 8, **COMPILE_OPTIONS}
            kernels.scale_gradient[(programs,)](grads, factor.detach(), grads.numel(), **constants)
    return grads


def beta_form(options: Options) -> int:
    """The compile-time form of beta: which sums the kernels compute, and how they compute exponentials."""
    beta = options.beta
    if isinstance(beta, Tensor):
        return SERIES
    if math.isinf(beta):
        return LIMIT
    if options.prior is None and beta in (2.0, 3.0, 4.0):
        return int(beta)
    return PLAIN if beta <= MAX_PLAIN_BETA else SERIES


class _Batch(NamedTuple):
    logits: Tensor
    target: Tensor
    row_weights: Tensor
    losses: Tensor
    grad_logits: Tensor | None
    statistics: Tensor | None


def _output(logits: Tensor, out: Tensor | None) -> Tensor:
    """The tensor that the kernels write the gradient to: `out`, or a contiguous buffer."""
    # The interpreter truncates to bfloat16 where devices round.
    narrow = interpreted() and logits.dtype == torch.bfloat16
    if out is not None and not narrow and (out.stride(1) == 1 or out.shape[1] == 1):
        return out
    return torch.empty(logits.shape, dtype=torch.float32 if narrow else logits.dtype, device=logits.device)


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))  # Triton launches on the current device
        if interpreted():
            import numpy as np

            # Arithmetic that overflows to inf is silent on a device.
            stack.enter_context(np.errstate(over="ignore", invalid="ignore", divide="ignore"))
        yield


def _option(value: float | Tensor, logits: Tensor) -> tuple[float | Tensor, int, bool]:
    """(value, its stride over the rows, whether it is a tensor); numbers are arguments of the launch."""
    if not isinstance(value, Tensor):
        return float(value), 0, False
    value = value.detach().to(logits.device, torch.float32)
    return value, value.expand(logits.shape[0]).stride(0), True


def _unit(logits: Tensor, row_stride: int, grad_logits: Tensor | None, grad_stride: int) -> int:
    """The largest number of classes, up to 16 bytes, to which all rows are aligned."""
    unit = 16 // logits.element_size() if logits.stride(1) == 1 else 1
    sizes = [logits.shape[1], row_stride]
    if grad_logits is not None:
        sizes.append(grad_stride)
    while any(size % unit for size in sizes):
        unit //= 2
    return unit if unit > 2 else 1


def _launch(batch: _Batch, options: Options, shape: Shape) -> None:
    from labo.kernels import triton_kernels

    kernels: Any = triton_kernels  # Triton's types do not describe launch arguments
    logits, target, row_weights, losses, grad_logits, statistics = batch
    rows, classes = logits.shape
    row_stride, class_stride = logits.stride() if rows > 1 else (classes, logits.stride(1))
    grad_stride = classes if grad_logits is None or rows == 1 else grad_logits.stride(0)
    contiguous = class_stride == 1 or classes == 1
    unit = _unit(logits, row_stride, grad_logits, grad_stride)
    alpha, alpha_stride, alpha_of_rows = _option(options.alpha, logits)
    beta, beta_stride, beta_of_rows = _option(options.beta, logits)
    prior = None if options.prior is None else options.prior.detach().to(torch.float32).contiguous()
    constants = {
        "contiguous": contiguous,
        "beta_of_rows": beta_of_rows,
        "form": beta_form(options),
        "unit": unit,
        "num_warps": shape.warps,
        **COMPILE_OPTIONS,
    }
    of_alpha = {"alpha_of_rows": alpha_of_rows}
    softcap = options.softcap
    inputs = (logits, target, row_weights, alpha, beta, prior, options.z_loss or None, softcap)
    strides = (row_stride // unit, class_stride, grad_stride // unit, alpha_stride, beta_stride)
    strides += (0 if statistics is None else statistics.stride(0),)
    outputs = (losses, grad_logits, statistics)
    if shape.rows:
        grid = (-(-rows // shape.rows),)
        held = {"together": shape.rows, "block": power_of_2(classes), **of_alpha, **constants}
        kernels.short_rows[grid](*inputs, *outputs, *strides, rows, classes // unit, **held)
        return
    groups, lanes = tile_of(shape, unit, logits.element_size())
    constants |= {"groups": groups, "lanes": lanes}
    width = parts_of(rows, classes, groups * lanes * unit)
    if not width:
        kernels.long_rows[(rows,)](*inputs, *outputs, *strides, classes // unit, **of_alpha, **constants)
        return
    parts = -(-classes // (width * groups * lanes * unit))
    count = SUMS if statistics is None else SUMS + 2
    sums = torch.empty(count, rows, parts, dtype=torch.float32, device=logits.device)
    sizes = (rows, classes // unit, width)
    kernels.sum_parts[(rows, parts)](
        logits,
        row_weights,
        beta,
        prior,
        softcap,
        sums,
        row_stride // unit,
        class_stride,
        beta_stride,
        *sizes,
        **constants,
    )
    kernels.write_parts[(rows, parts)](
        *inputs, sums, *outputs, *strides, *sizes, parts, places=power_of_2(parts), **of_alpha, **constants
    )
    if statistics is not None:
        statistics[ENTROPY : LABEL_ENTROPY + 1] += sums[SUMS:].sum(-1)  # NaN stays where rows are not read
