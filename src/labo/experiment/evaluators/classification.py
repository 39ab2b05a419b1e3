"""Classifiers: accuracy, NLL, Brier score, calibration, selective prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from labo.errors import NonFiniteLogitsError
from labo.experiment.evaluators.base import Evaluator
from labo.metrics.calibration import reliability
from labo.metrics.scores import classification_scores, scores, scores_at
from labo.metrics.temperature import search_temperature
from labo.networks import logits_of
from labo.records.storage import write_object
from labo.records.trial import FIGURES
from labo.reduction import as_rows

# A prediction batch: at most so many examples, and at most so many bytes as float32 inputs.
PREDICTION_ROWS, PREDICTION_BYTES = 1024, 2**26
# Mean labels are a matrix of classes by classes.
MAX_LABEL_CLASSES = 100


def prediction_batches(features: Any) -> Iterator[Tensor]:
    """Features (N, …) in order, in batches that fit into memory; encoded images are decoded.

    Example:
        >>> [len(batch) for batch in prediction_batches(torch.zeros(2, 3, 2048, 2048, dtype=torch.uint8))]
        [1, 1]
    """
    row_bytes = 4 * math.prod(features.shape[1:])
    yield from features.split(max(1, min(PREDICTION_ROWS, PREDICTION_BYTES // max(1, row_bytes))))


def predict(model: nn.Module, features: Any) -> Tensor:
    """Logits (N, C) of features (N, …), float32 on the CPU, in evaluation mode; batch by batch."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = [logits_of(model(batch.to(device))).float().cpu() for batch in prediction_batches(features)]
    model.train(training)
    return torch.cat(logits)


class ClassificationEvaluator(Evaluator):
    """One label per example; see `labo.metrics.scores`."""

    @override
    def validate(self, model: nn.Module, examples: Any, *, best: bool) -> tuple[dict[str, float], float]:
        """The best epoch has the lowest NLL after temperature scaling."""
        logits, target = predict(model, examples.features), examples.target
        metrics = classification_scores(logits, target)
        curve = {"validation_nll": metrics["nll"], "validation_accuracy": metrics["accuracy"]}
        if not best:
            return curve, 0.0
        scaled = classification_scores(logits, target, temperature=search_temperature(logits, target))["nll"]
        return {**curve, "validation_nll_scaled": scaled}, scaled

    @override
    def tuning_metrics(self, model: nn.Module, examples: Any) -> dict[str, float]:
        logits, target = _finite_logits(model, examples), examples.target
        scaled = classification_scores(logits, target, temperature=search_temperature(logits, target))
        return {**classification_scores(logits, target), "nll_scaled": scaled["nll"]}

    @override
    def test_metrics(self, model: nn.Module, loss: Any, splits: Any, folder: Path) -> dict[str, Any]:
        validation = _finite_logits(model, splits.validation)
        logits = predict(model, splits.test.features)
        metrics = scores(validation, splits.validation.target, logits, splits.test.target)
        diagrams = {
            name: reliability((logits.double() / temperature).softmax(-1), splits.test.target)
            for name, temperature in (("raw", 1.0), ("scaled", metrics["temperature"]))
        }
        labels = mean_labels(model, loss.regularizer, splits.validation, len(splits.classes))
        figures = {"classes": splits.classes, "temperature": metrics["temperature"]}
        write_object(folder / FIGURES, {**figures, "reliability": diagrams, "labels": labels})
        return {"metrics": metrics}

    @override
    def scores(self, model: nn.Module, examples: Any, fitted: Mapping[str, float]) -> dict[str, float]:
        logits, exponent = predict(model, examples.features), fitted.get("norm_exponent")  # earlier versions have none
        return scores_at(fitted["temperature"], logits, examples.target, None if exponent is None else int(exponent))


def _finite_logits(model: nn.Module, examples: Any) -> Tensor:
    logits = predict(model, examples.features)
    if not bool(logits.isfinite().all()):
        raise NonFiniteLogitsError
    return logits


def mean_labels(model: Any, regularizer: Any, examples: Any, classes: int) -> list[list[float | None]] | None:
    """The mean soft label that a regularizer gives to the examples of each class: a row of `classes` masses per class.

    None for a method without labels, or with labels for training examples alone, or with more than
    `MAX_LABEL_CLASSES` classes. A class without an example has a row of None.
    """
    if classes > MAX_LABEL_CLASSES:
        return None
    device = next(model.parameters()).device
    sums, seen = torch.zeros(classes, classes, dtype=torch.float64), 0
    for batch in prediction_batches(examples.features):
        features, target = batch.to(device), examples.target[seen : seen + len(batch)]
        rows = as_rows(predict(model, features).to(device), target.to(device), None, -100)
        with torch.no_grad():
            labels = regularizer.eval().labels(replace(rows, given={"inputs": {"features": features}}))
        if labels is None:
            return None
        sums.index_add_(0, target, labels.double().cpu())
        seen += len(batch)
    counts = torch.bincount(examples.target, minlength=classes)
    means = (sums / counts.clamp(min=1).unsqueeze(1)).tolist()
    return [
        [round(value, 8) for value in row] if count else [None] * classes
        for row, count in zip(means, counts.tolist(), strict=True)
    ]
