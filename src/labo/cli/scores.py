"""Metrics as a text table."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence


def tables(rows: Mapping[str, Mapping[str, float]]) -> str:
    """`table` for each group of measures that the rows have, below one another."""
    from labo.report.measures import CALIBRATION, LEADERBOARD, SELECTIVE, present

    known = {key for metrics in rows.values() for key in metrics}
    groups = [group for group in (LEADERBOARD, CALIBRATION, SELECTIVE) if present(known, group)]
    return "\n\n".join(table(rows, group) for group in groups)


def table(rows: Mapping[str, Mapping[str, float]], group: str | None = None) -> str:
    """A table with one row per name and one column per known measure; the other way where a terminal is too narrow.

    The measures are those of a group of `labo.report.measures`, by default the leaderboard's.
    """
    from labo.report.measures import LEADERBOARD, present

    measures = present({key for metrics in rows.values() for key in metrics}, group or LEADERBOARD)
    lines = [["", *(measure.label for measure in measures)]]
    lines += [
        [name, *(measure.value(metrics.get(measure.key)) for measure in measures)] for name, metrics in rows.items()
    ]
    text = aligned(lines)
    if sys.stdout.isatty() and max(map(len, text.splitlines())) > shutil.get_terminal_size().columns:
        return aligned([*zip(*lines, strict=True)])
    return text


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, the first column left-aligned, the others right-aligned."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
