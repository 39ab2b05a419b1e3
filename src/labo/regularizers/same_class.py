"""Partners: random other examples of the same classes."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from labo import checks
from labo.errors import UserError


class SameClass:
    """Draws another example of the same class, determined by the seed, the epoch and the example.

    The draw does not depend on the batch or on earlier draws, so a resumed epoch equals an uninterrupted one.

    Args:
        target: (N,) class indices of the training data.
        seed: seed of the draws.

    Raises:
        ValueError: `target` is not (N,) class indices.

    Example:
        >>> SameClass(torch.tensor([0, 1, 0, 2])).draw(torch.tensor([0, 2, 3]), epoch=0)  # 3 is alone in its class
        tensor([2, 0, 3])
    """

    def __init__(self, target: Tensor, seed: int = 0) -> None:
        target = checks.as_tensor(target)
        if target.dim() != 1 or target.dtype.is_floating_point or target.dtype.is_complex:
            raise UserError(
                f"Expected argument `target` to be (N,) class indices, but got {target.dtype} of shape "
                f"{tuple(target.shape)}."
            )
        self.seed = seed
        target = checks.as_targets(target).cpu()
        # The examples sorted by class. For each example: where its class begins, the size of the class, its own
        # position.
        self._ordered = target.argsort(stable=True)
        _, classes, counts = target.unique(return_inverse=True, return_counts=True)
        self._begin = (counts.cumsum(0) - counts)[classes]
        self._count = counts[classes]
        self._place = torch.empty_like(self._ordered)
        self._place[self._ordered] = torch.arange(len(target), device="cpu")
        self._drawn: tuple[int, Tensor] | None = None

    def draw(self, indices: Tensor, epoch: int) -> Tensor:
        """Indices of other examples of the same classes, on the device of `indices`; the example itself if it is alone.

        Raises:
            ValueError: an index is not in the training data.
        """
        indices = checks.as_tensor(indices)
        at = checks.as_targets(indices).cpu()
        if at.numel() and not 0 <= int(at.min()) <= int(at.max()) < len(self._count):
            wrong = at[(at < 0) | (at >= len(self._count))][0]
            raise UserError(f"Expected `indices` of {len(self._count)} training examples, but got {int(wrong)}.")
        count = self._count[at]
        others = (count - 1).clamp(min=1)
        offset = 1 + (self._uniform(int(epoch))[at] * others).long()  # 1 to count - 1, cyclic in the class
        place = self._begin[at] + (self._place[at] - self._begin[at] + offset) % count
        return self._ordered[place].to(indices.device)

    def _uniform(self, epoch: int) -> Tensor:
        """A random number in [0, 1) for each training example, drawn once per epoch."""
        if self._drawn is None or self._drawn[0] != epoch:
            seed = random.Random(f"{self.seed} {epoch}").getrandbits(63)
            generator = torch.Generator(device="cpu").manual_seed(seed)
            self._drawn = epoch, torch.rand(len(self._count), generator=generator, dtype=torch.float64, device="cpu")
        return self._drawn[1]
