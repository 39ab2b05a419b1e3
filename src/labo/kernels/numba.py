"""The Numba implementation: one compiled sweep over the rows on the CPU, for float32 and bfloat16.

Optional. It needs no compiler on the user's machine, because Numba includes LLVM. Unsupported options use blocked.py,
and so do single rows that the sweep does not support (a masked target, a logit that is NaN or infinite).
"""

from __future__ import annotations

import importlib.util
import os
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
# Logits per thread at least: for fewer, starting a thread costs more than it saves.
MIN_LOGITS_PER_THREAD = 2**18


@cache
def unavailable_reason() -> str | None:
    """Why this machine cannot run the Numba kernels; None if it can."""
    if importlib.util.find_spec("numba") is None:
        return "the package `numba` is not installed (the extra `numba` installs it)"
    if os.environ.get("NUMBA_DISABLE_JIT", "0").strip() not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set, and the kernels exist only compiled"
    return None


def solve(
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    *,
    gradient: bool,
    out: Tensor | None = None,
    statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Like `blocked.solve`."""
    rows = logits.shape[0]
    if target.dim() == 2 or logits.dtype not in DTYPES or not is_supported(options) or not logits.numel():
        return blocked.solve(logits, target, row_weights, options, gradient=gradient, out=out, statistics=statistics)
    if not logits.is_contiguous():
        return _in_blocks(logits, target, row_weights, options, gradient, out, statistics)
    losses = logits.new_empty(rows, dtype=torch.float32)
    if not gradient:
        out = None
    elif out is None:
        out = torch.empty_like(logits)
    done = logits.new_empty(rows, dtype=torch.bool)
    inputs = (logits, target.contiguous(), row_weights.contiguous())
    if _sweep(inputs, options, out, losses, done, statistics):
        _solve_remaining(inputs, options, out, losses, ~done, statistics)
    return losses, out


def is_supported(options: Options) -> bool:
    """Whether the sweep supports these options, and is accurate with them."""
    return options.softcap is None and blocked.is_supported(options)


def _in_blocks(
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    gradient: bool,
    out: Tensor | None,
    statistics: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Like `solve`, for logits of any strides: copies one block at a time."""
    rows, classes = logits.shape
    losses = logits.new_empty(rows, dtype=torch.float32)
    if gradient and out is None:
        out = logits.new_empty(rows, classes)
    step = max(1, blocked.BLOCK_BYTES // (classes * 4))
    for start in range(0, rows, step):
        at = slice(start, start + step)
        block = logits[at].contiguous()
        inputs = (block, target[at], row_weights[at], options.of(at))
        block_statistics = None if statistics is None else statistics[:, at]
        losses[at], grads = solve(*inputs, gradient=gradient, statistics=block_statistics)
        if out is not None and grads is not None:
            out[at] = grads
    return losses, out


def _sweep(
    inputs: tuple[Tensor, Tensor, Tensor],
    options: Options,
    out: Tensor | None,
    losses: Tensor,
    done: Tensor,
    statistics: Tensor | None,
) -> int:
    """Run the sweep; the number of rows that it does not support, for which `done` is False."""
    kernels = _kernels()
    logits, target, row_weights = inputs
    prior = kernels.NO_PRIOR if options.prior is None else options.prior.detach().float().numpy()
    strengths = _strengths(options)
    bits = _array(logits)
    arrays = (bits, target.numpy(), row_weights.numpy())
    results = (bits if out is None else _array(out), losses.numpy(), done.numpy())
    rows_statistics = kernels.NO_STATISTICS if statistics is None else statistics.numpy()
    threads = min(torch.get_num_threads(), logits.numel() // MIN_LOGITS_PER_THREAD, len(logits))

    if threads < 2:
        extras = (kernels.scratch_of(logits.shape[1]), options.z_loss, rows_statistics)
        return kernels.sweep(*arrays, strengths, prior, out is not None, *results, *extras)

    def part(at: slice) -> int:
        row_strengths = strengths if strengths.shape[1] == 1 else strengths[:, at]
        inputs, outputs = (x[at] for x in arrays), (x[at] for x in results)
        extras = (kernels.scratch_of(logits.shape[1]), options.z_loss, rows_statistics[:, at])
        return kernels.sweep(*inputs, row_strengths, prior, out is not None, *outputs, *extras)

    step = -(-len(logits) // threads)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(part, (slice(start, start + step) for start in range(0, len(logits), step))))


@cache
def _kernels() -> ModuleType:
    from labo.kernels import numba_kernels

    return numba_kernels


def _array(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor as a NumPy array; for bfloat16, which NumPy lacks, its bits as int16."""
    return (tensor if tensor.dtype == torch.float32 else tensor.view(torch.int16)).numpy()


def _strengths(options: Options) -> np.ndarray:
    """The alphas and betas, stacked as float64 (2, 1), or (2, N) if one of them is per row."""
    alpha, beta = options.alpha, options.beta
    if not isinstance(alpha, Tensor) and not isinstance(beta, Tensor):
        return _kernels().pair(alpha, beta)
    both = (torch.as_tensor(x, dtype=torch.float64, device="cpu").detach().reshape(-1) for x in (alpha, beta))
    return torch.stack(torch.broadcast_tensors(*both)).numpy()


def _solve_remaining(
    inputs: tuple[Tensor, Tensor, Tensor],
    options: Options,
    out: Tensor | None,
    losses: Tensor,
    remaining: Tensor,
    statistics: Tensor | None,
) -> None:
    """Compute the rows that the sweep does not support, by the blocked implementation."""
    at = remaining.nonzero().squeeze(-1)
    logits, target, row_weights = (tensor[at] for tensor in inputs)
    rows = None if statistics is None else statistics[:, at]
    losses[at], grads = blocked.solve(
        logits, target, row_weights, options.of(at), gradient=out is not None, statistics=rows
    )
    if statistics is not None and rows is not None:
        statistics[:, at] = rows
    if out is not None and grads is not None:
        out[at] = grads
