"""What networks of folds say of a trial's labels: posterior labels by a noise channel, or which examples to leave out.

The first is the stage of `labo[prior=channel]`, the second that of `confident_learning`; both see the same predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labo.errors import UserError
from labo.experiment.folds import FoldTrials, Prediction, StageRunner
from labo.outer.channel import channel_losses, fit_channel, posterior_labels
from labo.outer.trust import STRONG, Candidate
from labo.records.trial import CROSS_FIT, Trial
from labo.splitting import rarest_class
from labo.wording import counted

# The networks of folds train with one of these, whichever predicts the labels of the first fold better.
CANDIDATES = (Candidate("smoothing", "label_smoothing", {"epsilon": 0.3}), STRONG)
FOLDS = 3
# Their training ends after so many epochs without a better validation NLL, and the best epoch counts.
PATIENCE = 8


class OutOfFold(NamedTuple):
    """Logits (N, C) of the training split, each row by a network that did not train on it; what the record says."""

    logits: Tensor
    details: dict[str, Any]


def cross_fit(trial: Trial, folder: Path, splits: Any, runner: StageRunner) -> tuple[Tensor, dict[str, Any]]:
    """(posterior labels (N, C) of the training split, what the record says of them).

    Raises:
        UserError: as for `out_of_fold`.
    """
    logits, details = out_of_fold(trial, folder, splits, runner)
    target = splits.train.target
    channel = fit_channel(logits, target, seed=trial.seed)
    posterior = posterior_labels(logits, target, channel)
    changed = int((posterior.argmax(-1) != target).sum())
    return posterior, {**channel.as_json(), **details, "changed": changed}


def keep_confident(trial: Trial, folder: Path, splits: Any, runner: StageRunner) -> tuple[Tensor, dict[str, Any]]:
    """(indices of the training examples that confident learning keeps, what the record says of it).

    Source: Northcutt et al., JAIR 2021, as the package cleanlab does it by default.

    Raises:
        UserError: as for `out_of_fold`.
    """
    from cleanlab.filter import find_label_issues

    logits, details = out_of_fold(trial, folder, splits, runner)
    issues = find_label_issues(splits.train.target.numpy(), logits.double().softmax(-1).numpy(), n_jobs=1)
    kept = (~torch.from_numpy(issues)).nonzero().squeeze(-1)
    removed = len(logits) - len(kept)
    sentence = f"Confident learning left out {removed} of {counted(len(logits), 'training example')}."
    if splits.train.before_noise is not None:
        wrong = splits.train.before_noise != splits.train.target
        details = {**details, "removed_wrong": int(wrong[torch.from_numpy(issues)].sum()), "wrong": int(wrong.sum())}
    return kept, {**details, "removed": removed, "sentence": sentence}


def out_of_fold(trial: Trial, folder: Path, splits: Any, runner: StageRunner) -> OutOfFold:
    """Predictions of the training split by networks of folds.

    Arguments are as in `FoldTrials`, `folder` is of the trial. A network that diverges is trained again once, with half
    the learning rate.

    Raises:
        UserError: the length is set in steps, a class has too few examples, or the networks of folds diverge.
    """
    target = splits.train.target
    if "steps" in trial.settings:
        raise UserError(
            f"Method '{trial.method}' needs epochs, but the length of this run is set in steps: use --epochs."
        )
    count = min(FOLDS, rarest_class(target)[1])
    if count < 2:
        raise UserError(f"Method '{trial.method}' needs at least 2 training examples of every class, one to hold out.")
    most = len(CANDIDATES) + count - 1
    networks = FoldTrials(trial, folder / CROSS_FIT, splits, count=count, most=most, runner=runner)
    training = _Networks(networks, trial)

    names = [candidate.name for candidate in CANDIDATES]
    first = dict(zip(names, training.logits([(candidate, 1) for candidate in CANDIDATES]), strict=True))
    first = {name: logits for name, logits in first.items() if logits is not None}
    if not first:
        raise UserError(f"The networks of the first of {count} folds diverge: use a smaller learning rate.")
    labels = target[networks.parts[0]]
    losses = {name: channel_losses(logits, labels).mean().item() for name, logits in first.items()}
    chosen = min((candidate for candidate in CANDIDATES if candidate.name in losses), key=lambda it: losses[it.name])
    others = list(range(2, count + 1))
    logits = torch.empty(len(target), len(splits.classes))
    logits[networks.parts[0]] = first[chosen.name]
    for number, rows in zip(others, training.logits([(chosen, number) for number in others]), strict=True):
        if rows is None:
            raise UserError(f"The network of fold {number} of {count} diverges: use a smaller learning rate.")
        logits[networks.parts[number - 1]] = rows
    details = {
        "folds": count,
        "networks": chosen.name,
        "held_out": {name: round(loss, 6) for name, loss in losses.items()},
        "cost": round(1 + training.epochs / float(trial.settings["epochs"]) * (1 - 1 / count), 2),  # plain trainings
        "seconds": networks.seconds,
        "stopped": training.stopped(chosen),
    }
    if training.repeated:
        details["repeated"] = training.repeated
    return OutOfFold(logits, details)


class _Networks:
    """The networks of folds, each stopped by the validation split.

    Args:
        trials: of the folds.
        trial: whose stage it is.
    """

    def __init__(self, trials: FoldTrials, trial: Trial) -> None:
        self.trials, self.trial = trials, trial
        self.epochs = 0.0
        self.repeated: list[str] = []
        self._stopped: dict[str, list[float]] = {}

    def logits(self, candidates: Sequence[tuple[Candidate, int]]) -> list[Tensor | None]:
        """The logits of the fold of each candidate, None where its network diverges twice."""
        options: dict[str, Any] = {"patience": PATIENCE}
        shared: dict[str, Any] = {"checkpoint": "best", "curves": True}
        predictions = self.trials.predict(candidates, options=options, **shared)
        failed = [pair for pair, prediction in zip(candidates, predictions, strict=True) if prediction.logits is None]
        self._count(candidates, predictions)
        if not failed:
            return [prediction.logits for prediction in predictions]
        options["learning_rate"] = float(self.trial.settings["learning_rate"]) / 2
        again = self.trials.predict(failed, options=options, again=True, **shared)
        self._count(failed, again)
        parts = len(self.trials.parts)
        self.repeated += [f"fold {number} of {parts} ({candidate.name})" for candidate, number in failed]
        repeats = iter(again)
        return [(next(repeats) if one.logits is None else one).logits for one in predictions]

    def stopped(self, candidate: Candidate) -> list[float]:
        """The epoch whose weights predicted, of each fold of a candidate: that of the lowest validation NLL."""
        return self._stopped.get(candidate.name, [])

    def _count(self, candidates: Sequence[tuple[Candidate, int]], predictions: Sequence[Prediction]) -> None:
        for (candidate, _), prediction in zip(candidates, predictions, strict=True):
            if not prediction.curve:
                continue
            self.epochs += float(prediction.curve[-1]["epoch"])
            measured = [line for line in prediction.curve if "validation_nll" in line]
            if measured and prediction.logits is not None:
                best = min(measured, key=lambda line: line["validation_nll"])
                self._stopped.setdefault(candidate.name, []).append(float(best["epoch"]))
