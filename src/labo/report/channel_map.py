"""A fitted noise channel as a heat map, or with many classes as a table of its largest entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from labo.report import figures
from labo.report.gallery import slug
from labo.report.measures import number
from labo.report.model import Block, Cell, Figure, Figures, Table, Text
from labo.report.svg import render

__all__ = ["blocks", "slug"]

# With more classes a table has the largest entries, this many.
MAX_CLASSES, MAX_ENTRIES = 30, 20


def blocks(channel: Mapping[str, Any], classes: Sequence[str] | None, prefix: str) -> tuple[Block, ...]:
    """The share of wrong labels and the channel; () where `channel`, of a record, has no matrix.

    Args:
        channel: as `labo.outer.Channel.as_json` gives it.
        classes: their names; None for their numbers.
        prefix: begins the name of the figure.
    """
    matrix = _matrix(channel.get("matrix"))
    if matrix is None:
        return ()
    size = len(matrix)
    names = list(classes) if classes is not None and len(classes) == size else [str(index) for index in range(size)]
    temperature = number(channel.get("temperature"))
    how = "one rate for all classes" if channel.get("kind") == "symmetric" else "a rate for each pair of classes"
    fitted = "" if temperature is None else f", at a temperature of {temperature:.2f}"
    text = (
        f"P(label as written | true class), {how}, by the likelihood of labels that the channel was not fitted to"
        f"{fitted}. It is what held-out predictions and labels say together, not a count of labels that were checked."
    )
    if size > MAX_CLASSES:
        return Text(text), _largest(matrix, names)
    wrong = number(channel.get("wrong"))
    subtitle = "percent of the row" if wrong is None else f"percent of the row; {wrong:.1%} of all labels wrong"
    name = f"{prefix}channel"
    description = "Heat map of the noise channel: the share of each label as written, by true class"
    svg = render(figures.channel_map(matrix, names, subtitle), name, description)
    return (Figures((Figure(name, description, svg),), text),)


def _largest(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> Table:
    entries = [
        (value, true, label) for true, row in enumerate(matrix) for label, value in enumerate(row) if label != true
    ]
    largest = sorted(entries, key=lambda entry: (-entry[0], entry[1], entry[2]))[:MAX_ENTRIES]
    rows = tuple((Cell(names[true]), Cell(names[label]), Cell(f"{value:.1%}")) for value, true, label in largest)
    caption = f"The {len(rows)} largest entries beside the diagonal, of {len(matrix)} classes."
    return Table("The noise channel", ("True class", "Label as written", "Share"), rows, caption)


def _matrix(value: Any) -> list[list[float]] | None:
    """The (C, C) matrix of a record; None where it is missing or damaged."""
    if not isinstance(value, list) or len(value) < 2:
        return None
    for row in value:
        if not isinstance(row, list) or len(row) != len(value) or any(number(entry) is None for entry in row):
            return None
    return value
