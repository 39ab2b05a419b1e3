"""The decision of `labo_auto` in a trial: its candidates are trained on halves of the training split, as folds are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from labo.errors import UserError
from labo.experiment import folds
from labo.experiment import settings as flat
from labo.outer import trust
from labo.outer.trust import Candidate, Decision, HeldOut
from labo.records.storage import read_lines
from labo.records.trial import AUTO, CURVE, Trial, check_file

# (trial, its folder, receives the fraction done) -> record
RunTrial = Callable[[Trial, Path, Callable[[float], None]], Mapping[str, Any]]


def decide(
    trial: Trial, folder: Path, splits: Any, run: RunTrial, progress: Callable[[float], None]
) -> tuple[Decision, dict[str, Any]]:
    """(the decision, what the record says of it).

    Finished trials of halves are read, and an interrupted one is resumed.

    Args:
        trial: of a method that decides for itself.
        folder: of the trial.
        splits: of its task and seed.
        run: runs a trial in a folder and returns its record.
        progress: receives the fraction of the decision that is done, 0 to 1.

    Raises:
        UserError: there are too few training examples.
    """
    target, max_trials = splits.train.target, 2 * len(trust.HALVES)
    if len(target) < trust.MIN_EXAMPLES:
        raise UserError(
            f"Expected at least {trust.MIN_EXAMPLES} training examples for method '{trial.method}', but got "
            f"{len(target)}."
        )
    halves = trust.halves(target, trial.seed)
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    seconds: list[float] = []

    def train_half(candidate: Candidate, half: int) -> HeldOut | None:
        done = len(seconds)
        half_folder = folder / AUTO / candidate.name / str(half)
        record = run(
            _half_trial(trial, candidate, half),
            half_folder,
            lambda fraction: progress((done + fraction) / max_trials),
        )
        seconds.append(float(record["seconds"]))
        if record.get("failed"):
            return None
        curves.setdefault(candidate.name, []).append(read_lines(check_file(half_folder, CURVE, record)))
        logits = folds.read_logits(half_folder, len(halves[half - 1]), len(splits.classes))
        return HeldOut(logits, target[halves[half - 1]], float(record["agreement"]))

    decision = trust.decide(train_half)
    details = {**decision.as_json(), "seconds": round(sum(seconds), 3)}
    return decision, details | {"curves": {name: _mean_curve(lines) for name, lines in curves.items()}}


def _half_trial(trial: Trial, candidate: Candidate, half: int) -> Trial:
    """The trial of a candidate without a half; its curve is of that half."""
    training, _ = flat.split(trial.settings, trial.method)
    settings = flat.resolve(training, candidate.method, candidate.options)
    last = trial.checkpoint == "last"  # else the curve is of the validation split, by which the best epoch is chosen
    return replace(
        trial, method=candidate.method, settings=settings, fold=f"{half}/2", curves=last, tuning=False, teacher=""
    )


def _mean_curve(curves: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """The held-out NLL and accuracy of each epoch, the mean over halves."""
    keys = {"validation_nll": "nll", "validation_accuracy": "accuracy"}
    measured = [[line for line in curve if keys.keys() <= line.keys()] for curve in curves]
    return [
        {name: round(fmean(line[key] for line in lines), 6) for key, name in keys.items()}
        for lines in zip(*measured, strict=False)
    ]
