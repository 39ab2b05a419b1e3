"""Calibration: whether predictions of 80% are right 80% of the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labo import checks

BINS = 15


def reliability(probabilities: Tensor, target: Tensor, bins: int = BINS) -> list[dict[str, Any]]:
    """Accuracy against confidence in `bins` bins of equal width over (0, 1].

    Args:
        probabilities: (N, C).
        target: (N,) class indices.
        bins: how many.

    Raises:
        ValueError, TypeError: no probabilities that sum to 1, targets that are no classes, other shapes, or no example.

    Returns:
        One dict a bin: mean "confidence" and "accuracy" (fractions; None where the bin is empty) and "count".

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, section 2.

    Example:
        >>> reliability(torch.tensor([[0.375, 0.625], [0.125, 0.875]]), torch.tensor([1, 0]), bins=2)[1]
        {'confidence': 0.75, 'accuracy': 0.5, 'count': 2}
    """
    checks.predictions("probabilities", probabilities, target)
    checks.distribution("probabilities", probabilities, -1)
    confidence, predicted = probabilities.double().max(-1)
    return entries(binned(confidence, predicted == target, bins))


def binned(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Tensor:
    """What `reliability` counts, as sums over examples, which those of several batches add up to.

    Args:
        confidence: (N,) float64, in (0, 1].
        correct: (N,) bool.
        bins: how many.

    Returns:
        (3, bins) float64 on the CPU: the number of examples, the sum of their confidence, how many are right.
    """
    # The upper edge belongs to a bin, as in the paper.
    index = (torch.ceil(confidence * bins).long() - 1).clamp(0, bins - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, correct.to(confidence.dtype)])
    return values.new_zeros(3, bins).index_add(1, index, values).cpu()


def entries(sums: Tensor) -> list[dict[str, Any]]:
    """The sums of `binned` as `reliability` gives them."""
    found = []
    for held, sure, right in sums.T.tolist():
        mean = (sure / held, right / held) if held else (None, None)
        found.append({"confidence": mean[0], "accuracy": mean[1], "count": int(held)})
    return found


def expected_calibration_error(probabilities: Tensor, target: Tensor, bins: int = BINS) -> float:
    """The mean gap between confidence and accuracy over `reliability`'s bins, weighted by count; a fraction.

    Args:
        probabilities, target, bins: as in `reliability`.

    Example:
        >>> expected_calibration_error(torch.tensor([[0.25, 0.75], [0.25, 0.75]]), torch.tensor([1, 0]))
        0.25
    """
    return gap(reliability(probabilities, target, bins))


def gap(found: list[dict[str, Any]]) -> float:
    """The expected calibration error of `reliability`'s entries."""
    held = [entry for entry in found if entry["count"]]
    total = sum(entry["count"] for entry in held)
    gaps = sum(abs(entry["confidence"] - entry["accuracy"]) * entry["count"] for entry in held)
    return gaps / total if total else 0.0
