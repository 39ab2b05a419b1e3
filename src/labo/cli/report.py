"""`labo report`: tables, figures and a page from recorded trials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labo.cli import options
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.records.comparison import Recorded
    from labo.report.model import Report
    from labo.report.verdict import Summary


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="The output folder of a comparison; several give one leaderboard.",
            show_default=False,
        ),
    ],
    baseline: Annotated[str | None, typer.Option(help="The method to compare to; by default the comparison's.")] = None,
    shift: options.Shift = None,
    severity: options.Severity = None,
    beams: options.Beams = None,
    no_samples: options.NoSamples = False,
    margin: options.Margin = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write every table as CSV.", show_default=False)
    ] = None,
    latex: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write every table as LaTeX.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="With several DIR: the folder of the leaderboard.", show_default="runs/leaderboard"),
    ] = None,
) -> None:
    """Print the verdict on recorded trials, and write a report.

    The report is report.html, report.md and figures/ in DIR. With --shift or --beams, finished runs whose weights are
    kept in DIR are evaluated first; results already in shift.jsonl or beams.jsonl are not measured again. Several DIR
    are put on one leaderboard, with average ranks, win rates and a critical-difference diagram.
    """
    if len(directories) > 1:
        if shift or severity or beams:
            raise UserError("Options --shift, --severity and --beams measure the runs of one comparison: name one DIR.")
        folder = output or Path("runs") / "leaderboard"
        return _leaderboard(directories, folder, baseline=baseline, margin=margin, csv=csv, latex=latex)
    if output is not None:
        raise UserError("Option --output is for the leaderboard of several DIR; a single report goes into its DIR.")
    build_and_print(
        directories[0],
        baseline=baseline,
        no_samples=no_samples,
        shift=shift,
        severity=severity,
        beams=beams,
        margin=margin,
        csv=csv,
        latex=latex,
    )
    return None


def build_and_print(
    directory: Path,
    *,
    baseline: str | None,
    no_samples: bool,
    shift: str | None = None,
    severity: int | None = None,
    beams: str | None = None,
    margin: float | None = None,
    csv: Path | None = None,
    latex: Path | None = None,
) -> Summary:
    """Build the report of a folder, print its verdict and return its summary.

    First evaluates the runs on shifted inputs or with other beams if the options request it, and runs the paired
    bootstrap of translation tasks; nothing is measured twice.
    """
    from rich.console import Console

    from labo.records.comparison import read
    from labo.report import compose, provenance, render, summarize, write
    from labo.report.post_hoc import with_shifts

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
    _compare_translators(recorded, summarize(recorded, baseline, margin=margin))
    recorded = with_shifts(recorded.with_measurements(), None if grid is None else grid.pairs)
    summary = summarize(recorded, baseline, margin=margin)
    made = compose.report(recorded, summary, samples=not no_samples)
    page = write(made, recorded.directory)
    Console(highlight=False).print(render.terminal(compose.brief(summary)))
    _write_tables(made, csv, latex)
    print(f"\nSignature: {provenance.signature(recorded)}\nReport: {page}")
    return summary


def _leaderboard(
    directories: Sequence[Path],
    folder: Path,
    *,
    baseline: str | None,
    margin: float | None,
    csv: Path | None,
    latex: Path | None,
) -> None:
    """Put several comparisons on one leaderboard, print it and write it into a folder."""
    from rich.console import Console

    from labo.records.comparison import read
    from labo.report import leaderboard, render, summarize, write

    summary = summarize(leaderboard.merge([read(directory) for directory in directories]), baseline, margin=margin)
    made = leaderboard.report(summary)
    page = write(made, folder)
    Console(highlight=False).print(render.terminal(leaderboard.brief(summary)))
    _write_tables(made, csv, latex)
    print(f"\nLeaderboard: {page}")


def _write_tables(made: Report, csv: Path | None, latex: Path | None) -> None:
    from labo.report.export import write_tables

    written = write_tables(made, csv_folder=csv, latex_folder=latex)
    for folder in dict.fromkeys(path.parent for path in written):
        print(f"Tables: {sum(path.parent == folder for path in written)} in {folder}")


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
