"""The critical-difference diagram: methods on an axis of average ranks, bars over those that do not differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labo.report.figures import WIDTH, blank, shorten
from labo.report.svg import GRID, INK, MUTED, SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = 0.27  # inches


def critical_difference(ranks: Mapping[str, float], distance: float) -> Figure:
    """A row per method at its average rank, the best first; below them a bar over each group that does not differ.

    Args:
        ranks: the average rank of each method.
        distance: ranks that differ by less are not significantly different.
    """
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    groups = cliques([rank for _, rank in ordered], distance)
    rows = len(ordered) + 0.6 * len(groups)
    height = 0.95 + _ROW * rows
    figure, axes = blank("Average rank", height, f"1 is the best; critical difference {distance:.2f}")
    left, right = 0.16, 0.2
    axes.set_position((left / WIDTH, 0.34 / height, (WIDTH - left - right) / WIDTH, _ROW * rows / height))
    last = max(len(ordered), math.ceil(ordered[-1][1]))
    axes.grid(axis="x", color=GRID, lw=0.8)
    middle = (1 + last) / 2
    for row, (name, rank) in enumerate(ordered):
        axes.plot([rank], [row], "o", color=SERIES[0], ms=5.5, mew=0)
        before = rank > middle  # the name has more room on its other side
        axes.annotate(
            f"{shorten(name, 22)}  {rank:.2f}" if before else f"{rank:.2f}  {shorten(name, 22)}", (rank, row),
            xytext=(-7 if before else 7, 0), textcoords="offset points", size=8.5, color=INK,
            ha="right" if before else "left", va="center",
        )  # fmt: skip
    for index, (first, end) in enumerate(groups):
        place = len(ordered) - 0.4 + 0.6 * index
        low, high = ordered[first][1], ordered[end][1]
        axes.plot([low - 0.03, high + 0.03], [place, place], color=MUTED, lw=4, solid_capstyle="round")
    axes.set(xlim=(0.8, last + 0.2), ylim=(rows - 0.4, -0.6), yticks=[])
    axes.set_xticks(range(1, last + 1, max(1, math.ceil(last / 8))))
    return figure


def cliques(ranks: Sequence[float], distance: float) -> list[tuple[int, int]]:
    """(first, last) index of each largest group of sorted ranks within `distance`, of two or more.

    Example:
        >>> cliques([1.0, 1.5, 2.8, 4.0], 1.4)
        [(0, 1), (1, 2), (2, 3)]
    """
    groups: list[tuple[int, int]] = []
    for first, lowest in enumerate(ranks):
        end = max(index for index, rank in enumerate(ranks) if rank - lowest < distance)
        if end > first and not (groups and groups[-1][1] >= end):
            groups.append((first, end))
    return groups
