"""`labo report`: tables, figures and a page from recorded trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labo.cli import options
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.experiment.bootstrap import Run
    from labo.experiment.runner import Job
    from labo.report.reading import Recorded


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --output of a comparison.", show_default=False)],
    baseline: Annotated[
        str | None, typer.Option(help="The method to compare with; that of the comparison by default.")
    ] = None,
    shift: options.Shift = None,
    severity: options.Severity = None,
    no_samples: options.NoSamples = False,
) -> None:
    """The verdict on recorded trials.

    Prints it, and writes report.html, report.md and figures/ into DIR. With --shift, every finished run whose weights
    are kept in DIR is measured first, once: what shift.jsonl has is not measured again.
    """
    tell(directory, baseline=baseline, no_samples=no_samples, shift=shift, severity=severity)


def tell(
    directory: Path, *, baseline: str | None, no_samples: bool, shift: str | None = None, severity: int | None = None
) -> None:
    """Build the report of a folder and print its verdict.

    Before that its runs are measured on shifted inputs, if asked, and translators by the paired bootstrap, once.
    """
    from rich.console import Console

    from labo.report import build, summarize
    from labo.report.tables import console

    pairs = _measure(directory, shift, severity)
    _resample(directory, baseline)
    page = build(directory, baseline=baseline, samples=not no_samples, shifts=pairs)
    Console(highlight=False).print(console(summarize(directory, baseline, shifts=pairs)))
    print(f"\nReport: {page}")


def _measure(directory: Path, shift: str | None, severity: int | None) -> Any:
    """Measure the runs of a comparison on shifted inputs; the (kind, severity) pairs, None where nothing is asked."""
    from labo.report.reading import read

    recorded = read(directory)
    asked = options.shifts(list(dict.fromkeys(str(record["task"]) for record in recorded.records)), shift, severity)
    if asked is None:
        return None
    from labo.experiment import shifts
    from labo.experiment.progress import Progress

    jobs, without = _jobs(recorded)
    with Progress() as progress:
        if without:
            progress.say(f"{without} finished runs are not here with their weights, and are not measured.")
        if jobs:
            shifts.measure(directory, jobs, asked, progress)
    if not jobs and not (directory / shifts.SHIFTS).exists():
        raise UserError(
            f"No run in '{directory}' has kept its weights (TASK/METHOD/SEED/model.safetensors) to measure."
        )
    return asked.pairs


def _resample(directory: Path, baseline: str | None) -> None:
    """Compare translators with the baseline on drawn test sentences; a report is made where that cannot be, too."""
    from labo.report import summarize
    from labo.report.reading import read

    summary = summarize(directory, baseline)
    runs = _translators(read(directory), {task.task for task in summary.tasks if task.main.of_text})
    if not runs:
        return
    from labo.experiment import bootstrap

    missing = bootstrap.missing(directory, summary.baseline, runs)
    if not missing:
        return
    from labo.experiment.progress import Progress

    theirs = [run for run in runs if run.method == summary.baseline]
    with Progress() as progress:
        try:
            bootstrap.measure(directory, summary.baseline, [*theirs, *missing], progress)
        except UserError as error:
            progress.say(f"The paired bootstrap over test sentences is left out: {error}")


def _translators(recorded: Recorded, of_text: set[str]) -> list[Run]:
    """The finished runs of translation tasks that have a folder here."""
    from labo.experiment.bootstrap import Run

    found = []
    for record in recorded.records:
        task, method, seed = str(record["task"]), str(record["method"]), record["seed"]
        folder = recorded.run_folder(task, method, seed)
        if task in of_text and not record.get("failed") and folder is not None:
            found.append(Run(task, method, seed, folder))
    return found


def _jobs(recorded: Recorded) -> tuple[list[Job], int]:
    """(the finished runs that can be measured, how many of them are without weights)."""
    from labo import tasks
    from labo.experiment.runner import Job
    from labo.experiment.trial import WEIGHTS, Trial

    found, without = [], 0
    for record in recorded.records:
        trial = Trial(str(record["task"]), str(record["method"]), record["seed"], {})
        if record.get("failed") or not tasks.shifts(trial.task):
            continue
        folder = recorded.run_folder(trial.task, trial.method, trial.seed)
        if folder is not None and (folder / WEIGHTS).is_file():
            found.append(Job(trial, folder))
        else:
            without += 1
    return found, without
