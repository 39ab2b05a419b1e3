"""What a record says of a trained network, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from labo.experiment import checkpoint, folds, training
from labo.experiment.trial import WEIGHTS, Trial
from labo.metrics.calibration import reliability
from labo.metrics.scores import classification_scores, scores
from labo.metrics.temperature import fit_temperature
from labo.reduction import as_rows
from labo.storage import write_object


def failed(failure: training.DivergedError) -> dict[str, Any]:
    """What a record says of a loss that was no number."""
    return {"metrics": {}, "failed": {"step": failure.step, "reason": failure.reason}}


def results(trial: Trial, model: Any, loss: Any, splits: Any, held_out: Any, step: int, folder: Path) -> dict[str, Any]:
    """What a record says of a trained network; what is kept of it is written."""
    validation = training.predict(model, splits.validation.features)
    if not bool(validation.isfinite().all()):
        return failed(training.DivergedError(step, "the trained network gives logits that are no numbers"))
    if held_out is not None:
        return {"held_out": folds.keep(model, held_out, folder)}
    if trial.tuning:
        return {"validation": _validation_scores(validation, splits.validation.target)}
    return {"metrics": _test(model, loss, splits, validation, folder), "step": step}


def _validation_scores(logits: Any, target: Any) -> dict[str, float]:
    scaled = classification_scores(logits, target, temperature=fit_temperature(logits, target))
    return {**classification_scores(logits, target), "nll_scaled": scaled["nll"]}


def _test(model: Any, loss: Any, splits: Any, validation: Any, folder: Path) -> dict[str, float]:
    """The scores of the test split; what is kept of the run is written."""
    logits = training.predict(model, splits.test.features)
    metrics = scores(validation, splits.validation.target, logits, splits.test.target)
    _keep(model, loss, splits, logits, metrics["temperature"], folder)
    return metrics


def _keep(model: Any, loss: Any, splits: Any, test_logits: Any, temperature: float, folder: Path) -> None:
    """Write the weights, and what the report draws."""
    checkpoint.save_weights(model, folder / WEIGHTS)
    diagrams = {
        name: reliability((test_logits.double() / scale).softmax(-1), splits.test.target)
        for name, scale in (("raw", 1.0), ("scaled", temperature))
    }
    labels = mean_labels(model, loss.regularizer, splits.validation, len(splits.classes))
    figures = {"classes": splits.classes, "temperature": temperature, "reliability": diagrams, "labels": labels}
    write_object(folder / "figures.json", figures)


def mean_labels(model: Any, regularizer: Any, examples: Any, classes: int) -> list[list[float | None]] | None:
    """The mean label that a regularizer gives to the examples of each class, class by class.

    None for a method without labels, or with labels for training examples alone, or with more than 100 classes. A class
    without an example has a row of None.
    """
    if classes > 100:
        return None
    device = next(model.parameters()).device
    sums, seen = torch.zeros(classes, classes, dtype=torch.float64), 0
    for piece in training.pieces(examples.features):
        features, target = piece.to(device), examples.target[seen : seen + len(piece)]
        rows = as_rows(training.predict(model, features).to(device), target.to(device), None, -100)
        with torch.no_grad():
            labels = regularizer.eval().labels(replace(rows, given={"inputs": {"features": features}}))
        if labels is None:
            return None
        sums.index_add_(0, target, labels.double().cpu())
        seen += len(piece)
    counts = torch.bincount(examples.target, minlength=classes)
    rows = (sums / counts.clamp(min=1).unsqueeze(1)).tolist()
    return [
        [round(value, 8) for value in row] if count else [None] * classes
        for row, count in zip(rows, counts.tolist(), strict=True)
    ]
