"""The heat map of the labels that a regularizer gives: class by class, with the diagonal told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from labo.report.figures import WIDTH, blank, shorten
from labo.report.svg import ABOVE, BELOW, BLANK, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Matrix = Sequence[Sequence[float | None]]
MOST_CLASSES = 40
_LEVELS = 8


def relative_to_even(labels: Matrix) -> list[list[float | None]]:
    """log2 of each off-diagonal entry over the mean off-diagonal entry of its row; None on the diagonal or unknown.

    0 is what label smoothing gives (the mass on the other classes is spread evenly), 1 twice that, -1 half of it.
    The diagonal is one or two orders larger than the rest, so a common scale would show nothing but the diagonal.
    """
    rows: list[list[float | None]] = []
    for true, row in enumerate(labels):
        others = [value for other, value in enumerate(row) if other != true and value is not None]
        even = sum(others) / len(others) if others else 0.0
        rows.append(
            [
                None if other == true or value is None or even <= 0 else math.log2(max(value / even, 2.0**-10))
                for other, value in enumerate(row)
            ]
        )
    return rows


def common_reach(matrices: Sequence[Matrix]) -> float:
    """The end of the colour scale that all maps share: the 98th percentile of |log2 ratio|, from 0.01 to 3."""
    found = sorted(
        abs(value) for labels in matrices for row in relative_to_even(labels) for value in row if value is not None
    )
    return min(3.0, max(0.01, found[int(0.98 * (len(found) - 1))])) if found else 1.0


def label_map(method: str, labels: Matrix, classes: Sequence[str], reach: float) -> Figure:
    """Rows are the true class; colour says how much more (or less) than an even share the label gives to each other."""
    size = min(len(labels), MOST_CLASSES)
    own = [labels[index][index] for index in range(len(labels))]
    known = [value for value in own if value is not None]
    subtitle = f"on the true class: {sum(known) / len(known):.3f} on average" if known else "row: true class"
    names = [shorten(str(name), 12) for name in classes[:size]]
    longest = max((len(name) for name in names), default=1)
    slanted = longest > 3
    left, right, top = 0.2 + 0.065 * longest, 0.14, 0.66
    if slanted:  # names over the columns lean to the right: they need room above, and beside the last column
        right, top = right + 0.04 * longest, top + 0.04 * longest
    width = WIDTH - left - right
    height = top + width + 0.62
    figure, axes = blank(shorten(method), height, subtitle)
    axes.set_position((left / WIDTH, 0.62 / height, width / WIDTH, width / height))
    _draw(axes, [row[:size] for row in relative_to_even(labels)[:size]], reach)
    if size <= 12:
        for index, value in enumerate(own[:size]):
            text = "" if value is None else f"{value:.2f}".removeprefix("0")
            axes.text(index + 0.5, index + 0.5, text, size=7.5, color=INK, ha="center", va="center")
    step = math.ceil(size / 12)
    places = list(range(0, size, step))
    axes.set_xticks([place + 0.5 for place in places], [names[place] if len(names) > place else "" for place in places])
    axes.set_yticks([place + 0.5 for place in places], [names[place] if len(names) > place else "" for place in places])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=7.5, pad=3)
    if slanted:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="left", rotation_mode="anchor")
    axes.set(xlim=(0, size), ylim=(size, 0))
    _scale(figure, left, height, width, reach)
    return figure


def _draw(axes: Axes, ratios: list[list[float | None]], reach: float) -> None:
    """The cells, one path per colour level, so that a map of a thousand cells stays a small file."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    cells: dict[int | None, list[Path]] = {}
    for row, values in enumerate(ratios):
        for column, value in enumerate(values):
            level = None if value is None else round(max(-1.0, min(1.0, value / reach)) * _LEVELS)
            gap = 0.03
            corners = [(column + gap, row + gap), (column + 1 - gap, row + gap), (column + 1 - gap, row + 1 - gap),
                       (column + gap, row + 1 - gap), (column + gap, row + gap)]  # fmt: skip
            cells.setdefault(level, []).append(Path(corners, closed=True))
    for level, paths in cells.items():
        colour, opacity = _level(level)
        axes.add_patch(PathPatch(Path.make_compound_path(*paths), fc=colour, alpha=opacity, lw=0))


def _level(level: int | None) -> tuple[str, float]:
    if level is None or level == 0:
        return BLANK, 0.45 if level is None else 1.0
    return (ABOVE if level > 0 else BELOW), 0.06 + 0.9 * abs(level) / _LEVELS


def _scale(figure: Figure, left: float, height: float, width: float, reach: float) -> None:
    axes = figure.add_axes((left / WIDTH, 0.3 / height, width / WIDTH, 0.09 / height))
    _draw(axes, [[reach * level / _LEVELS for level in range(-_LEVELS, _LEVELS + 1)]], reach)
    axes.set(xlim=(0, 2 * _LEVELS + 1), ylim=(0, 1), yticks=[])
    ends = [f"×{2**-reach:.2f}", "an even share", f"×{2**reach:.2f}"]
    axes.set_xticks([0, _LEVELS + 0.5, 2 * _LEVELS + 1], ends)
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set(ha=side)
    axes.tick_params(length=0, labelsize=7.5, labelcolor=MUTED, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
