"""`labo report`: tables, figures and a page from recorded trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labo.cli import options
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.experiment.executor import Job
    from labo.experiment.paired_bootstrap import Run
    from labo.experiment.progress import Progress
    from labo.experiment.shifts import Asked
    from labo.report.reading import Recorded


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --output of a comparison.", show_default=False)],
    baseline: Annotated[
        str | None, typer.Option(help="The method to compare with; that of the comparison by default.")
    ] = None,
    shift: options.Shift = None,
    severity: options.Severity = None,
    beams: options.Beams = None,
    no_samples: options.NoSamples = False,
) -> None:
    """The verdict on recorded trials.

    Prints it, and writes report.html, report.md and figures/ into DIR. With --shift or --beams, every finished run
    whose weights are kept in DIR is measured first, once: what shift.jsonl or beams.jsonl has is not measured again.
    """
    tell(directory, baseline=baseline, no_samples=no_samples, shift=shift, severity=severity, beams=beams)


def tell(
    directory: Path,
    *,
    baseline: str | None,
    no_samples: bool,
    shift: str | None = None,
    severity: int | None = None,
    beams: str | None = None,
) -> None:
    """Build the report of a folder and print its verdict.

    Before that its runs are measured on shifted inputs or with other beams, if asked, and translators by the paired
    bootstrap, once.
    """
    from rich.console import Console

    from labo.report import build, summarize
    from labo.report.reading import read
    from labo.report.tables import console

    recorded = read(directory)
    # What cannot be measured is told before anything is.
    asked, widths = options.shifts(recorded.tasks, shift, severity), options.beams(recorded.tasks, beams)
    if asked is not None:
        _shift(recorded, asked)
    if widths:
        _search(recorded, widths)
    _resample(directory, baseline)
    pairs = None if asked is None else asked.pairs
    page = build(directory, baseline=baseline, samples=not no_samples, shifts=pairs)
    Console(highlight=False).print(console(summarize(directory, baseline, shifts=pairs)))
    print(f"\nReport: {page}")


def _shift(recorded: Recorded, asked: Asked) -> None:
    """Measure the runs of a comparison on shifted inputs."""
    from labo import tasks
    from labo.experiment import shifts

    fit, folder = {name for name in recorded.tasks if tasks.shifts(name)}, recorded.directory
    _measure(recorded, fit, shifts.SHIFTS, lambda jobs, watcher: shifts.measure(folder, jobs, asked, watcher))


def _search(recorded: Recorded, widths: Sequence[int]) -> None:
    """Measure the translators of a comparison with beams of some widths."""
    from labo import tasks
    from labo.experiment import beams

    fit, folder = {name for name in recorded.tasks if tasks.kind(name) == "translation"}, recorded.directory
    _measure(recorded, fit, beams.BEAMS, lambda jobs, watcher: beams.measure(folder, jobs, widths, watcher))


def _measure(recorded: Recorded, fit: set[str], file: str, measure: Callable[[list[Job], Progress], None]) -> None:
    """Measure the finished runs of the tasks that `fit`; if there are none, `file` has to be there from before."""
    from labo.experiment.progress import Progress

    jobs, without = _jobs(recorded, fit)
    with Progress() as progress:
        if without:
            progress.say(f"{without} finished runs are not here with their weights, and are not measured.")
        if jobs:
            measure(jobs, progress)
    if not jobs and not (recorded.directory / file).exists():
        raise UserError(
            f"No run in '{recorded.directory}' has kept its weights (TASK/METHOD/SEED/model.safetensors) to measure."
        )


def _resample(directory: Path, baseline: str | None) -> None:
    """Compare translators with the baseline on drawn test sentences; a report is made where that cannot be, too."""
    from labo.report import summarize
    from labo.report.reading import read

    summary = summarize(directory, baseline)
    runs = _translators(read(directory), {task.task for task in summary.tasks if task.main.of_text})
    if not runs:
        return
    from labo.experiment import paired_bootstrap

    missing = paired_bootstrap.missing(directory, summary.baseline, runs)
    if not missing:
        return
    from labo.experiment.progress import Progress

    theirs = [run for run in runs if run.method == summary.baseline]
    with Progress() as progress:
        try:
            paired_bootstrap.measure(directory, summary.baseline, [*theirs, *missing], progress)
        except UserError as error:
            progress.say(f"The paired bootstrap over test sentences is left out: {error}")


def _translators(recorded: Recorded, of_text: set[str]) -> list[Run]:
    """The finished runs of translation tasks that have a folder here."""
    from labo.experiment.paired_bootstrap import Run

    found = []
    for record in recorded.records:
        task, method, seed = str(record["task"]), str(record["method"]), record["seed"]
        folder = recorded.run_folder(task, method, seed)
        if task in of_text and not record.get("failed") and folder is not None:
            found.append(Run(task, method, seed, folder))
    return found


def _jobs(recorded: Recorded, fit: set[str]) -> tuple[list[Job], int]:
    """(the finished runs of the tasks that `fit` and that have weights, how many have none)."""
    from labo.experiment.executor import Job
    from labo.experiment.run_trial import WEIGHTS, Trial

    found, without = [], 0
    for record in recorded.records:
        trial = Trial(str(record["task"]), str(record["method"]), record["seed"], {})
        if record.get("failed") or trial.task not in fit:
            continue
        folder = recorded.run_folder(trial.task, trial.method, trial.seed)
        if folder is not None and (folder / WEIGHTS).is_file():
            found.append(Job(trial, folder))
        else:
            without += 1
    return found, without
