"""What networks of folds say of a trial's labels: posterior labels by a noise channel, or which examples to leave out.

The first is the stage of `labo[prior=channel]`, the second that of `confident_learning`; both see the same predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labo.errors import UserError
from labo.experiment.folds import FoldTrials, Prediction, RunTrial
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


def cross_fit(
    trial: Trial, folder: Path, splits: Any, run: RunTrial, progress: Callable[[float], None]
) -> tuple[Tensor, dict[str, Any]]:
    """(posterior labels (N, C) of the training split, what the record says of them).

    Arguments are as in `FoldTrials`, `folder` is of the trial.

    Raises:
        UserError: as for `out_of_fold`.
    """
    logits, details = out_of_fold(trial, folder, splits, run, progress)
    target = splits.train.target
    channel = fit_channel(logits, target, seed=trial.seed)
    posterior = posterior_labels(logits, target, channel)
    changed = int((posterior.argmax(-1) != target).sum())
    return posterior, {**channel.as_json(), **details, "changed": changed}


def keep_confident(
    trial: Trial, folder: Path, splits: Any, run: RunTrial, progress: Callable[[float], None]
) -> tuple[Tensor, dict[str, Any]]:
    """(indices of the training examples that confident learning keeps, what the record says of it).

    Source: Northcutt et al., JAIR 2021, as the package cleanlab does it by default.

    Raises:
        UserError: as for `out_of_fold`.
    """
    from cleanlab.filter import find_label_issues

    logits, details = out_of_fold(trial, folder, splits, run, progress)
    issues = find_label_issues(splits.train.target.numpy(), logits.double().softmax(-1).numpy(), n_jobs=1)
    kept = (~torch.from_numpy(issues)).nonzero().squeeze(-1)
    removed = len(logits) - len(kept)
    sentence = f"Confident learning left out {removed} of {counted(len(logits), 'training example')}."
    if splits.train.before_noise is not None:
        wrong = splits.train.before_noise != splits.train.target
        details = {**details, "removed_wrong": int(wrong[torch.from_numpy(issues)].sum()), "wrong": int(wrong.sum())}
    return kept, {**details, "removed": removed, "sentence": sentence}


def out_of_fold(trial: Trial, folder: Path, splits: Any, run: RunTrial, progress: Callable[[float], None]) -> OutOfFold:
    """Predictions of the training split by networks of folds.

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
    networks = FoldTrials(trial, folder / CROSS_FIT, splits, count=count, most=count + 1, run=run, progress=progress)
    predictions: list[Prediction] = []

    def logits_of(candidate: Candidate, number: int) -> Tensor | None:
        options = {"patience": PATIENCE}
        predictions.append(networks.predict(candidate, number, options=options, checkpoint="best", curves=True))
        return predictions[-1].logits

    first = {candidate.name: logits_of(candidate, 1) for candidate in CANDIDATES}
    first = {name: logits for name, logits in first.items() if logits is not None}
    if not first:
        raise UserError(f"The networks of the first of {count} folds diverge: use a smaller learning rate.")
    labels = target[networks.parts[0]]
    losses = {name: channel_losses(logits, labels).mean().item() for name, logits in first.items()}
    chosen = min((candidate for candidate in CANDIDATES if candidate.name in losses), key=lambda it: losses[it.name])
    logits = torch.empty(len(target), len(splits.classes))
    for number, part in enumerate(networks.parts, 1):
        rows = first[chosen.name] if number == 1 else logits_of(chosen, number)
        if rows is None:
            raise UserError(f"The network of fold {number} of {count} diverges: use a smaller learning rate.")
        logits[part] = rows
    epochs = sum(float(lines[-1]["epoch"]) for _, lines, _ in predictions if lines)
    details = {
        "folds": count,
        "networks": chosen.name,
        "held_out": {name: round(loss, 6) for name, loss in losses.items()},
        "cost": round(1 + epochs / float(trial.settings["epochs"]) * (1 - 1 / count), 2),  # in plain trainings
        "seconds": networks.seconds,
    }
    return OutOfFold(logits, details)
