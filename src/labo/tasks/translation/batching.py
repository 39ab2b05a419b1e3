"""Batches of about as many tokens each, of sentences of about the same length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from labo.errors import UserError


class TokenBatches(Sampler[list[int]]):
    """Every epoch, all N sentences once, in batches whose tokens, padding included, are at most `budget`.

    Args:
        lengths: tokens of the longer side of each pair, end mark included, int64 (N,); see `Sentences.lengths`.
        budget: the most that (pairs in a batch) x (its longest length) may be.
        seed: draws, with the epoch, which sentences of about the same length meet, and the order of the batches.
        least: pairs that every batch has, be it over the budget; for batches that are divided.

    Lengths are rounded up so that only their first four binary digits count (up to 16 not at all, 17 to 18, 33 to 36,
    at most an eighth), and sentences of one rounded length are shuffled. Batches are cut from the sorted rounded
    lengths, which are the same every epoch: so is their number, and a batch has a place in the order that depends on
    (seed, epoch) alone. A sentence longer than the budget is a batch of its own; see `over_budget`.

    Raises:
        UserError: a budget below 1, or fewer than `least` sentences.

    Example:
        >>> import torch
        >>> batches = TokenBatches(torch.tensor([3, 9, 3, 2, 8]), budget=16, seed=0)
        >>> sorted(sorted(batch) for batch in batches)
        [[0, 2, 3], [1], [4]]
    """

    def __init__(self, lengths: Tensor, budget: int, seed: int, *, least: int = 1) -> None:
        if not isinstance(budget, int) or budget < 1:
            raise UserError(f"Expected setting `tokens` to be a whole number above 0, but got {budget!r}.")
        if len(lengths) < least:
            raise UserError(f"Expected at least {least} sentences to make batches of, but got {len(lengths)}.")
        self.seed, self.epoch = seed, 0
        true = lengths.numpy().astype(np.int64)
        # One that fits the budget must not be said to exceed it by the rounding.
        self._lengths = np.where(true <= budget, np.minimum(_rounded(true), budget), true)
        self._starts = _cuts(np.sort(self._lengths), budget, least)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; it does not count by itself."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        order = draw.permutation(len(self._lengths))
        order = order[np.argsort(self._lengths[order], kind="stable")]
        ends = np.append(self._starts[1:], len(order))
        for place in draw.permutation(len(self._starts)):
            yield order[self._starts[place] : ends[place]].tolist()


def over_budget(lengths: Tensor, budget: int) -> tuple[str, ...]:
    """What is to be said of pairs that are longer than the budget of a batch: a sentence or none.

    Args:
        lengths, budget: as in `TokenBatches`.

    Example:
        >>> import torch
        >>> over_budget(torch.tensor([3, 9, 17]), 16)
        ('1 training pairs have more than the 16 tokens of a batch, the longest 17: each is a batch of its own.',)
    """
    alone = int((lengths > budget).sum())
    if not alone:
        return ()
    return (
        f"{alone:,} training pairs have more than the {budget:,} tokens of a batch, the longest "
        f"{int(lengths.max()):,}: each is a batch of its own.",
    )


def _rounded(lengths: np.ndarray) -> np.ndarray:
    step = 2 ** np.maximum(0, np.floor(np.log2(np.maximum(lengths - 1, 1))).astype(np.int64) - 3)
    return -(-lengths // step) * step


def _cuts(lengths: np.ndarray, budget: int, least: int) -> np.ndarray:
    """Where batches start among rising lengths: as many in each as the budget allows, but at least `least`."""
    starts, first = [], 0
    for place, length in enumerate(lengths.tolist()):
        full = (place - first + 1) * length > budget and place - first >= least
        if place == first or (full and len(lengths) - place >= least):
            starts.append(place)
            first = place
    return np.array(starts, dtype=np.int64)
