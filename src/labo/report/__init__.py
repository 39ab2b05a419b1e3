"""Reports from recorded trials: the verdict, tables, figures and one self-contained page.

matplotlib, jinja2 and rich are imported only when a report is drawn or rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labo.report.reading import Recorded
    from labo.report.verdict import Summary

__all__ = ["build", "summarize"]


Shifts = Sequence[tuple[str, int]]


def summarize(directory: str | Path, baseline: str | None = None, *, shifts: Shifts | None = None) -> Summary:
    """The verdict on the trials recorded under `directory`.

    `shifts` are the (kind, severity) pairs that the accuracy on shifted inputs is the mean over; by default those that
    its shift.jsonl has of every measured trial. `baseline` defaults to that of the comparison, else label_smoothing
    where it was run, else the first method. Raises UserError where nothing is recorded or `baseline` was not run.
    """
    return summarize_recorded(_read(directory, shifts), baseline)


def summarize_recorded(recorded: Recorded, baseline: str | None = None) -> Summary:
    """The verdict on what was read from a folder; `baseline` is that of `summarize`."""
    from labo.report.verdict import summarize_records

    preferred = recorded.comparison.get("baseline")
    return summarize_records(recorded.records, baseline, preferred=preferred if isinstance(preferred, str) else None)


def build(
    directory: str | Path, *, baseline: str | None = None, samples: bool = True, shifts: Shifts | None = None
) -> Path:
    """Writes report.md, figures/*.svg and report.html into `directory`; returns the path of report.html.

    `baseline` and `shifts` are those of `summarize`. `samples=False` leaves out images and sentences of the data, and
    the page says so. Where run folders are missing, the page says which figures are left out. Raises UserError where
    nothing is recorded, `baseline` was not run, or `directory` cannot be written.
    """
    recorded = _read(directory, shifts)
    return write(recorded, summarize_recorded(recorded, baseline), samples=samples)


def write(recorded: Recorded, summary: Summary, *, samples: bool = True) -> Path:
    """Writes the report of what was read from a folder into it, as `build` does."""
    from labo.errors import UserError
    from labo.report import compose, render
    from labo.report.svg import standalone

    report, directory = compose.report(recorded, summary, samples=samples), recorded.directory
    try:
        folder = directory / "figures"
        folder.mkdir(exist_ok=True)
        for figure in report.figures():
            (folder / f"{figure.name}.svg").write_text(standalone(figure.svg), encoding="utf-8")
        (directory / "report.md").write_text(render.markdown(report), encoding="utf-8")
        page = directory / "report.html"
        page.write_text(render.html(report), encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write the report into '{directory}': {error.strerror or error}.") from error
    return page


def _read(directory: str | Path, shifts: Shifts | None) -> Recorded:
    from labo.report.post_hoc import with_shifts
    from labo.report.reading import read

    return with_shifts(read(directory), shifts)
