"""The figures of a report, as matplotlib Figures that need no display and no pyplot; small enough for a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labo.report.measures import Measure
from labo.report.svg import ABOVE, BELOW, BLANK, GRID, INK, MUTED, SERIES
from labo.report.verdict import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.6  # inches; 346 CSS pixels, the width of a phone
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKERS = ("o", "s", "^", "D")
MAX_CLASSES = 40  # of a label map
_LEVELS = 8  # of colour, on either side of the even share
Matrix = Sequence[Sequence[float | None]]


def shorten(name: str, length: int = 34) -> str:
    """`name` on one line, cut to `length` characters with an ellipsis, and safe from matplotlib's own markup."""
    name = " ".join(name.split())
    name = name if len(name) <= length else name[: length - 1] + "…"
    # A dollar sign begins a formula, and a legend leaves out what begins with an underscore.
    return name.replace("$", r"\$").replace("_", "\u200b_", 1 if name.startswith("_") else 0)


def seed_dots(measure: Measure, estimates: dict[str, Estimate], order: Sequence[str]) -> Figure:
    """A row per method: a dot per seed, the mean and its 95% interval beneath. `order` decides the colours."""
    rows = [(name, estimate) for name, estimate in estimates.items() if estimate.values]
    height = 0.62 + 0.46 * len(rows)
    figure, axes = _panel(measure.label, height, "higher is better" if measure.higher_is_better else "lower is better")
    for row, (name, estimate) in enumerate(rows):
        colour, factor = _colour(order.index(name)), measure.factor
        values = [value * factor for value in estimate.values.values()]
        axes.plot(values, [row] * len(values), "o", color=colour, ms=4.2, alpha=0.45, mew=0, clip_on=False)
        mean = (estimate.mean or 0.0) * factor
        if estimate.half_width is not None:
            half = estimate.half_width * factor
            axes.plot([mean - half, mean + half], [row + 0.22] * 2, color=colour, lw=2, solid_capstyle="round")
        axes.plot([mean], [row + 0.22], marker="D", color=colour, ms=5, mew=0)
        axes.annotate(
            shorten(name), (0, row - 0.18), xycoords=("axes fraction", "data"), size=8.5, color=INK, va="bottom"
        )
    axes.set_ylim(len(rows) - 0.45, -0.75)
    axes.set_yticks([])
    axes.margins(x=0.06)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color=GRID, lw=0.8)
    if measure.unit:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}{measure.unit}")
    return figure


def reliability(method: str, raw: Sequence[dict], scaled: Sequence[dict], colour_index: int, subtitle: str) -> Figure:
    """Accuracy against confidence before (hollow, dashed) and after (filled, solid) temperature scaling."""
    figure, axes = _panel(shorten(method), 3.3, subtitle)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (2, 2)))
    for bins, style, fill, label in (
        (raw, (0, (4, 2)), "none", "as trained"),
        (scaled, "-", None, "temperature-scaled"),
    ):
        points = [(entry["confidence"], entry["accuracy"], entry["count"]) for entry in bins if entry["count"]]
        if not points:
            continue
        total = sum(count for *_, count in points)
        x, y = [point[0] for point in points], [point[1] for point in points]
        colour = _colour(colour_index)
        axes.plot(x, y, ls=style, color=colour, lw=1.3, marker="o", ms=4.5, mec=colour, mfc=fill or colour, label=label)
        for confidence, accuracy, count in points:  # bins with few examples are drawn small: they say little
            size = 3 + 17 * (count / total) ** 0.5
            axes.plot([confidence], [accuracy], "o", color=colour, ms=size, alpha=0.18, mew=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.25, 0.5, 0.75, 1], yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(color=GRID, lw=0.8)
    axes.legend(loc="lower right", frameon=False, fontsize=8, labelcolor=INK, handlelength=2.2, borderaxespad=0.2)
    return figure


def curves(
    title: str,
    subtitle: str,
    lines: dict[str, tuple[list, list]],
    order: Sequence[str],
    *,
    x_label: str = "epoch",
    whole: bool = False,
    unit: str = "",
) -> Figure:
    """Epochs across, one line per method: `lines` maps it to (epochs, mean over seeds).

    `whole` shows all values, not those after the first fifth of the epochs; `unit` is of the values.
    """
    from matplotlib.ticker import MaxNLocator

    rows = (len(lines) + 1) // 2
    figure, axes = _panel(title, 2.7 + 0.2 * rows, subtitle, below=0.3 + 0.2 * rows)
    for name, (epochs, values) in lines.items():
        index = order.index(name)
        marker = "o" if len(epochs) == 1 else None
        axes.plot(
            epochs, values, color=_colour(index), ls=_DASHES[index % 4], lw=1.5, label=shorten(name, 22), marker=marker
        )
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.margins(x=0.02)
    axes.set_ylim(*_limits(list(lines.values()), 0.0 if whole else 0.2))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.locator_params(axis="y", nbins=5)
    if unit:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axes.set_xlabel(x_label, size=8, color=MUTED, loc="right", labelpad=1)
    figure.legend(
        loc="lower left", ncols=2, frameon=False, fontsize=8, labelcolor=INK, handlelength=2.4, borderaxespad=0.2,
        columnspacing=1.2, handletextpad=0.6,
    )  # fmt: skip
    return figure


def _limits(lines: Sequence[tuple[list, list]], start: float) -> tuple[float, float]:
    """The limits of the values after the fraction `start` of the epochs: a steep start does not flatten the rest."""
    last = max(epochs[-1] for epochs, _ in lines)
    pairs = [pair for epochs, values in lines for pair in zip(epochs, values, strict=True)]
    values = [value for epoch, value in pairs if epoch > start * last] or [value for _, value in pairs]
    margin = 0.06 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 0.05
    return min(values) - margin, max(values) + margin


def sensitivity(
    method: str, subtitle: str, points: Sequence[tuple[float, Sequence[float]]], colour_index: int, unit: str
) -> Figure:
    """Scores over the strength of a method: `points` are (strength, scores by tuning seed) of each candidate."""
    figure, axes = _panel(shorten(method), 2.3, subtitle, below=0.31)
    colour = _colour(colour_index)
    best: dict[float, float] = {}
    for value, scores in points:
        mean = sum(scores) / len(scores)
        axes.plot([value] * len(scores), scores, "o", mec=colour, mfc="none", ms=4, alpha=0.6)
        axes.plot([value], [mean], "o", color=colour, ms=5.5, mew=0)
        best[value] = max(mean, best.get(value, mean))
    values = sorted(best)
    axes.plot(values, [best[value] for value in values], color=colour, lw=1.3)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.margins(x=0.06, y=0.1)
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=4)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    return figure


def score_over_cost(
    measure: Measure, title: str, subtitle: str, estimates: dict[str, Estimate], costs: dict[str, float]
) -> Figure:
    """The mean of a measure with its 95% interval over the cost relative to the baseline's, a marker per method.

    The order of `estimates` decides the colours; `costs` are of some of these methods.
    """
    rows, order = (len(costs) + 1) // 2, list(estimates)
    figure, axes = _panel(
        f"{measure.label} {title}", 2.9 + 0.2 * rows, subtitle, below=0.3 + 0.2 * rows,
    )  # fmt: skip
    for name, ratio in costs.items():
        estimate, index = estimates[name], order.index(name)
        mean, half = (estimate.mean or 0.0) * measure.factor, (estimate.half_width or 0.0) * measure.factor
        marker = _MARKERS[index // len(SERIES) % len(_MARKERS)]
        axes.plot([ratio, ratio], [mean - half, mean + half], color=_colour(index), lw=1.2, alpha=0.6)
        axes.plot([ratio], [mean], marker, color=_colour(index), ms=6, mew=0, label=shorten(name, 22), ls="none")
    axes.grid(color=GRID, lw=0.8)
    axes.margins(x=0.08, y=0.08)
    axes.locator_params(axis="x", nbins=6)
    axes.locator_params(axis="y", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: f"×{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{measure.unit}")
    figure.legend(
        loc="lower left", ncols=2, frameon=False, fontsize=8, labelcolor=INK, handlelength=1.2, borderaxespad=0.2,
        columnspacing=1.2, handletextpad=0.4,
    )  # fmt: skip
    return figure


def _colour(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _panel(title: str, height: float, subtitle: str = "", below: float = 0.3) -> tuple[Figure, Axes]:
    """A figure with one axes, a title at its left and no frame; fixed margins, for panels in a grid to align."""
    figure, axes = blank(title, height, subtitle)
    left = 0.42 if below > 0.3 or height == 3.3 else 0.12
    axes.set_position((left / WIDTH, below / height, (WIDTH - left - 0.14) / WIDTH, (height - below - 0.5) / height))
    return figure, axes


def blank(title: str, height: float, subtitle: str = "") -> tuple[Figure, Axes]:
    """A figure with a title line and an axes without frame, ticks as short as can be."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    axes: Any = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    figure.text(0.035, 1 - 0.08 / height, title, size=10, weight="bold", color=INK, va="top")
    figure.text(0.035, 1 - 0.27 / height, subtitle, size=8, color=MUTED, va="top")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED, pad=4)
    return figure, axes


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
    ratios = sorted(
        abs(value) for labels in matrices for row in relative_to_even(labels) for value in row if value is not None
    )
    return min(3.0, max(0.01, ratios[int(0.98 * (len(ratios) - 1))])) if ratios else 1.0


def label_map(method: str, labels: Matrix, classes: Sequence[str], reach: float) -> Figure:
    """Rows are the true class; colour says how much more (or less) than an even share the label gives to each other."""
    size = min(len(labels), MAX_CLASSES)
    own = [labels[index][index] for index in range(len(labels))]
    known = [value for value in own if value is not None]
    subtitle = f"on the true class: {sum(known) / len(known):.3f} on average" if known else "row: true class"
    figure, axes, left, height, width = _class_grid(method, subtitle, classes, size, below=0.62)
    _draw(axes, [row[:size] for row in relative_to_even(labels)[:size]], reach)
    if size <= 12:
        for index, value in enumerate(own[:size]):
            text = "" if value is None else f"{value:.2f}".removeprefix("0")
            axes.text(index + 0.5, index + 0.5, text, size=7.5, color=INK, ha="center", va="center")
    _scale(figure, left, height, width, reach)
    return figure


def channel_map(matrix: Matrix, classes: Sequence[str], subtitle: str) -> Figure:
    """Rows are the true class, columns the label as written; colour is a share of the row, numbers are percent."""
    size = len(matrix)
    figure, axes, *_ = _class_grid("Label as written, by true class", subtitle, classes, size, below=0.2)
    shares = [
        [None if row == column else value for column, value in enumerate(line)] for row, line in enumerate(matrix)
    ]
    reach = max((value for line in shares for value in line if value is not None), default=0.0)
    _draw(axes, shares, max(1.5 * reach, 0.2))  # numbers stay readable on the colour, and few wrong labels pale
    if size <= 12:
        for row, line in enumerate(matrix):
            for column, value in enumerate(line):
                if value is not None and value >= 0.005:
                    axes.text(
                        column + 0.5, row + 0.5, f"{100 * value:.0f}", size=7, color=INK, ha="center", va="center"
                    )
    return figure


def _class_grid(
    title: str, subtitle: str, classes: Sequence[str], size: int, *, below: float
) -> tuple[Figure, Axes, float, float, float]:
    """(figure, axes of `size` by `size` cells with the classes beside them, its left, height and width in inches)."""
    names = [shorten(str(name), 12) for name in classes[:size]]
    longest = max((len(name) for name in names), default=1)
    slanted = longest > 3
    left, right, top = 0.2 + 0.065 * longest, 0.14, 0.66
    if slanted:  # names over the columns lean to the right: they need room above, and beside the last column
        right, top = right + 0.04 * longest, top + 0.04 * longest
    width = WIDTH - left - right
    height = top + width + below
    figure, axes = blank(shorten(title), height, subtitle)
    axes.set_position((left / WIDTH, below / height, width / WIDTH, width / height))
    step = math.ceil(size / 12)
    ticks = range(0, size, step)
    labelled = [names[index] if len(names) > index else "" for index in ticks]
    axes.set_xticks([index + 0.5 for index in ticks], labelled)
    axes.set_yticks([index + 0.5 for index in ticks], labelled)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=7.5, pad=3)
    if slanted:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="left", rotation_mode="anchor")
    axes.set(xlim=(0, size), ylim=(size, 0))
    return figure, axes, left, height, width


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
