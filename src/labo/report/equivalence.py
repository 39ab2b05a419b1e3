"""What a difference that is not significant says: practically the same, or undecided and how many seeds it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from labo.errors import UserError
from labo.metrics import equivalence, significance
from labo.wording import counted

# In points of accuracy, or of BLEU.
DEFAULT_MARGIN = 0.5


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of a difference, and the seeds that a decision takes.

    Args:
        margin: differences within ± this are practically none, in the unit of the records.
        p, p_holm: of the two one-sided tests, and after Holm's correction over the methods.
        seeds_to_tell: how many more seeds would find a difference of the size seen, with a power of 0.8.
        seeds_to_bound: how many more would show that it is within the margin.

    The numbers of seeds are None above `equivalence.MAX_SEEDS`, where the difference is not within the margin, and
    where one seed shows no spread.
    """

    margin: float
    p: float
    p_holm: float
    seeds_to_tell: int | None
    seeds_to_bound: int | None


def check_margin(margin: float) -> float:
    """`margin`, if it can be one.

    Raises:
        UserError: it is not a finite number above 0.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise UserError(f"Expected --margin to be a finite number above 0, but got {margin:g}.")
    return margin


def measure(differences: Sequence[Sequence[float]], margin: float, level: float) -> list[Equivalence]:
    """The equivalence of each method to the baseline, by its paired differences.

    Args:
        differences: one sequence a method, one value a seed.
        margin: in the same unit.
        level: of significance, after Holm.
    """
    p_values = [equivalence.tost(values, margin) for values in differences]
    corrected = significance.holm(p_values)
    # Whichever method it is, its p may be multiplied by the number of methods.
    strictest = level / max(1, len(differences))
    return [
        Equivalence(margin, p, p_holm, *_more_seeds(values, margin, strictest))
        for values, p, p_holm in zip(differences, p_values, corrected, strict=True)
    ]


def advice(found: Equivalence, seeds: int, margin: str) -> str:
    """What would decide, in a sentence; `margin` is the margin with its unit."""
    if seeds < 2:
        return "One seed shows no spread: run at least two, and more to tell a difference."
    if found.seeds_to_tell is None:
        sentence = f"More than {equivalence.MAX_SEEDS:,} seeds would be needed to tell a difference of the size seen"
    else:
        more = counted(found.seeds_to_tell, "more seed")
        sentence = f"About {more} would tell a difference of the size seen"
    if found.seeds_to_bound is not None:
        sentence += f"; about {found.seeds_to_bound:,} more, that it is within ±{margin}"
    return f"{sentence}."


def _more_seeds(values: Sequence[float], margin: float, level: float) -> tuple[int | None, int | None]:
    """(seeds beyond these to tell a difference of their mean and spread, to show that it is within the margin)."""
    if len(values) < 2:
        return None, None
    mean, spread = fmean(values), stdev(values)
    if spread <= 1e-12 * max(map(abs, values)):  # every further seed is taken to be the same
        tell, bound = (2 if mean else None), (2 if abs(mean) < margin else None)
    else:
        tell = equivalence.seeds_to_tell(mean / spread, level) if mean else None
        bound = equivalence.seeds_to_bound(mean / spread, margin / spread, level)
    if tell is not None:
        tell = max(tell, next(count for count in range(2, 100) if significance.smallest_p(count) <= level))
    tell, bound = (None if total is None else max(1, total - len(values)) for total in (tell, bound))
    return tell, bound
