"""Significance of differences over seeds: confidence intervals, exact paired permutation tests, Holm's correction."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

# Up to this many pairs all sign assignments are enumerated; above, this many are drawn.
EXACT_PAIRS = 16
DRAWS = 50_000


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The mean of `values` and the half-width of Student's t interval (inf for one value).

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("Expected argument `values` to hold at least one value, but got none.")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.inf
    from scipy.stats import t

    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, float(t.ppf((1 + level) / 2, n - 1)) * math.sqrt(variance / n)


def sign_flip_test(differences: Sequence[float]) -> float:
    """The two-sided p-value of a mean difference, under random signs of the paired differences.

    Exact for up to `EXACT_PAIRS` pairs; above, estimated from `DRAWS` seeded draws, including the observed one. Source:
    Fisher, *The Design of Experiments*, 1935, section 21.

    Args:
        differences: one per seed, in any unit.

    Example:
        >>> sign_flip_test([0.1, 0.2, 0.3])
        0.25
    """
    return _flip(list(differences))


def stratified_sign_flip_test(groups: Sequence[Sequence[float]]) -> float:
    """`sign_flip_test` over several tasks, each task's differences scaled by their root sum of squares.

    Example:
        >>> stratified_sign_flip_test([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]])
        0.03125
    """
    scaled = []
    for group in groups:
        size = math.sqrt(math.fsum(d * d for d in group))
        scaled.extend(d / size if size else 0.0 for d in group)
    return _flip(scaled)


def _flip(differences: list[float]) -> float:
    if not differences:
        raise ValueError("Expected argument `differences` to hold at least one difference, but got none.")
    sizes = [abs(d) for d in differences]
    # Sums that differ by rounding alone are ties.
    threshold = abs(math.fsum(differences)) - 1e-9 * math.fsum(sizes)
    if len(sizes) <= EXACT_PAIRS:
        signs = list(itertools.product((1, -1), repeat=len(sizes) - 1))  # the first sign is symmetric
        return sum(abs(sizes[0] + math.fsum(map(_times, s, sizes[1:]))) >= threshold for s in signs) / len(signs)
    draw = random.Random(0)
    hits = sum(abs(sum(v if draw.random() < 0.5 else -v for v in sizes)) >= threshold for _ in range(DRAWS))
    return (hits + 1) / (DRAWS + 1)


def _times(sign: int, value: float) -> float:
    return sign * value


def smallest_p(pairs: int) -> float:
    """The smallest p-value of `sign_flip_test` for a number of pairs (1 for none)."""
    return min(1.0, 2.0 ** (1 - pairs)) if pairs <= EXACT_PAIRS else 1 / (DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given. Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
