"""Methods over several tasks: ranks, the tests of Friedman and Nemenyi, and win rates."""

from __future__ import annotations

import math
from collections.abc import Sequence


def average_ranks(scores: Sequence[Sequence[float]]) -> list[float]:
    """The mean rank of each method over tasks; 1 is the best, equal scores share the mean of their ranks.

    Args:
        scores: a row per task, a column per method; higher is better.

    Example:
        >>> average_ranks([[0.9, 0.8, 0.7], [0.6, 0.6, 0.5]])
        [1.25, 1.75, 3.0]
    """
    from scipy.stats import rankdata

    ranks = [rankdata([-score for score in row]) for row in scores]
    return [math.fsum(column) / len(ranks) for column in zip(*ranks, strict=True)]


def friedman_test(scores: Sequence[Sequence[float]]) -> float | None:
    """The p-value of Friedman's test that all methods rank alike; None below three methods or two tasks.

    Where all methods score alike on every task it is 1.

    Args:
        scores: as in `average_ranks`.

    Source: Friedman, Journal of the American Statistical Association 32, 1937.
    """
    if len(scores) < 2 or len(scores[0]) < 3:
        return None
    if all(len(set(row)) == 1 for row in scores):
        return 1.0
    from scipy.stats import friedmanchisquare

    return float(friedmanchisquare(*zip(*scores, strict=True)).pvalue)


def critical_difference(methods: int, tasks: int, level: float = 0.05) -> float:
    """How far two average ranks must differ to be significantly different by Nemenyi's test.

    Args:
        methods, tasks: their numbers; at least two methods and one task.
        level: of significance.

    Source: Demšar, *Statistical Comparisons of Classifiers over Multiple Data Sets*, JMLR 7, 2006, section 3.2.2.

    Example:
        >>> round(critical_difference(5, 30), 3)  # 2.728 sqrt(5 · 6 / (6 · 30))
        1.114
    """
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - level, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * tasks))


def win_rate(wins: int, losses: int, level: float = 0.95) -> tuple[float, float, float] | None:
    """(the fraction of wins among wins and losses, and Wilson's interval of it); None without any.

    Source: Wilson, Journal of the American Statistical Association 22, 1927.

    Example:
        >>> [round(value, 3) for value in win_rate(9, 1)]
        [0.9, 0.596, 0.982]
    """
    if not wins + losses:
        return None
    from scipy.stats import binomtest

    interval = binomtest(wins, wins + losses).proportion_ci(level, method="wilson")
    return wins / (wins + losses), float(interval.low), float(interval.high)
