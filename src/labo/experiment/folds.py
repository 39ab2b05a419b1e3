"""Folds of the training split: what a network is trained without, and its logits of that part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from labo.errors import NonFiniteLogitsError, UserError
from labo.experiment import settings as flat
from labo.experiment.evaluators.classification import predict
from labo.metrics.scores import classification_scores
from labo.outer.trust import Candidate
from labo.records.storage import read_lines
from labo.records.trial import CURVE, HELD_OUT, Job, Trial, check_file, read_record
from labo.splitting import equal_parts
from labo.tasks.base import Examples, Splits
from labo.training import checkpoints

# Begins the fold of a trial that trains on the fold alone and predicts the others.
ONLY = "only "
# Receives the fraction of a job that is done, 0 to 1.
UpdateJob = Callable[[Job, float], None]


class RunJobs(Protocol):
    """Runs the trials of folds."""

    def __call__(self, jobs: Sequence[Job], update: UpdateJob, /) -> Iterator[tuple[Job, Any]]:
        """Yield (job, record) as they finish; no mapping but an object with a `reason` where a worker died."""
        ...


@dataclass(frozen=True)
class StageRunner:
    """How the trials of a stage run, and who is told of it.

    Args:
        jobs: runs them, one after the other or side by side.
        phase: receives which trials run, in words.
        progress: receives the fraction of the stage that is done, 0 to 1.
    """

    jobs: RunJobs
    phase: Callable[[str], None] = lambda words: None
    progress: Callable[[float], None] = lambda fraction: None


class Prediction(NamedTuple):
    """What the trial of a fold leaves: logits (n, C) of its part, None if it failed; its curve; its record."""

    logits: Tensor | None
    curve: list[dict[str, Any]]
    record: Mapping[str, Any]


class FoldTrials:
    """Trials of the folds of a trial's training split, in its folder: the stage before its own training.

    Finished ones are read, and an interrupted one is resumed.

    Args:
        trial: whose stage it is.
        folder: of the folds' trials.
        splits: of its task and seed.
        count: the number of folds.
        most: the largest number of trials, for the progress.
        runner: runs them.
    """

    def __init__(
        self, trial: Trial, folder: Path, splits: Splits, *, count: int, most: int, runner: StageRunner
    ) -> None:
        self.trial, self.folder, self.most, self.runner = trial, folder, most, runner
        self.target, self.classes = splits.train.target, len(splits.classes)
        self.parts = equal_parts(self.target, count, trial.seed)
        self._done, self._trained, self._begin = 0, 0.0, time.monotonic()

    def predict(
        self,
        candidates: Sequence[tuple[Candidate, int]],
        *,
        options: Mapping[str, Any],
        again: bool = False,
        only: bool = False,
        **changes: Any,
    ) -> list[Prediction]:
        """Train each candidate without its fold, counted from 1, and predict that fold.

        `options` are further settings, and `changes` are of the trials. `again` is for trials that diverged before.
        With `only`, they train on the fold alone, and predict the others.

        Raises:
            UserError: the process of a trial died.
        """
        fold = (ONLY if only else "") + "{}/" + str(len(self.parts))
        jobs = [
            self._job(candidate, fold.format(number), f"{number}-again" if again else str(number), options, changes)
            for candidate, number in candidates
        ]
        records: dict[Path, Mapping[str, Any]] = {}
        fractions = dict.fromkeys((job.folder for job in jobs), 0.0)

        def update(job: Job, fraction: float) -> None:
            fractions[job.folder] = fraction
            self.runner.progress(min(1.0, (self._done + sum(fractions.values())) / self.most))

        words = ", ".join(dict.fromkeys(candidate.name for candidate, _ in candidates))
        numbers = counted_folds(sorted({number for _, number in candidates}))
        self.runner.phase(f"training {'on' if only else 'without'} {numbers} of {len(self.parts)} ({words})")
        begin = time.monotonic()
        for job, record in self.runner.jobs(jobs, update):
            if not isinstance(record, Mapping):
                raise UserError(
                    f"The trial of {job.trial.name} did not finish ({record.reason}); the same command goes on."
                )
            records[job.folder] = record
        self._done, self._begin = self._done + len(jobs), self._begin + time.monotonic() - begin
        self._trained += sum(float(record["seconds"]) for record in records.values())
        return [self._prediction(job, records[job.folder]) for job in jobs]

    def held_out(self, number: int, *, only: bool = False) -> Tensor:
        """The indices of what the trials of fold `number` predict."""
        others = torch.cat(self.parts[: number - 1] + self.parts[number:])
        return others if only else self.parts[number - 1]

    def _job(
        self, candidate: Candidate, fold: str, name: str, options: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> Job:
        training, _ = flat.split(self.trial.settings, self.trial.method)
        settings = flat.resolve(training, candidate.method, {**candidate.options, **options})
        own = {"method": candidate.method, "settings": settings, "fold": fold}
        trial = replace(self.trial, tuning=False, teacher="", **own, **changes)
        return Job(trial, self.folder / candidate.name / name)

    def _prediction(self, job: Job, record: Mapping[str, Any]) -> Prediction:
        curve = read_lines(check_file(job.folder, CURVE, record))
        if record.get("failed"):
            return Prediction(None, curve, record)
        only, number = job.trial.fold.startswith(ONLY), int(job.trial.fold.removeprefix(ONLY).partition("/")[0])
        held_out = self.held_out(number, only=only)
        return Prediction(read_logits(job.folder, len(held_out), self.classes), curve, record)

    @property
    def seconds(self) -> float:
        """The time of all trials, of earlier sessions too, and of what else the stage has computed in this one."""
        return round(self._trained + time.monotonic() - self._begin, 3)


def counted_folds(numbers: Sequence[int]) -> str:
    """The numbers of folds in words.

    Example:
        >>> counted_folds([1]), counted_folds([2, 3])
        ('fold 1', 'folds 2 and 3')
    """
    *others, last = map(str, numbers)
    return f"folds {', '.join(others)} and {last}" if others else f"fold {last}"


def leave_out(splits: Splits, fold: str, seed: int) -> tuple[Splits, Examples]:
    """(the splits without fold "2/5" of the training split, the examples of that fold).

    "only 2/5" is the other way round: the splits with that fold alone, and the examples of the others.
    """
    number, count = map(int, fold.removeprefix(ONLY).split("/"))
    parts = equal_parts(splits.train.target, count, seed)
    own = parts.pop(number - 1)
    trained, held_out = (own, torch.cat(parts)) if fold.startswith(ONLY) else (torch.cat(parts), own)
    return replace(splits, train=splits.train.subset(trained)), splits.train.subset(held_out)


def save_logits(model: nn.Module, held_out: Examples, folder: Path) -> dict[str, float]:
    """Write the logits of the examples of a fold; returns their scores by their given labels.

    Raises:
        NonFiniteLogitsError: the logits are NaN or infinite.
    """
    logits = predict(model, held_out.features)
    if not bool(logits.isfinite().all()):
        raise NonFiniteLogitsError
    checkpoints.save_tensors({"logits": logits}, folder / HELD_OUT)
    return classification_scores(logits, held_out.target)


def read_logits(folder: Path, examples: int, classes: int) -> Tensor:
    """The logits (examples, classes) of the fold of a finished trial.

    Raises:
        UserError: the trial did not finish, failed, or its logits are damaged.
    """
    record: Any = read_record(folder)
    if record is None:
        raise UserError(f"The fold in '{folder}' did not finish; the same command runs it again.")
    if failed := record.get("failed"):
        raise UserError(f"The fold in '{folder}' failed at step {failed['step']}: {failed['reason']}.")
    logits = checkpoints.read_weights(check_file(folder, HELD_OUT, record)).get("logits")
    if logits is None or logits.shape != (examples, classes):
        raise UserError(f"'{folder / HELD_OUT}' is damaged: delete the folder to run this fold again.")
    return logits
