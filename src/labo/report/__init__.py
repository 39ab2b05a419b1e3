"""Reports from recorded trials: the verdict, tables, figures and one self-contained page.

matplotlib, jinja2 and rich are imported only when a report is drawn or rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labo.records.comparison import Recorded
    from labo.report.model import Report
    from labo.report.verdict import Summary

__all__ = ["build", "summarize"]


Shifts = Sequence[tuple[str, int]]


def summarize(
    comparison: str | Path | Recorded,
    baseline: str | None = None,
    *,
    shifts: Shifts | None = None,
    margin: float | None = None,
) -> Summary:
    """The verdict on a comparison: its folder, or what was read from it.

    `shifts` are the (kind, severity) pairs that the accuracy on shifted inputs is the mean over; by default those that
    its shift.jsonl has of every measured trial. `baseline` defaults to that of the comparison, else label_smoothing
    where it was run, else the first method. Differences within ±`margin` points of accuracy or BLEU are practically
    none; by default it is that of the comparison, else 0.5. Raises UserError where nothing is recorded, `baseline` was
    not run or `margin` is not above 0.
    """
    return _summarize(_with_shifts(comparison, shifts), baseline, margin)


def build(
    comparison: str | Path | Recorded,
    *,
    baseline: str | None = None,
    samples: bool = True,
    shifts: Shifts | None = None,
    margin: float | None = None,
) -> Path:
    """Writes report.md, figures/*.svg and report.html into the folder of a comparison; returns that of report.html.

    `comparison`, `baseline`, `shifts` and `margin` are those of `summarize`. `samples=False` leaves out images and
    sentences of the data, and the page says so. Where run folders are missing, the page says which figures are left
    out. Raises UserError where nothing is recorded, `baseline` was not run, `margin` is not above 0, or the folder
    cannot be written.
    """
    from labo.report import compose

    recorded = _with_shifts(comparison, shifts)
    report = compose.report(recorded, _summarize(recorded, baseline, margin), samples=samples)
    return write(report, recorded.directory)


def write(report: Report, directory: Path) -> Path:
    """Write report.md, figures/*.svg and report.html into a folder, which is made; returns the path of report.html.

    Raises:
        UserError: the folder cannot be written.
    """
    from labo.errors import UserError
    from labo.records.storage import write_text
    from labo.report import render
    from labo.report.svg import standalone

    try:
        folder = directory / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for figure in report.figures():
            write_text(folder / f"{figure.name}.svg", standalone(figure.svg))
        write_text(directory / "report.md", render.markdown(report))
        return write_text(directory / "report.html", render.html(report))
    except OSError as error:
        raise UserError(f"Cannot write the report into '{directory}': {error.strerror or error}.") from error


def _summarize(recorded: Recorded, baseline: str | None, margin: float | None) -> Summary:
    from labo.report.equivalence import DEFAULT_MARGIN, check_margin
    from labo.report.measures import number
    from labo.report.verdict import summarize_records

    preferred = recorded.comparison.get("baseline")
    if margin is None:
        margin = number(recorded.comparison.get("margin")) or DEFAULT_MARGIN
    return summarize_records(
        recorded.records,
        baseline,
        preferred=preferred if isinstance(preferred, str) else None,
        margin=check_margin(margin),
    )


def _with_shifts(comparison: str | Path | Recorded, shifts: Shifts | None) -> Recorded:
    from labo.records.comparison import read
    from labo.report.post_hoc import with_shifts

    return with_shifts(read(comparison) if isinstance(comparison, str | Path) else comparison, shifts)
