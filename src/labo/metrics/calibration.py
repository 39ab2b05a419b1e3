"""Calibration: whether predictions of 80% are right 80% of the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 15


def reliability(probabilities: Tensor, target: Tensor, bins: int = BINS) -> list[dict[str, Any]]:
    """Accuracy against confidence in `bins` bins of equal width over (0, 1].

    Args:
        probabilities: (N, C).
        target: (N,) class indices.
        bins: how many.

    Returns:
        One dict a bin: mean "confidence" and "accuracy" (fractions; None where the bin is empty) and "count".

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, section 2.

    Example:
        >>> reliability(torch.tensor([[0.375, 0.625], [0.125, 0.875]]), torch.tensor([1, 0]), bins=2)[1]
        {'confidence': 0.75, 'accuracy': 0.5, 'count': 2}
    """
    confidence, predicted = probabilities.double().max(-1)
    correct = (predicted == target).double()
    # The upper edge belongs to a bin, as in the paper.
    index = (torch.ceil(confidence * bins).long() - 1).clamp(0, bins - 1)
    count = torch.bincount(index, minlength=bins)
    sums = [torch.zeros(bins, dtype=torch.float64).index_add(0, index, values) for values in (confidence, correct)]
    found = []
    for held, sure, right in zip(count.tolist(), *(s.tolist() for s in sums), strict=True):
        mean = (sure / held, right / held) if held else (None, None)
        found.append({"confidence": mean[0], "accuracy": mean[1], "count": held})
    return found


def expected_calibration_error(probabilities: Tensor, target: Tensor, bins: int = BINS) -> float:
    """The mean gap between confidence and accuracy over `reliability`'s bins, weighted by count; a fraction.

    Args:
        probabilities, target, bins: as in `reliability`.

    Example:
        >>> expected_calibration_error(torch.tensor([[0.25, 0.75], [0.25, 0.75]]), torch.tensor([1, 0]))
        0.25
    """
    found = [entry for entry in reliability(probabilities, target, bins) if entry["count"]]
    total = sum(entry["count"] for entry in found)
    gaps = sum(abs(entry["confidence"] - entry["accuracy"]) * entry["count"] for entry in found)
    return gaps / total if total else 0.0
