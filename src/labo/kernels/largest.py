"""The largest logits of each row, in one sweep."""

from __future__ import annotations

import torch
from torch import Tensor

from labo.kernels import numba

# Classes per block: only blocks with a large maximum are searched.
BLOCK = 64


def largest(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(values, classes) (N, count) of the largest entries of each row of finite logits, unordered.

    Args:
        z: (N, C).
        count: at most C.

    Example:
        >>> largest(torch.tensor([[0.0, 3.0, 1.0]]), 1)
        (tensor([[3.]]), tensor([[1]]))
    """
    if z.device.type == "cpu" and z.dtype == torch.float32 and z.is_contiguous() and numba.unavailable_reason() is None:
        return _compiled(z, count)
    return _in_blocks(z, count)


def _compiled(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    from labo.kernels import numba_kernels

    values, classes = z.new_empty(len(z), count), z.new_empty(len(z), count, dtype=torch.int64)
    numba_kernels.largest(z.numpy(), values.numpy(), classes.numpy())
    return values, classes


def _in_blocks(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Search the `count` blocks with the largest maxima, which contain the largest entries."""
    classes = z.shape[-1]
    block_count = classes // BLOCK
    if block_count < 2 * count:
        values, at = z.topk(count, sorted=False)
        return values, at
    blocks = z[:, : block_count * BLOCK].unflatten(-1, (block_count, BLOCK))
    best = blocks.amax(-1).topk(count, sorted=False).indices
    within = torch.arange(BLOCK, device=z.device)
    candidates = (best.unsqueeze(-1) * BLOCK + within).flatten(-2)
    tail = torch.arange(block_count * BLOCK, classes, device=z.device).expand(len(z), -1)
    candidates = torch.cat([candidates, tail], -1)
    values, at = z.gather(-1, candidates).topk(count, sorted=False)
    return values, candidates.gather(-1, at)
