"""The decision of `labo_auto` in a trial: candidates are trained on halves of the training split, as folds are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from labo.errors import UserError
from labo.experiment import settings as flat
from labo.records.storage import read_lines

if TYPE_CHECKING:
    from torch import Tensor

    from labo.experiment.run_trial import Trial
    from labo.outer.trust import Candidate, Decision

# Where the trials of the halves lie, in the folder of the trial that decides.
FOLDER = "auto"
Run = Callable[["Trial", Path, Callable[[float], None]], Mapping[str, Any]]


def decide(
    trial: Trial, folder: Path, splits: Any, run: Run, progress: Callable[[float], None]
) -> tuple[Decision, dict[str, Any]]:
    """(the decision, what the record says of it).

    Trials of halves that are finished are read, and an interrupted one goes on.

    Args:
        trial: of a method that decides by itself.
        folder: the trial's.
        splits: of its task and seed.
        run: runs a trial in a folder and gives its record.
        progress: told how much of the decision is done, 0 to 1.

    Raises:
        UserError: there are too few training examples.
    """
    from labo.experiment import folds
    from labo.outer import trust

    target, most = splits.train.target, 2 * len(trust.HALVES)
    if len(target) < trust.MIN_EXAMPLES:
        raise UserError(
            f"Expected at least {trust.MIN_EXAMPLES} training examples for method '{trial.method}', but got "
            f"{len(target)}."
        )
    parts = trust.halves(target, trial.seed)
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    seconds: list[float] = []

    def held_out(candidate: Candidate, half: int) -> tuple[Tensor, Tensor] | None:
        done = len(seconds)
        home = folder / FOLDER / candidate.name / str(half)
        record = run(_part(trial, candidate, half), home, lambda share: progress((done + share) / most))
        seconds.append(float(record["seconds"]))
        if record.get("failed"):
            return None
        curves.setdefault(candidate.name, []).append(read_lines(home / "curve.jsonl"))
        return folds.held_out(home, len(parts[half - 1]), len(splits.classes)), target[parts[half - 1]]

    decision = trust.decide(held_out)
    about = {**decision.as_json(), "seconds": round(sum(seconds), 3)}
    return decision, about | {"curves": {name: _mean(found) for name, found in curves.items()}}


def _part(trial: Trial, candidate: Candidate, half: int) -> Trial:
    """The trial of a candidate without a half; its curve is of that half."""
    training, _ = flat.split(trial.settings, trial.method)
    settings = flat.resolve(training, candidate.method, candidate.options)
    last = trial.checkpoint == "last"  # else the curve is of the validation split, by which the best epoch is chosen
    return replace(
        trial, method=candidate.method, settings=settings, fold=f"{half}/2", curves=last, tuning=False, teacher=""
    )


def _mean(curves: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """The held-out NLL and accuracy of each epoch, the mean over halves."""
    keys = {"validation_nll": "nll", "validation_accuracy": "accuracy"}
    whole = [[line for line in curve if keys.keys() <= line.keys()] for curve in curves]
    return [
        {name: round(fmean(line[key] for line in lines), 6) for key, name in keys.items()}
        for lines in zip(*whole, strict=False)
    ]
