"""Which pairs train, validate and test, where the data have no parts of their own for it."""

from __future__ import annotations

import torch

from labo.errors import UserError
from labo.tasks.translation.pairs import Pairs

# Of data without a part of their own, so many or a tenth validate and test.
MOST_DRAWN, LEAST_PAIRS = 1_000, 10

Texts = dict[str, Pairs]


def drawn(texts: Texts, train_size: int | None, generator: torch.Generator) -> tuple[Texts, list[str]]:
    """(the parts train, validation and test, what is to be said of them); `train_size` pairs train, all if None.

    Raises:
        UserError: too few pairs to draw a part from, or fewer than are to train.
    """
    found, notes = dict(texts), []
    for part in ("test", "validation"):
        if part not in found:
            found |= _divided(found["train"], part, generator)
            notes.append(f"The data have no {part} part: the seed draws {len(found[part]):,} pairs.")
    if "test" not in texts:
        trained = set(found["train"].source)
        seen = sum(line in trained for line in found["test"].source)
        if seen:
            notes.append(f"{seen:,} of the {len(found['test']):,} test sentences are trained on too.")
    if train_size is not None:
        count = len(found["train"])
        if train_size > count:
            raise UserError(f"Expected a train size from 1 to {count} (all there is), but got {train_size}.")
        chosen = torch.randperm(count, generator=generator)[:train_size].sort().values
        found["train"] = found["train"].take(chosen.tolist())
    return found, notes


def _divided(train: Pairs, part: str, generator: torch.Generator) -> Texts:
    """Training pairs without those drawn for `part`, and these; each in the order of the data."""
    count = len(train)
    if count < LEAST_PAIRS:
        raise UserError(f"Expected at least {LEAST_PAIRS} pairs to draw a {part} part from, but got {count}.")
    size = min(MOST_DRAWN, count // 10)
    order = torch.randperm(count, generator=generator)
    kept, taken = (train.take(places.sort().values.tolist()) for places in (order[size:], order[:size]))
    return {"train": kept, part: taken}
