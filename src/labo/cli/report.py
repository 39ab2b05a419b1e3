"""`labo report`: tables, figures and a page from recorded trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labo.cli import options
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.records.comparison import Recorded
    from labo.report.verdict import Summary


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The output folder of a comparison.", show_default=False)
    ],
    baseline: Annotated[str | None, typer.Option(help="The method to compare to; by default the comparison's.")] = None,
    shift: options.Shift = None,
    severity: options.Severity = None,
    beams: options.Beams = None,
    no_samples: options.NoSamples = False,
) -> None:
    """Print the verdict on recorded trials, and write a report.

    The report is report.html, report.md and figures/ in DIR. With --shift or --beams, finished runs whose weights are
    kept in DIR are evaluated first; results already in shift.jsonl or beams.jsonl are not measured again.
    """
    build_and_print(directory, baseline=baseline, no_samples=no_samples, shift=shift, severity=severity, beams=beams)


def build_and_print(
    directory: Path,
    *,
    baseline: str | None,
    no_samples: bool,
    shift: str | None = None,
    severity: int | None = None,
    beams: str | None = None,
) -> Summary:
    """Build the report of a folder, print its verdict and return its summary.

    First evaluates the runs on shifted inputs or with other beams if the options request it, and runs the paired
    bootstrap of translation tasks; nothing is measured twice.
    """
    from rich.console import Console

    from labo.records.comparison import read
    from labo.report import build, compose, render, summarize

    recorded = read(directory)
    # Options that do not apply raise an error before anything is measured.
    grid, widths = options.shifts(recorded.tasks, shift, severity), options.beams(recorded.tasks, beams)
    if grid is not None or widths:
        from labo.experiment import post_hoc
        from labo.experiment.progress import ConsoleProgress

        if grid is not None:
            with ConsoleProgress() as progress:
                post_hoc.measure_shifts(recorded, grid, progress)
        if widths:
            with ConsoleProgress() as progress:
                post_hoc.measure_beams(recorded, widths, progress)
    _compare_translators(recorded, summarize(recorded, baseline))
    recorded = recorded.with_measurements()
    pairs = None if grid is None else grid.pairs
    page = build(recorded, baseline=baseline, samples=not no_samples, shifts=pairs)
    summary = summarize(recorded, baseline, shifts=pairs)
    Console(highlight=False).print(render.terminal(compose.brief(summary)))
    print(f"\nReport: {page}")
    return summary


def _compare_translators(recorded: Recorded, summary: Summary) -> None:
    """Run missing paired bootstraps; if that fails, print why and go on without them."""
    tasks = {task.task for task in summary.tasks if task.main.of_text}
    if not tasks:
        return
    from labo.experiment import paired_bootstrap
    from labo.experiment.progress import ConsoleProgress

    with ConsoleProgress() as progress:
        try:
            paired_bootstrap.measure(recorded, summary.baseline, tasks, progress)
        except UserError as error:
            progress.message(f"The paired bootstrap over test sentences is left out: {error}")
