"""Post-hoc evaluation of the finished trials of a comparison: corrupted inputs and other beams, one line per trial."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from labo import machine, tasks
from labo.errors import UserError, unknown
from labo.experiment import saved_run
from labo.experiment.progress import ProgressReporter
from labo.experiment.saved_run import SavedRun
from labo.metrics.scores import scores_at
from labo.records import lock, measurements
from labo.records.comparison import BEAMS, SHIFTS, Recorded
from labo.records.measurements import SEVERITIES, TrialKey
from labo.records.storage import append_line, drop_cut_line, read_lines
from labo.records.trial import WEIGHTS, Job
from labo.tasks.base import no_shifts

Progress = Callable[[float], None]
# kind -> severity, as JSON has it -> scores
ScoresByShift = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class ShiftGrid:
    """Kinds of corruption, each at some severities from 1 to 5."""

    kinds: tuple[str, ...]
    severities: tuple[int, ...] = SEVERITIES

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Every (kind, severity)."""
        return [(kind, severity) for kind in self.kinds for severity in self.severities]


def parse_shifts(task_names: Sequence[str], kinds: str, severity: int | None) -> ShiftGrid:
    """The corruptions of some tasks' inputs, from kinds separated by commas and a severity (None for all five).

    Raises:
        UserError: no task has corruptions or none of this name, or the severity is not from 1 to 5.
    """
    known = next(filter(None, map(tasks.shifts, task_names)), ())
    if not known:
        raise no_shifts(task_names[0])
    chosen = list(dict.fromkeys(kind.strip() for kind in kinds.split(",") if kind.strip()))
    if not chosen:
        raise UserError(f"Expected --shift to name some of {', '.join(known)}, separated by commas, but got '{kinds}'.")
    for kind in chosen:
        if kind not in known:
            raise unknown("shift", kind, known)
    if severity is not None and severity not in SEVERITIES:
        raise UserError(f"Expected --severity to be a whole number from 1 to 5, but got {severity}.")
    return ShiftGrid(tuple(chosen), SEVERITIES if severity is None else (severity,))


def shift_scores(
    run: SavedRun, examples: Any, pairs: Sequence[tuple[str, int]], progress: Progress = lambda fraction: None
) -> ScoresByShift:
    """A run's scores on corrupted examples, by kind and severity, at the temperature fitted on clean validation data.

    The run's seed draws the noise, so that all methods of a comparison are measured on the same inputs.
    """
    scores: ScoresByShift = {}
    for done, (kind, severity) in enumerate(pairs, 1):
        corrupted = run.task.shifted(examples.features, kind, severity, run.description["seed"], run.device)
        metrics = scores_at(run.temperature, run.logits(corrupted), examples.target)
        del metrics["temperature"]
        scores.setdefault(kind, {})[str(severity)] = metrics
        progress(done / len(pairs))
    return scores


def mean_scores(scores: ScoresByShift) -> dict[str, dict[str, float]]:
    """Each kind's scores, their means over its severities, and "mean", the mean over the kinds.

    Example:
        >>> mean_scores({"noise": {"1": {"nll": 1.0}, "2": {"nll": 3.0}}, "blur": {"1": {"nll": 4.0}}})
        {'noise': {'nll': 2.0}, 'blur': {'nll': 4.0}, 'mean': {'nll': 3.0}}
    """
    by_kind = {kind: _mean(severities.values()) for kind, severities in scores.items()}
    return {**by_kind, "mean": _mean(by_kind.values())}


def _mean(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    rows = list(scores)
    return {key: fmean(row[key] for row in rows) for key in rows[0]}


def beam_scores(
    run: SavedRun, examples: Any, widths: Sequence[int], progress: Progress = lambda fraction: None
) -> dict[str, Any]:
    """BLEU and chrF of the translations of examples, by the width of the beam, as JSON has it."""
    scores = {}
    for done, width in enumerate(widths, 1):
        scores[str(width)] = run.search_scores(examples, width)
        progress(done / len(widths))
    return scores


def measure_shifts(recorded: Recorded, grid: ShiftGrid, reporter: ProgressReporter) -> None:
    """Measure the trials of tasks with corruptions, with a line for each in the comparison's folder.

    Raises:
        UserError: no trial has kept its weights and none was measured before, a run is damaged, its data have changed,
            or another process holds the folder.
    """
    names = {name for name in recorded.tasks if tasks.shifts(name)}
    kind = _Kind(SHIFTS, "measuring shifted inputs", grid.pairs, measurements.shift_scores, shift_scores)
    _measure(recorded, names, kind, reporter)


def measure_beams(recorded: Recorded, widths: Sequence[int], reporter: ProgressReporter) -> None:
    """Measure the translators of a comparison, with a line for each in the comparison's folder.

    Raises:
        UserError: as `measure_shifts`.
    """
    names = {name for name in recorded.tasks if tasks.kind(name) == "translation"}
    kind = _Kind(BEAMS, "translating with other beams", widths, measurements.beam_bleu, beam_scores)
    _measure(recorded, names, kind, reporter)


@dataclass(frozen=True)
class _Kind:
    """A kind of measurement.

    Args:
        file: in the comparison's folder, one line per trial.
        phase: its name in the progress.
        wanted: what to measure of every trial.
        parse: lines of the file to what each trial was measured on.
        score: the "scores" of a line: of a run's test examples, on what is missing.
    """

    file: str
    phase: str
    wanted: Sequence[Any]
    parse: Callable[[Iterable[Mapping[str, Any]]], Mapping[TrialKey, Mapping[Any, Any]]]
    score: Callable[[SavedRun, Any, Sequence[Any], Progress], Any]


def _measure(recorded: Recorded, names: Collection[str], kind: _Kind, reporter: ProgressReporter) -> None:
    jobs, without = recorded.finished_jobs(names, WEIGHTS)
    path = recorded.directory / kind.file
    if without:
        reporter.message(f"{without} finished runs are not here with their weights, and are not measured.")
    if jobs:
        _measure_jobs(path, jobs, kind, reporter)
    elif not path.exists():
        raise UserError(
            f"No run in '{recorded.directory}' has kept its weights (TASK/METHOD/SEED/{WEIGHTS}) to measure."
        )


def _measure_jobs(path: Path, jobs: Sequence[Job], kind: _Kind, reporter: ProgressReporter) -> None:
    """Add a line for each trial with what is missing of it; a line of other weights does not count."""
    from labo.tasks.data_files import digest  # which imports pandas, and `labo evaluate` needs none of it

    with lock.hold(path.parent):
        if drop_cut_line(path):
            reporter.message(f"The last line of '{path}' was cut short and is dropped; its run is measured again.")
        lines, todo = read_lines(path), []
        for job in jobs:
            weights, key = digest(job.folder / WEIGHTS), (job.trial.task, job.trial.method, job.trial.seed)
            own = [line for line in lines if line.get("weights") in (None, weights)]
            measured = kind.parse(own).get(key, {})
            if missing := [each for each in kind.wanted if each not in measured]:
                todo.append((job, weights, missing))
        reporter.begin(len(jobs), len(jobs) - len(todo))
        reporter.phase(kind.phase)
        examples = _ExamplesCache()
        for job, weights, missing in todo:
            start = time.monotonic()
            run = saved_run.load(job.folder)
            scores = kind.score(run, examples.of(run), missing, lambda done, job=job: reporter.update(job, done))
            line = {"task": job.trial.task, "method": job.trial.method, "seed": job.trial.seed, "scores": scores}
            line |= {"weights": weights, "seconds": round(time.monotonic() - start, 3)}
            line |= {"versions": machine.versions()}
            append_line(path, line)
            reporter.finished(job, line)


class _ExamplesCache:
    """The test examples of the last run, for the next one if it has the same: the methods of a seed share them."""

    def __init__(self) -> None:
        self._key, self._examples = "", None

    def of(self, run: SavedRun) -> Any:
        key = json.dumps([run.description[name] for name in ("task", "task_options", "data", "seed")])
        if key != self._key:
            self._examples = None  # free the memory before the next are read
            self._key, self._examples = key, run.examples("test")
        return self._examples
