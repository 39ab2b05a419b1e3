"""Batches with a budget of tokens, of sentences of similar length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from labo.errors import UserError
from labo.wording import counted


class TokenBatches(Sampler[list[int]]):
    """A batch sampler: all N sentences once per epoch, in batches of at most `budget` tokens, padding included.

    Args:
        lengths: tokens of the longer side of each pair, end-of-sentence token included, int64 (N,); see
            `Sentences.lengths`.
        budget: maximum of (pairs in a batch) x (its longest length).
        seed: with the epoch, determines which sentences of similar length share a batch, and the order of the batches.
        least: minimum number of pairs in a batch, even over the budget; for batches that are divided.

    Lengths are rounded up to four significant binary digits (up to 16 unchanged, 17 to 18, 33 to 36, at most by an
    eighth), and sentences of equal rounded length are shuffled. Batches are cut from the sorted rounded lengths, which
    do not change: the number of batches is the same in every epoch, and the position of a batch depends on (seed,
    epoch) alone. A sentence longer than the budget is a batch of its own; see `over_budget_notes`.

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
        exact = lengths.numpy().astype(np.int64)
        # Rounding must not push a length over the budget.
        self._lengths = np.where(exact <= budget, np.minimum(_round_up(exact), budget), exact)
        self._starts = _batch_starts(np.sort(self._lengths), budget, least)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; it does not advance by itself."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self._lengths))
        order = order[np.argsort(self._lengths[order], kind="stable")]
        ends = np.append(self._starts[1:], len(order))
        for batch in generator.permutation(len(self._starts)):
            yield order[self._starts[batch] : ends[batch]].tolist()


def over_budget_notes(lengths: Tensor, budget: int) -> tuple[str, ...]:
    """A note on the pairs longer than the budget of a batch, if there are any.

    Args:
        lengths, budget: as in `TokenBatches`.

    Example:
        >>> import torch
        >>> over_budget_notes(torch.tensor([3, 9, 17]), 16)
        ('1 training pair has more than the 16 tokens of a batch, the longest 17: each is a batch of its own.',)
    """
    count = int((lengths > budget).sum())
    if not count:
        return ()
    return (
        f"{counted(count, 'training pair has', 'training pairs have')} more than the {budget:,} tokens of a batch, the "
        f"longest {int(lengths.max()):,}: each is a batch of its own.",
    )


def _round_up(lengths: np.ndarray) -> np.ndarray:
    step = 2 ** np.maximum(0, np.floor(np.log2(np.maximum(lengths - 1, 1))).astype(np.int64) - 3)
    return -(-lengths // step) * step


def _batch_starts(lengths: np.ndarray, budget: int, least: int) -> np.ndarray:
    """Start indices of batches in sorted `lengths`: as many pairs each as the budget allows, at least `least`."""
    starts, first = [], 0
    for index, length in enumerate(lengths.tolist()):
        full = (index - first + 1) * length > budget and index - first >= least
        if index == first or (full and len(lengths) - index >= least):
            starts.append(index)
            first = index
    return np.array(starts, dtype=np.int64)
