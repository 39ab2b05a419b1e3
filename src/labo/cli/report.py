"""`labo report`: tables, figures and a page from recorded trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labo.cli import options
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.experiment.bootstrap import Run
    from labo.experiment.progress import Progress
    from labo.experiment.runner import Job
    from labo.experiment.shifts import Asked
    from labo.report.reading import Recorded
    from labo.report.verdict import Summary


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
    write_and_print(directory, baseline=baseline, no_samples=no_samples, shift=shift, severity=severity, beams=beams)


def write_and_print(
    directory: Path,
    *,
    baseline: str | None,
    no_samples: bool,
    shift: str | None = None,
    severity: int | None = None,
    beams: str | None = None,
) -> None:
    """Write the report of a folder and print its verdict.

    Before that, once for each run, its runs are measured on shifted inputs or with other beams, where these options are
    set, and translators by the paired bootstrap.
    """
    from rich.console import Console

    from labo.report import compose, render, summarize_recorded, write
    from labo.report.post_hoc import with_shifts
    from labo.report.reading import read

    recorded = read(directory)
    # What cannot be measured is an error before anything is measured.
    shifts, widths = options.shifts(recorded.tasks, shift, severity), options.beams(recorded.tasks, beams)
    summary = summarize_recorded(recorded, baseline)
    if shifts is not None:
        _measure_shifts(recorded, shifts)
    if widths:
        _measure_beams(recorded, widths)
    _measure_bootstrap(recorded, summary)
    recorded = with_shifts(recorded, None if shifts is None else shifts.pairs)
    summary = summarize_recorded(recorded, baseline)
    page = write(recorded, summary, samples=not no_samples)
    Console(highlight=False).print(render.terminal(compose.brief(summary)))
    print(f"\nReport: {page}")


def _measure_shifts(recorded: Recorded, asked: Asked) -> None:
    """Measure the runs of a comparison on shifted inputs."""
    from labo import tasks
    from labo.experiment import shifts

    names, folder = {name for name in recorded.tasks if tasks.shifts(name)}, recorded.directory
    _measure(recorded, names, shifts.SHIFTS, lambda jobs, watcher: shifts.measure(folder, jobs, asked, watcher))


def _measure_beams(recorded: Recorded, widths: Sequence[int]) -> None:
    """Measure the translators of a comparison with beams of some widths."""
    from labo import tasks
    from labo.experiment import beams

    names, folder = {name for name in recorded.tasks if tasks.kind(name) == "translation"}, recorded.directory
    _measure(recorded, names, beams.BEAMS, lambda jobs, watcher: beams.measure(folder, jobs, widths, watcher))


def _measure(recorded: Recorded, names: set[str], file: str, measure: Callable[[list[Job], Progress], None]) -> None:
    """Measure the finished runs of the tasks `names`; where none has its weights, `file` has to exist already."""
    from labo.experiment.progress import Progress

    jobs, without = _jobs(recorded, names)
    with Progress() as progress:
        if without:
            progress.say(f"{without} finished runs are not here with their weights, and are not measured.")
        if jobs:
            measure(jobs, progress)
    if not jobs and not (recorded.directory / file).exists():
        raise UserError(
            f"No run in '{recorded.directory}' has kept its weights (TASK/METHOD/SEED/model.safetensors) to measure."
        )


def _measure_bootstrap(recorded: Recorded, summary: Summary) -> None:
    """Compare translators with the baseline on resampled test sentences; where that fails, the report says so."""
    runs = _translators(recorded, {task.task for task in summary.tasks if task.main.of_text})
    if not runs:
        return
    from labo.experiment import bootstrap

    missing = bootstrap.missing(recorded.directory, summary.baseline, runs)
    if not missing:
        return
    from labo.experiment.progress import Progress

    of_baseline = [run for run in runs if run.method == summary.baseline]
    with Progress() as progress:
        try:
            bootstrap.measure(recorded.directory, summary.baseline, [*of_baseline, *missing], progress)
        except UserError as error:
            progress.say(f"The paired bootstrap over test sentences is left out: {error}")


def _translators(recorded: Recorded, names: set[str]) -> list[Run]:
    """The finished runs of the tasks `names` that have a folder here."""
    from labo.experiment.bootstrap import Run

    runs = []
    for record in recorded.records:
        task, method, seed = str(record["task"]), str(record["method"]), record["seed"]
        folder = recorded.run_folder(task, method, seed)
        if task in names and not record.get("failed") and folder is not None:
            runs.append(Run(task, method, seed, folder))
    return runs


def _jobs(recorded: Recorded, names: set[str]) -> tuple[list[Job], int]:
    """(the finished runs of the tasks `names` that have weights, how many have none)."""
    from labo.experiment.runner import Job
    from labo.experiment.trial import WEIGHTS, Trial

    jobs, without = [], 0
    for record in recorded.records:
        trial = Trial(str(record["task"]), str(record["method"]), record["seed"], {})
        if record.get("failed") or trial.task not in names:
            continue
        folder = recorded.run_folder(trial.task, trial.method, trial.seed)
        if folder is not None and (folder / WEIGHTS).is_file():
            jobs.append(Job(trial, folder))
        else:
            without += 1
    return jobs, without
