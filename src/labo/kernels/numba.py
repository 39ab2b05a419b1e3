"""The Numba implementation: one compiled sweep over the rows on the CPU, for float32 and bfloat16.

Optional, and without a compiler on the user's machine: Numba brings LLVM. What the sweep is not made for goes through
blocked.py, row by row where a row alone is in the way (a masked target, a logit that is NaN or infinite).
"""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from labo.kernels import blocked
from labo.kernels.options import Options

if TYPE_CHECKING:
    import numpy as np

DTYPES = (torch.float32, torch.bfloat16)
# A thread is worth starting for so many logits.
SHARE_OF_THREAD = 2**18


@cache
def unavailable_reason() -> str | None:
    """Why this machine cannot run the Numba kernels; None where it can."""
    if importlib.util.find_spec("numba") is None:
        return "the package `numba` is not installed (the extra `numba` has it)"
    return None


def solve(
    logits: Tensor, target: Tensor, row_weights: Tensor, options: Options, *, gradient: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """As `blocked.solve`."""
    rows = logits.shape[0]
    if target.dim() == 2 or logits.dtype not in DTYPES or not blocked.suits(options) or not logits.numel():
        return blocked.solve(logits, target, row_weights, options, gradient=gradient, out=out)
    if not logits.is_contiguous():
        return _in_blocks(logits, target, row_weights, options, gradient, out)
    losses = torch.empty(rows, dtype=torch.float32)
    if not gradient:
        out = None
    elif out is None:
        out = torch.empty_like(logits)
    done = torch.empty(rows, dtype=torch.bool)
    given = (logits, target.contiguous(), row_weights.contiguous())
    if _sweep(given, options, out, losses, done):
        _again(given, options, out, losses, ~done)
    return losses, out


def _in_blocks(
    logits: Tensor, target: Tensor, row_weights: Tensor, options: Options, gradient: bool, out: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The same for logits of any strides, of which a block at a time is copied."""
    rows, classes = logits.shape
    losses = torch.empty(rows, dtype=torch.float32)
    if gradient and out is None:
        out = torch.empty(rows, classes, dtype=logits.dtype)
    step = max(1, blocked.BLOCK_BYTES // (classes * 4))
    for start in range(0, rows, step):
        at = slice(start, start + step)
        block = logits[at].contiguous()
        losses[at], made = solve(block, target[at], row_weights[at], options.of(at), gradient=gradient)
        if out is not None and made is not None:
            out[at] = made
    return losses, out


def _sweep(
    given: tuple[Tensor, Tensor, Tensor], options: Options, out: Tensor | None, losses: Tensor, done: Tensor
) -> int:
    """How many rows it could not do."""
    kernels = _kernels()
    logits, target, row_weights = given
    prior = kernels.NO_PRIOR if options.prior is None else options.prior.detach().float().numpy()
    strengths = _strengths(options)
    bits = _array(logits)
    inputs = (bits, target.numpy(), row_weights.numpy())
    results = (bits if out is None else _array(out), losses.numpy(), done.numpy())
    threads = min(torch.get_num_threads(), logits.numel() // SHARE_OF_THREAD, len(logits))
    if threads < 2:
        return kernels.sweep(*inputs, strengths, prior, out is not None, *results)

    def part(at: slice) -> int:
        of_rows = strengths if strengths.shape[1] == 1 else strengths[:, at]
        return kernels.sweep(*(x[at] for x in inputs), of_rows, prior, out is not None, *(x[at] for x in results))

    step = -(-len(logits) // threads)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(part, (slice(start, start + step) for start in range(0, len(logits), step))))


@cache
def _kernels() -> ModuleType:
    from labo.kernels import numba_kernels

    return numba_kernels


def _array(tensor: Tensor) -> np.ndarray:
    """Its memory as NumPy sees it: NumPy has no bfloat16, so those are the bits."""
    return (tensor if tensor.dtype == torch.float32 else tensor.view(torch.int16)).numpy()


def _strengths(options: Options) -> np.ndarray:
    """The alphas over the betas as float64 (2, 1), or (2, N) where one is per row."""
    alpha, beta = options.alpha, options.beta
    if not isinstance(alpha, Tensor) and not isinstance(beta, Tensor):
        return _kernels().pair(alpha, beta)
    both = (torch.as_tensor(x, dtype=torch.float64).detach().reshape(-1) for x in (alpha, beta))
    return torch.stack(torch.broadcast_tensors(*both)).numpy()


def _again(
    given: tuple[Tensor, Tensor, Tensor], options: Options, out: Tensor | None, losses: Tensor, left: Tensor
) -> None:
    """The rows that the sweep is not made for, by the other implementation."""
    at = left.nonzero().squeeze(-1)
    logits, target, row_weights = (tensor[at] for tensor in given)
    losses[at], made = blocked.solve(logits, target, row_weights, options.of(at), gradient=out is not None)
    if out is not None and made is not None:
        out[at] = made
