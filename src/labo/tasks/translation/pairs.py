"""Sentences and their translations, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from labo.errors import UserError


@dataclass(frozen=True)
class Pairs:
    """N sentences and N translations of them, line for line.

    `places` say where they stood in their files, counted from 0; None stands for 0 to N - 1.
    """

    source: list[str]
    target: list[str]
    places: list[int] | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: Sequence[int]) -> Pairs:
        """The pairs at these places, in this order."""
        places = list(indices) if self.places is None else [self.places[i] for i in indices]
        return Pairs([self.source[i] for i in indices], [self.target[i] for i in indices], places)

    def joined(self, other: Pairs) -> Pairs:
        """These pairs, then the others, as if they had stood in one file."""
        return Pairs(self.source + other.source, self.target + other.target)

    def without_empty(self) -> tuple[Pairs, int]:
        """(the pairs that say something on both sides, how many do not).

        Example:
            >>> Pairs(["eins", " "], ["one", "two"]).without_empty()
            (Pairs(source=['eins'], target=['one']), 1)
        """
        kept = [i for i, (one, other) in enumerate(zip(self.source, self.target, strict=True)) if _says(one, other)]
        return (self if len(kept) == len(self) else self.take(kept)), len(self) - len(kept)


def matched(source: list[str], target: list[str], source_name: str, target_name: str) -> Pairs:
    """Line for line, the pairs of two files.

    Raises:
        UserError: one file has more lines, or has nothing but empty ones.

    Example:
        >>> matched(["eins", "zwei"], ["one"], "a.de", "a.en")
        Traceback (most recent call last):
        labo.errors.UserError: Expected 'a.de' and 'a.en' to have as many lines, but got 2 and 1: line 2 of 'a.de' has \
no partner.
    """
    if len(source) != len(target):
        longer = source_name if len(source) > len(target) else target_name
        raise UserError(
            f"Expected '{source_name}' and '{target_name}' to have as many lines, but got {len(source)} and "
            f"{len(target)}: line {min(len(source), len(target)) + 1} of '{longer}' has no partner."
        )
    for lines, name in ((source, source_name), (target, target_name)):
        if not any(line.strip() for line in lines):
            raise UserError(f"Expected '{name}' to hold sentences, but got {len(lines)} empty lines.")
    return Pairs(source, target)


def wrong_targets(target: list[str], share: float, kind: str, generator: torch.Generator) -> list[str]:
    """Label noise for text: exactly round(share * N) of N translations replaced by that of another pair.

    "symmetric" takes that of any other pair, "pair" that of the next one. Where that is the same text, the first
    different one after it is taken.

    Raises:
        UserError: all translations are the same.

    Example:
        >>> wrong_targets(["one", "two", "two"], 1.0, "pair", torch.Generator())
        ['two', 'one', 'one']
    """
    count = len(target)
    chosen = torch.randperm(count, generator=generator)[: round(share * count)]
    steps = torch.ones_like(chosen)
    if kind == "symmetric" and count > 1:
        steps = torch.randint(1, count, chosen.shape, generator=generator)
    if len(chosen) and len(set(target)) == 1:
        raise UserError("Expected at least two different translations for label noise, but got the same in all pairs.")
    found = list(target)
    for place, step in zip(chosen.tolist(), steps.tolist(), strict=True):
        other = (place + step) % count
        while target[other] == target[place]:
            other = (other + 1) % count
        found[place] = target[other]
    return found


def _says(one: str, other: str) -> bool:
    return bool(one.strip()) and bool(other.strip())
