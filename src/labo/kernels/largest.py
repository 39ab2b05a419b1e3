"""The largest logits of each row, found in one sweep."""

from __future__ import annotations

import torch
from torch import Tensor

from labo.kernels import numba

# Rows are looked through in blocks of so many: those without a large maximum are not looked at again.
BLOCK = 64


def largest(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(values, classes) (N, count) of the largest entries of each row of finite logits, in no order.

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

    values, classes = z.new_empty(len(z), count), torch.empty(len(z), count, dtype=torch.int64)
    numba_kernels.largest(z.numpy(), values.numpy(), classes.numpy())
    return values, classes


def _in_blocks(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """They are in the `count` blocks whose maxima are the largest."""
    classes = z.shape[-1]
    whole = classes // BLOCK
    if whole < 2 * count:
        values, at = z.topk(count, sorted=False)
        return values, at
    blocks = z[:, : whole * BLOCK].unflatten(-1, (whole, BLOCK))
    best = blocks.amax(-1).topk(count, sorted=False).indices
    within = torch.arange(BLOCK, device=z.device)
    among = (best.unsqueeze(-1) * BLOCK + within).flatten(-2)
    tail = torch.arange(whole * BLOCK, classes, device=z.device).expand(len(z), -1)
    among = torch.cat([among, tail], -1)
    values, at = z.gather(-1, among).topk(count, sorted=False)
    return values, among.gather(-1, at)
