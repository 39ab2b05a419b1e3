"""Reports from recorded trials: the verdict, tables, figures and one self-contained page.

matplotlib and rich are imported only when a figure or a console table is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labo.records.comparison import Recorded
    from labo.report.verdict import Summary

__all__ = ["build", "summarize"]


Shifts = Sequence[tuple[str, int]]


def summarize(
    comparison: str | Path | Recorded, baseline: str | None = None, *, shifts: Shifts | None = None
) -> Summary:
    """The verdict on a comparison: its folder, or what was read of it.

    `shifts` are the (kind, severity) pairs that the accuracy on shifted inputs is the mean over; by default those that
    its shift.jsonl has of every measured trial. `baseline` defaults to the one the comparison was made with, else
    label_smoothing where it was run, else the first method. Raises UserError where nothing is recorded or `baseline`
    was not run.
    """
    from labo.report.shifts import with_shifts

    return _summarize(with_shifts(_recorded(comparison), shifts), baseline)


def build(
    comparison: str | Path | Recorded,
    *,
    baseline: str | None = None,
    samples: bool = True,
    shifts: Shifts | None = None,
) -> Path:
    """Writes report.md, figures/*.svg and report.html into a comparison's folder; returns the path of report.html.

    `comparison`, `baseline` and `shifts` are those of `summarize`.

    `samples=False` promises a report without pictures or sentences of the data, and the page says so. Figures whose
    run folders are missing are left out with a word. Raises UserError where nothing is recorded, `baseline` was not
    run, or the folder cannot be written.
    """
    from labo.errors import UserError
    from labo.report.gallery import groups, slug
    from labo.report.page import page
    from labo.report.shifts import with_shifts
    from labo.report.svg import standalone
    from labo.report.tables import markdown

    recorded = with_shifts(_recorded(comparison), shifts)
    directory = recorded.directory
    summary = _summarize(recorded, baseline)
    several = len(summary.tasks) > 1
    pictures = {
        task.task: groups(recorded, task, f"{index}-{slug(task.task)}-" if several else "")
        for index, task in enumerate(summary.tasks)
    }
    try:
        folder = directory / "figures"
        folder.mkdir(exist_ok=True)
        for group in (group for found in pictures.values() for group in found):
            for picture in group.pictures:
                _write(folder / f"{picture.name}.svg", standalone(picture.svg))
        _write(directory / "report.md", markdown(recorded, summary, pictures))
        return _write(directory / "report.html", page(recorded, summary, pictures, samples=samples))
    except OSError as error:
        raise UserError(f"Cannot write the report into '{directory}': {error.strerror or error}.") from error


def _recorded(comparison: str | Path | Recorded) -> Recorded:
    from labo.records.comparison import read

    return read(comparison) if isinstance(comparison, str | Path) else comparison


def _summarize(recorded: Recorded, baseline: str | None) -> Summary:
    from labo.report.verdict import summarize_records

    asked = recorded.comparison.get("baseline")
    return summarize_records(recorded.records, baseline, preferred=asked if isinstance(asked, str) else None)


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
