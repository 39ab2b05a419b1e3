"""The posterior labels of a trial with `labo[prior=channel]`: networks of folds, a noise channel, Bayes' rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labo.errors import UserError
from labo.experiment import folds
from labo.experiment import settings as flat
from labo.outer.channel import channel_losses, fit_channel, posterior_labels
from labo.outer.trust import STRONG, Candidate
from labo.records.storage import read_lines
from labo.records.trial import CROSS_FIT, CURVE, Trial
from labo.splitting import equal_parts

# The networks of folds train with one of these, whichever predicts the labels of the first fold better.
CANDIDATES = (Candidate("smoothing", "label_smoothing", {"epsilon": 0.3}), STRONG)
FOLDS = 3
# Their training ends after so many epochs without a better validation NLL, and the best epoch counts.
PATIENCE = 8

# (trial, its folder, receives the fraction done) -> record
RunTrial = Callable[[Trial, Path, Callable[[float], None]], Mapping[str, Any]]


def cross_fit(
    trial: Trial, folder: Path, splits: Any, run: RunTrial, progress: Callable[[float], None]
) -> tuple[Tensor, dict[str, Any]]:
    """(posterior labels (N, C) of the training split, what the record says of them).

    Finished trials of folds are read, and an interrupted one is resumed.

    Args:
        trial: of a method that needs posterior labels.
        folder: of the trial.
        splits: of its task and seed.
        run: runs a trial in a folder and returns its record.
        progress: receives the fraction of the stage that is done, 0 to 1.

    Raises:
        UserError: the length is set in steps, a class has too few examples, or the networks of folds diverge.
    """
    target = splits.train.target
    if "steps" in trial.settings:
        raise UserError(
            f"Method '{trial.method}' needs epochs, but the length of this run is set in steps: use --epochs."
        )
    smallest = int(torch.bincount(target)[target.unique()].min())
    count = min(FOLDS, smallest)
    if count < 2:
        raise UserError(f"Method '{trial.method}' needs at least 2 training examples of every class, one to hold out.")
    parts = equal_parts(target, count, trial.seed)
    seconds: list[float] = []
    trained: list[float] = []  # the lengths of the folds' trainings, in plain ones

    def logits_of(candidate: Candidate, number: int) -> Tensor | None:
        done = len(seconds)
        fold_folder = folder / CROSS_FIT / candidate.name / str(number)
        fold = _fold_trial(trial, candidate, f"{number}/{count}")
        record = run(fold, fold_folder, lambda fraction: progress((done + fraction) / (count + 1)))
        seconds.append(float(record["seconds"]))
        if lines := read_lines(fold_folder / CURVE):
            trained.append(float(lines[-1]["epoch"]) / float(trial.settings["epochs"]) * (1 - 1 / count))
        if record.get("failed"):
            return None
        return folds.read_logits(fold_folder, len(parts[number - 1]), len(splits.classes))

    first = {candidate.name: logits_of(candidate, 1) for candidate in CANDIDATES}
    losses = {
        name: channel_losses(logits, target[parts[0]]).mean().item()
        for name, logits in first.items()
        if logits is not None
    }
    if not losses:
        raise UserError(f"The networks of the first of {count} folds diverge: use a smaller learning rate.")
    chosen = next(candidate for candidate in CANDIDATES if candidate.name == min(losses, key=losses.__getitem__))
    logits = torch.empty(len(target), len(splits.classes))
    for number, part in enumerate(parts, 1):
        rows = first[chosen.name] if number == 1 else logits_of(chosen, number)
        if rows is None:
            raise UserError(f"The network of fold {number} of {count} diverges: use a smaller learning rate.")
        logits[part] = rows
    channel = fit_channel(logits, target, seed=trial.seed)
    posterior = posterior_labels(logits, target, channel)
    details = {
        "folds": count,
        "networks": chosen.name,
        "held_out": {name: round(loss, 6) for name, loss in losses.items()},
        "cost": round(1 + sum(trained), 2),
        "seconds": round(sum(seconds), 3),
        **channel.as_json(),
    }
    return posterior, details | {"changed": int((posterior.argmax(-1) != target).sum())}


def _fold_trial(trial: Trial, candidate: Candidate, fold: str) -> Trial:
    training, _ = flat.split(trial.settings, trial.method)
    settings = flat.resolve(training, candidate.method, {**candidate.options, "patience": PATIENCE})
    return replace(
        trial,
        method=candidate.method,
        settings=settings,
        fold=fold,
        checkpoint="best",
        curves=True,
        tuning=False,
        teacher="",
    )
