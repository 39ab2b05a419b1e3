"""The decision of `labo_auto` in a trial: its candidates are trained on halves of the training split, as folds are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from labo.errors import UserError
from labo.experiment.folds import FoldTrials, RunTrial
from labo.outer import trust
from labo.outer.trust import Candidate, Decision, HeldOut
from labo.records.trial import AUTO, Trial


def decide(
    trial: Trial, folder: Path, splits: Any, run: RunTrial, progress: Callable[[float], None]
) -> tuple[Decision, dict[str, Any]]:
    """(the decision of `labo_auto`, what the record says of it); arguments as in `FoldTrials`, `folder` of the trial.

    Raises:
        UserError: there are too few training examples.
    """
    target, count = splits.train.target, len(trust.HALVES)
    if len(target) < trust.MIN_EXAMPLES:
        raise UserError(
            f"Expected at least {trust.MIN_EXAMPLES} training examples for method '{trial.method}', but got "
            f"{len(target)}."
        )
    halves = FoldTrials(trial, folder / AUTO, splits, count=count, most=2 * count, run=run, progress=progress)
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    # With checkpoint "best" the curve is of the validation split, by which the best epoch is chosen.
    of_held_out = trial.checkpoint == "last"

    def train_half(candidate: Candidate, half: int) -> HeldOut | None:
        logits, curve, record = halves.predict(candidate, half, options={}, curves=of_held_out)
        if logits is None:
            return None
        curves.setdefault(candidate.name, []).append(curve)
        return HeldOut(logits, target[halves.parts[half - 1]], float(record["agreement"]))

    decision = trust.decide(train_half)
    details = {**decision.as_json(), "seconds": halves.seconds}
    return decision, details | {"curves": {name: _mean_curve(lines) for name, lines in curves.items()}}


def _mean_curve(curves: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """The held-out NLL and accuracy of each epoch, the mean over halves."""
    keys = {"validation_nll": "nll", "validation_accuracy": "accuracy"}
    measured = [[line for line in curve if keys.keys() <= line.keys()] for curve in curves]
    return [
        {name: round(fmean(line[key] for line in lines), 6) for key, name in keys.items()}
        for lines in zip(*measured, strict=False)
    ]
