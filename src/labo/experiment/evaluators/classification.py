"""Classifiers: accuracy, NLL, Brier score, calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labo.experiment import prediction
from labo.experiment.evaluators.base import Judge, NoNumbersError
from labo.metrics.calibration import reliability
from labo.metrics.scores import classification_scores, scores, scores_at
from labo.metrics.temperature import fit_temperature
from labo.records.storage import write_object
from labo.reduction import as_rows


class Classification(Judge):
    """One label an example; see `labo.metrics.scores`."""

    def of_epoch(self, model: nn.Module, examples: Any, *, best: bool) -> tuple[dict[str, float], float]:
        """See `Judge.of_epoch`: the best epoch has the lowest NLL after temperature scaling."""
        logits, target = prediction.predict(model, examples.features), examples.target
        found = classification_scores(logits, target)
        measured = {"validation_nll": found["nll"], "validation_accuracy": found["accuracy"]}
        if not best:
            return measured, 0.0
        scaled = classification_scores(logits, target, temperature=fit_temperature(logits, target))["nll"]
        return {**measured, "validation_nll_scaled": scaled}, scaled

    def for_tuning(self, model: nn.Module, examples: Any) -> dict[str, float]:
        """See `Judge.for_tuning`."""
        logits, target = _numbers(model, examples), examples.target
        scaled = classification_scores(logits, target, temperature=fit_temperature(logits, target))
        return {**classification_scores(logits, target), "nll_scaled": scaled["nll"]}

    def at_the_end(self, model: nn.Module, loss: Any, splits: Any, folder: Path) -> dict[str, Any]:
        """See `Judge.at_the_end`."""
        validation = _numbers(model, splits.validation)
        logits = prediction.predict(model, splits.test.features)
        metrics = scores(validation, splits.validation.target, logits, splits.test.target)
        diagrams = {
            name: reliability((logits.double() / scale).softmax(-1), splits.test.target)
            for name, scale in (("raw", 1.0), ("scaled", metrics["temperature"]))
        }
        labels = mean_labels(model, loss.regularizer, splits.validation, len(splits.classes))
        figures = {"classes": splits.classes, "temperature": metrics["temperature"]}
        write_object(folder / "figures.json", {**figures, "reliability": diagrams, "labels": labels})
        return {"metrics": metrics}

    def scores(self, model: nn.Module, examples: Any, temperature: float) -> dict[str, float]:
        """See `Judge.scores`."""
        return scores_at(temperature, prediction.predict(model, examples.features), examples.target)


def _numbers(model: nn.Module, examples: Any) -> Tensor:
    logits = prediction.predict(model, examples.features)
    if not bool(logits.isfinite().all()):
        raise NoNumbersError
    return logits


def mean_labels(model: Any, regularizer: Any, examples: Any, classes: int) -> list[list[float | None]] | None:
    """The mean label that a regularizer gives to the examples of each class, class by class.

    None for a method without labels, or with labels for training examples alone, or with more than 100 classes. A class
    without an example has a row of None.
    """
    if classes > 100:
        return None
    device = next(model.parameters()).device
    sums, seen = torch.zeros(classes, classes, dtype=torch.float64), 0
    for piece in prediction.pieces(examples.features):
        features, target = piece.to(device), examples.target[seen : seen + len(piece)]
        rows = as_rows(prediction.predict(model, features).to(device), target.to(device), None, -100)
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
