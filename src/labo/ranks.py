"""What processes that train together tell each other, so that what a regularizer remembers is the same in all."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def together() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes; the tensor itself where there is one."""
    if together() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gathered(rows: Tensor) -> Tensor:
    """The rows (N, …) of all processes in the order of their ranks; N may differ between them."""
    count = together()
    if count == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(sizes))
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])
