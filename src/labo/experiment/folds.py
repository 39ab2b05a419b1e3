"""Folds of the training split: what a network is trained without, and its logits of that part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labo.errors import NonFiniteLogitsError, UserError
from labo.experiment import settings as flat
from labo.experiment.evaluators.classification import predict
from labo.metrics.scores import classification_scores
from labo.outer.trust import Candidate
from labo.records.storage import read_lines
from labo.records.trial import CURVE, HELD_OUT, Trial, check_file, read_record
from labo.splitting import equal_parts
from labo.tasks.base import Examples, Splits
from labo.training import checkpoints

# (trial, its folder, receives the fraction done) -> record
RunTrial = Callable[[Trial, Path, Callable[[float], None]], Mapping[str, Any]]


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
        run: runs a trial in a folder and returns its record.
        progress: receives the fraction of the stage that is done, 0 to 1.
    """

    def __init__(
        self,
        trial: Trial,
        folder: Path,
        splits: Splits,
        *,
        count: int,
        most: int,
        run: RunTrial,
        progress: Callable[[float], None],
    ) -> None:
        self.trial, self.folder, self.most, self.run, self.progress = trial, folder, most, run, progress
        self.target, self.classes = splits.train.target, len(splits.classes)
        self.parts = equal_parts(self.target, count, trial.seed)
        self._done, self._trained, self._begin = 0, 0.0, time.monotonic()

    def predict(self, candidate: Candidate, number: int, *, options: Mapping[str, Any], **changes: Any) -> Prediction:
        """Train a candidate without fold `number`, counted from 1, and predict that fold.

        `options` are further settings, and `changes` are of the trial.
        """
        training, _ = flat.split(self.trial.settings, self.trial.method)
        settings = flat.resolve(training, candidate.method, {**candidate.options, **options})
        own = {"method": candidate.method, "settings": settings, "fold": f"{number}/{len(self.parts)}"}
        fold = replace(self.trial, tuning=False, teacher="", **own, **changes)
        folder, done, begin = self.folder / candidate.name / str(number), self._done, time.monotonic()
        record = self.run(fold, folder, lambda fraction: self.progress((done + fraction) / self.most))
        self._done, self._begin = done + 1, self._begin + time.monotonic() - begin
        self._trained += float(record["seconds"])
        curve = read_lines(check_file(folder, CURVE, record))
        if record.get("failed"):
            return Prediction(None, curve, record)
        return Prediction(read_logits(folder, len(self.parts[number - 1]), self.classes), curve, record)

    @property
    def seconds(self) -> float:
        """The time of all trials, of earlier sessions too, and of what else the stage has computed in this one."""
        return round(self._trained + time.monotonic() - self._begin, 3)


def leave_out(splits: Splits, fold: str, seed: int) -> tuple[Splits, Examples]:
    """(the splits without fold "2/5" of the training split, the examples of that fold)."""
    number, count = map(int, fold.split("/"))
    parts = equal_parts(splits.train.target, count, seed)
    held_out = parts.pop(number - 1)
    return replace(splits, train=splits.train.subset(torch.cat(parts))), splits.train.subset(held_out)


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
