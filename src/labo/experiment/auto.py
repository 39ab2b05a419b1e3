"""The decision of `labo_auto` in a trial: its candidates are trained on halves of the training split, as folds are."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from labo.errors import UserError
from labo.experiment import settings as flat
from labo.experiment.folds import FoldTrials, Prediction, StageRunner
from labo.outer import trust
from labo.outer.trust import Candidate, Decision, HeldOut
from labo.records.trial import AUTO, Trial


def decide(trial: Trial, folder: Path, splits: Any, runner: StageRunner) -> tuple[Decision, dict[str, Any]]:
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
    budget = trial_budget(trial)
    candidates = trust.candidates_at(budget)
    most = len(candidates) * (1 if budget < trust.BUDGET else count)
    count = trust.QUARTERS if budget < trust.BUDGET else count
    parts = FoldTrials(trial, folder / AUTO, splits, count=count, most=most, runner=runner)
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    # With checkpoint "best" the curve is of the validation split, by which the best epoch is chosen.
    of_held_out = trial.checkpoint == "last"
    predictions: dict[tuple[str, int], Prediction] = {}

    def train_half(candidate: Candidate, half: int) -> HeldOut | None:
        if (candidate.name, half) not in predictions:  # all candidates of a half, side by side
            only, number = half == trust.QUARTER, max(1, half)
            trained = parts.predict([(it, number) for it in candidates], options={}, curves=of_held_out, only=only)
            predictions.update({(it.name, half): one for it, one in zip(candidates, trained, strict=True)})
        logits, curve, record = predictions[candidate.name, half]
        if logits is None:
            return None
        curves.setdefault(candidate.name, []).append(curve)
        own = parts.held_out(max(1, half), only=half == trust.QUARTER)
        return HeldOut(logits, target[own], float(record["agreement"]))

    decision = trust.decide(train_half, budget)
    details = {**decision.as_json(), "seconds": parts.seconds}
    return decision, details | {"curves": {name: _mean_curve(lines) for name, lines in curves.items()}}


def trial_budget(trial: Trial) -> float:
    """The budget of a trial of `labo_auto`, in plain runs."""
    return float(flat.method_options(trial.method, trial.settings).get("budget", trust.BUDGET))


def _mean_curve(curves: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """The held-out NLL and accuracy of each epoch, the mean over halves."""
    keys = {"validation_nll": "nll", "validation_accuracy": "accuracy"}
    measured = [[line for line in curve if keys.keys() <= line.keys()] for curve in curves]
    return [
        {name: round(fmean(line[key] for line in lines), 6) for key, name in keys.items()}
        for lines in zip(*measured, strict=False)
    ]
