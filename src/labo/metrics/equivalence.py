"""Equivalence of two methods over seeds, and how many seeds a difference takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

# The power that a number of seeds is for, and the largest number that is searched.
POWER, MAX_SEEDS = 0.8, 1000


def tost(differences: Sequence[float], margin: float) -> float:
    """The p-value of two one-sided paired t-tests: that the mean difference is not within ±`margin`.

    1 for a single difference, which shows no spread. Where all differences are the same, so that there is no spread
    either, 0 if they are within the margin and 1 if not.

    Args:
        differences: one per seed, in any unit.
        margin: above 0, in the same unit.

    Raises:
        ValueError: no difference, or a margin that is not above 0.

    Source: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987.

    Example:
        >>> round(tost([0.1, -0.1, 0.2, -0.2], margin=1.0), 4)  # t = 1 / 0.0913 with 3 degrees of freedom, twice
        0.0008
    """
    if not differences:
        raise ValueError("Expected argument `differences` to hold at least one difference, but got none.")
    if not margin > 0:
        raise ValueError(f"Expected argument `margin` to be above 0, but got {margin}.")
    if len(differences) == 1:
        return 1.0
    spread, mean = stdev(differences), fmean(differences)
    if spread <= 1e-12 * max(map(abs, differences)):
        return 0.0 if abs(mean) < margin else 1.0
    from scipy.stats import ttest_1samp

    tests: list[Any] = [
        ttest_1samp(differences, -margin, alternative="greater"),
        ttest_1samp(differences, margin, alternative="less"),
    ]
    return max(float(test.pvalue) for test in tests)


def seeds_to_tell(effect: float, level: float) -> int | None:
    """How many seeds a two-sided paired t-test takes to find a difference with power `POWER`.

    Args:
        effect: the mean difference in standard deviations of the differences.
        level: of the test.

    Returns:
        The number, at least 2; None where it is above `MAX_SEEDS`.

    Example:
        >>> seeds_to_tell(0.5, 0.05)  # as in the tables of Cohen, 1988
        34
    """
    from scipy.stats import nct, t

    def power(seeds: int) -> float:
        # That the test rejects on the wrong side does not matter where the power is high.
        return float(nct.sf(t.ppf(1 - level / 2, seeds - 1), seeds - 1, abs(effect) * math.sqrt(seeds)))

    return _smallest(power)


def seeds_to_bound(effect: float, margin: float, level: float) -> int | None:
    """How many seeds `tost` takes to show that a difference is within the margin with power `POWER`.

    Args:
        effect, margin: in standard deviations of the differences.
        level: of the test.

    Returns:
        As `seeds_to_tell`; None too where the effect is not within the margin.
    """
    if abs(effect) >= margin:
        return None
    from scipy.stats import nct, t

    def power(seeds: int) -> float:
        quantile, root = t.ppf(1 - level, seeds - 1), math.sqrt(seeds)
        # The probability that both tests reject is at least the sum of theirs minus 1, and close to it where large.
        return float(sum(nct.sf(quantile, seeds - 1, room * root) for room in (margin + effect, margin - effect))) - 1

    return _smallest(power)


def _smallest(power: Callable[[int], float]) -> int | None:
    """The smallest number of seeds from 2 to `MAX_SEEDS` whose power, which rises with it, is at least `POWER`."""
    low, high = 1, 2
    while not power(high) >= POWER:  # NaN, of distributions out of scipy's reach, counts as too little
        if high >= MAX_SEEDS:
            return None
        low, high = high, min(2 * high, MAX_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
