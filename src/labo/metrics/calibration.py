"""Calibration metrics: reliability bins and expected calibration error."""

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
        bins: number of bins.

    Raises:
        ValueError, TypeError: invalid probabilities, targets or shapes, or no example.

    Returns:
        One dict per bin: mean "confidence" and "accuracy" (fractions; None if the bin is empty) and "count".

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
    """The sums over examples behind `reliability`; those of several batches can be added.

    Args:
        confidence: (N,) float64, in (0, 1].
        correct: (N,) bool.
        bins: number of bins.

    Returns:
        (3, bins) float64 on the CPU: the number of examples, the sum of their confidence, the number correct.
    """
    # Bins include their upper edge, as in the paper.
    index = (torch.ceil(confidence * bins).long() - 1).clamp(0, bins - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, correct.to(confidence.dtype)])
    return values.new_zeros(3, bins).index_add(1, index, values).cpu()


def entries(sums: Tensor) -> list[dict[str, Any]]:
    """The entries of `reliability` from the sums of `binned`."""
    bins = []
    for count, confidence, correct in sums.T.tolist():
        mean = (confidence / count, correct / count) if count else (None, None)
        bins.append({"confidence": mean[0], "accuracy": mean[1], "count": int(count)})
    return bins


def expected_calibration_error(probabilities: Tensor, target: Tensor, bins: int = BINS) -> float:
    """The mean gap between confidence and accuracy over `reliability`'s bins, weighted by count; a fraction.

    Args:
        probabilities, target, bins: as in `reliability`.

    Example:
        >>> expected_calibration_error(torch.tensor([[0.25, 0.75], [0.25, 0.75]]), torch.tensor([1, 0]))
        0.25
    """
    return gap(reliability(probabilities, target, bins))


def gap(bins: list[dict[str, Any]]) -> float:
    """The expected calibration error of `reliability`'s entries."""
    nonempty = [entry for entry in bins if entry["count"]]
    total = sum(entry["count"] for entry in nonempty)
    gaps = sum(abs(entry["confidence"] - entry["accuracy"]) * entry["count"] for entry in nonempty)
    return gaps / total if total else 0.0


def adaptive_calibration_error(probabilities: Tensor, target: Tensor, bins: int = BINS) -> float:
    """`expected_calibration_error` over bins of equal numbers of examples, sorted by confidence; a fraction.

    Args:
        probabilities, target: as in `reliability`.
        bins: number of bins; with fewer examples, one an example.

    Source: Nguyen and O'Connor, *Posterior calibration and exploratory analysis for natural language processing
    models*, EMNLP 2015.

    Example:
        >>> adaptive_calibration_error(torch.tensor([[0.25, 0.75], [0.125, 0.875]]), torch.tensor([0, 1]), bins=2)
        0.4375
    """
    checks.predictions("probabilities", probabilities, target)
    checks.distribution("probabilities", probabilities, -1)
    confidence, predicted = probabilities.double().max(-1)
    order = confidence.argsort(stable=True)
    gaps = confidence[order] - (predicted == target)[order].double()
    return sum(abs(part.sum().item()) for part in gaps.tensor_split(min(bins, len(gaps)))) / len(gaps)


def classwise_calibration_error(probabilities: Tensor, target: Tensor, bins: int = BINS) -> float:
    """The mean over classes of the gap between a class's probability and its frequency, in bins of equal width.

    Args:
        probabilities, target, bins: as in `reliability`; the bins are of each class's own probability.

    Source: Kull et al., *Beyond temperature scaling*, NeurIPS 2019.

    Example:
        >>> classwise_calibration_error(torch.tensor([[0.25, 0.75], [0.25, 0.75]]), torch.tensor([1, 0]))
        0.25
    """
    checks.predictions("probabilities", probabilities, target)
    checks.distribution("probabilities", probabilities, -1)
    total = 0.0
    for k, column in enumerate(probabilities.double().unbind(-1)):
        _, confidence, frequency = binned(column, target == k, bins)
        total += (confidence - frequency).abs().sum().item()
    return total / (len(target) * probabilities.shape[-1])
