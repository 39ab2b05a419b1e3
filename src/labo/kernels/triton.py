"""The Triton implementation: what it needs, and the launch of its kernels, which imports Triton only then."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from labo.kernels.options import Options

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Classes that one program holds at a time; tiles of fewer classes hold several rows.
BLOCK = 2048
SMALL_TILE = 512
# Programs that keep a large GPU busy: fewer rows than this are cut into parts.
ENOUGH_PROGRAMS = 256

# Said aloud because Triton's default is changing (3.10): no step here relies on a product's own rounding.
COMPILING = {"enable_fp_fusion": True}

SUMS = 6


def refusal() -> str | None:
    """Why this machine cannot run the Triton kernels; None where it can.

    Example:
        >>> reason = refusal()
        >>> reason is None or isinstance(reason, str)
        True
    """
    if importlib.util.find_spec("triton") is None:
        return "the package `triton` is not installed"
    if interpreted() or torch.cuda.is_available():
        return None
    return "there is no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors; Triton asks once, when they are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def solve(
    logits: Tensor,
    target: Tensor,
    shares: Tensor,
    options: Options,
    *,
    gradient: bool,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Each row's share of (1 - alpha) * CE(onehot(target), p) + alpha * V(logits), and its gradient in the logits.

    Args:
        logits: (N, C), float32, bfloat16 or float16, of any strides; -inf masks a class. Never written to.
        target: (N,) int64 class indices, valid in every row.
        shares: (N,) float32, what a row's loss counts. A row of share 0 is not read: loss 0, gradient 0.
        options: alpha and beta floats or (N,); prior None for uniform, or probabilities (C,) that sum to 1.
        gradient: whether the gradient is wanted.
        out: the caller needs these no more; not used, since a program may read what another has written.

    Returns:
        The losses (N,) in float32, and None or the gradient (N, C) in the dtype of `logits`, contiguous, rounded once:
        shares * (p - (1 - alpha) * onehot(target) - alpha * q*), q* = softmax(logits / beta + log prior).

    Raises:
        TypeError: `logits` has another dtype.
        ValueError: this machine, or the device that `logits` lie on, cannot run the kernels.
    """
    if reason := refusal():
        raise ValueError(f"Expected a machine that runs Triton kernels, but {reason}.")
    if logits.dtype not in DTYPES:
        raise TypeError(f"Expected argument `logits` of dtype float32, bfloat16 or float16, but got {logits.dtype}.")
    if logits.device.type != "cuda" and not interpreted():
        raise ValueError(f"Expected argument `logits` on a CUDA device, but got {logits.device}.")
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    # The interpreter truncates to bfloat16 where devices round.
    written = torch.float32 if interpreted() and logits.dtype == torch.bfloat16 else logits.dtype
    slopes = torch.empty(logits.shape, dtype=written, device=logits.device) if gradient else None
    if losses.numel():
        limit = not isinstance(options.beta, Tensor) and math.isinf(options.beta)
        given = [_per_row(value, logits) for value in (options.alpha, options.beta)]
        prior = None if options.prior is None else options.prior.detach().to(torch.float32).contiguous()
        rows = (logits.detach(), target.contiguous(), shares.contiguous(), *given, prior)
        with _on(logits.device):
            _launch(rows, losses, slopes, limit)
    return losses, None if slopes is None else slopes.to(logits.dtype)


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))  # Triton launches on the current one
        if interpreted():
            import numpy as np

            # Arithmetic that overflows to inf is silent on a device.
            stack.enter_context(np.errstate(over="ignore", invalid="ignore", divide="ignore"))
        yield


def _per_row(value: float | Tensor, logits: Tensor) -> Tensor:
    # A scalar is a tensor of stride 0, so that a schedule of alpha or beta compiles nothing anew.
    if isinstance(value, Tensor):
        value = value.detach().to(logits.device, torch.float32)
    else:  # filled on the device: a copy to it would wait
        value = torch.full((), value, dtype=torch.float32, device=logits.device)
    return value.expand(logits.shape[0])


def tile(classes: int) -> tuple[int, int]:
    """Rows and classes of the tile that a program holds."""
    block = min(BLOCK, _power_of_2(classes))
    return max(1, SMALL_TILE // block), block


def span(rows: int, classes: int) -> int:
    """Classes that one program sums: all, or, for few rows, whole blocks that make enough programs."""
    block = tile(classes)[1]
    parts = min(_parts(ENOUGH_PROGRAMS, rows), classes // (2 * block))
    return classes if parts < 2 else _parts(_parts(classes, parts), block) * block


def _launch(rows: tuple, losses: Tensor, slopes: Tensor | None, limit: bool) -> None:
    from labo.kernels import triton_kernels

    kernels: Any = triton_kernels  # Triton's types do not know what a launch takes
    logits, _, _, alpha, beta, _ = rows
    count, classes = logits.shape
    together, block = tile(classes)
    sizes = (*logits.stride(), alpha.stride(0), beta.stride(0), count, classes)
    constants = {"limit": limit, "block": block, "num_warps": max(4, block // 256), **COMPILING}
    width = span(count, classes)
    if width == classes:
        grid = (_parts(count, together),)
        kernels.whole_rows[grid](*rows, losses, slopes, *sizes, together=together, **constants)
        return
    parts = _parts(classes, width)
    sums = torch.empty(SUMS, count, parts, dtype=torch.float32, device=logits.device)
    totals = torch.empty(SUMS, count, dtype=torch.float32, device=logits.device)
    lanes = _power_of_2(parts)
    kernels.sums_of_parts[(count, parts)](*rows, sums, *sizes, width, **constants)
    kernels.combine[(count,)](*rows, sums, totals, losses, *sizes, parts, limit=limit, lanes=lanes, **COMPILING)
    if slopes is not None:
        kernels.slopes_of_parts[(count, parts)](*rows, totals, slopes, *sizes, width, **constants)


def _power_of_2(count: int) -> int:
    """The least that is no less than `count`."""
    return 1 << (count - 1).bit_length()


def _parts(count: int, size: int) -> int:
    """How many of `size` hold `count`."""
    return -(-count // size)
