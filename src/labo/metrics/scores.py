"""Classification metrics: accuracy, NLL, Brier score, calibration and selective prediction; and those of each class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from labo import checks
from labo.metrics.calibration import (
    adaptive_calibration_error,
    classwise_calibration_error,
    expected_calibration_error,
)
from labo.metrics.selective import fit_exponent, selective_scores
from labo.metrics.temperature import search_temperature

# The k of top-k accuracy.
TOP = 5


def classification_scores(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> dict[str, float]:
    """Metrics of softmax(logits / temperature), computed in float64.

    Args:
        logits: (N, C).
        target: (N,) class indices.
        temperature: above 0.

    Returns:
        "accuracy" and "ece" (15 bins) as fractions, "nll" in nats, "brier" as the mean over examples of the squared
        distance to the one-hot target, summed over classes (0 to 2). With more than five classes also "top5", the
        fraction of examples whose target is among the five most likely classes.

    Raises:
        ValueError, TypeError: logits with NaN or inf, invalid targets or shapes, or no example.

    Example:
        >>> import torch
        >>> classification_scores(torch.zeros(2, 2), torch.tensor([0, 1]))["brier"]
        0.5
    """
    checks.predictions("logits", logits, target)
    log_p = log_softmax(logits.detach().double() / temperature, -1)
    p = log_p.exp()
    metrics = {"accuracy": (log_p.argmax(-1) == target).double().mean().item()}
    if log_p.shape[-1] > TOP:
        in_top = (log_p.topk(TOP).indices == target.unsqueeze(-1)).any(-1)
        metrics["top5"] = in_top.double().mean().item()
    return metrics | {
        "nll": -log_p.gather(-1, target.unsqueeze(-1)).mean().item(),
        "brier": (p - one_hot(target, p.shape[-1])).square().sum(-1).mean().item(),
        "ece": expected_calibration_error(p, target),
    }


def scores(
    validation_logits: Tensor, validation_target: Tensor, test_logits: Tensor, test_target: Tensor
) -> dict[str, float]:
    """`scores_at` of the test split, with the temperature and the exponent of the norm fitted on validation."""
    exponent = fit_exponent(validation_logits, validation_target)
    return scores_at(search_temperature(validation_logits, validation_target), test_logits, test_target, exponent)


def scores_at(temperature: float, logits: Tensor, target: Tensor, exponent: int | None = None) -> dict[str, float]:
    """`classification_scores`, raw and ("…_scaled") at `temperature`, what is measured once, and the temperature.

    Accuracies do not depend on the temperature and are included once. Added are "ece_adaptive" and "ece_classwise", raw
    and scaled, and `selective_scores`; "norm_exponent" is `exponent`, where there is one.
    """
    metrics = classification_scores(logits, target)
    scaled = classification_scores(logits, target, temperature=temperature)
    metrics |= {f"{key}_scaled": scaled[key] for key in ("nll", "brier", "ece")}
    for suffix, divisor in (("", 1.0), ("_scaled", temperature)):
        p = (logits.detach().double() / divisor).softmax(-1)
        metrics[f"ece_adaptive{suffix}"] = adaptive_calibration_error(p, target)
        metrics[f"ece_classwise{suffix}"] = classwise_calibration_error(p, target)
    metrics |= selective_scores(logits, target, exponent) | {"temperature": temperature}
    return metrics if exponent is None else metrics | {"norm_exponent": exponent}


def class_scores(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> list[dict[str, Any]]:
    """Metrics of each class, of softmax(logits / temperature), computed in float64.

    Args:
        logits: (N, C).
        target: (N,) class indices.
        temperature: above 0.

    Raises:
        ValueError, TypeError: as in `classification_scores`.

    Returns:
        One dict per class: the number of its "examples" and of examples "predicted" as it; its "recall" (accuracy) and
        "precision" as fractions; over its examples the mean probability of the class, "confidence", and the mean "nll"
        in nats. Fractions and means of nothing are None.

    Example:
        >>> per_class = class_scores(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1]))
        >>> [(entry["examples"], entry["recall"], entry["precision"]) for entry in per_class]
        [(1, 1.0, 0.5), (2, 0.5, 1.0)]
    """
    checks.predictions("logits", logits, target)
    classes = logits.shape[-1]
    log_p = log_softmax(logits.detach().double() / temperature, -1)
    log_p_target = log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    predicted = log_p.argmax(-1)
    examples, predictions, correct = (
        torch.bincount(values, minlength=classes).tolist()
        for values in (target, predicted, target[predicted == target])
    )
    confidence, nll = (
        torch.zeros(classes, dtype=torch.float64).index_add(0, target, values).tolist()
        for values in (log_p_target.exp(), -log_p_target)
    )
    return [
        {
            "examples": examples[k],
            "predicted": predictions[k],
            "recall": _ratio(correct[k], examples[k]),
            "precision": _ratio(correct[k], predictions[k]),
            "confidence": _ratio(confidence[k], examples[k]),
            "nll": _ratio(nll[k], examples[k]),
        }
        for k in range(classes)
    ]


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None
