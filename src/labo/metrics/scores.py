"""What a classifier is scored by: accuracy, NLL, Brier score and calibration, over all examples and class by class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from labo import checks
from labo.metrics.calibration import expected_calibration_error
from labo.metrics.temperature import search_temperature

# The target among so many of the likeliest classes counts as found.
TOP = 5


def classification_scores(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> dict[str, float]:
    """Scores of softmax(logits / temperature), computed in float64.

    Args:
        logits: (N, C).
        target: (N,) class indices.
        temperature: above 0.

    Returns:
        "accuracy" and "ece" (15 bins) as fractions, "nll" in nats, "brier" as the mean over examples of the squared
        distance to the one-hot target, summed over classes (0 to 2). With more than five classes also "top5", the
        fraction of examples whose target is among the five likeliest.

    Raises:
        ValueError, TypeError: logits with NaN or inf, targets that are no classes, other shapes, or no example.

    Example:
        >>> import torch
        >>> classification_scores(torch.zeros(2, 2), torch.tensor([0, 1]))["brier"]
        0.5
    """
    checks.predictions("logits", logits, target)
    log_p = log_softmax(logits.detach().double() / temperature, -1)
    p = log_p.exp()
    found = {"accuracy": (log_p.argmax(-1) == target).double().mean().item()}
    if log_p.shape[-1] > TOP:
        among = (log_p.topk(TOP).indices == target.unsqueeze(-1)).any(-1)
        found["top5"] = among.double().mean().item()
    return found | {
        "nll": -log_p.gather(-1, target.unsqueeze(-1)).mean().item(),
        "brier": (p - one_hot(target, p.shape[-1])).square().sum(-1).mean().item(),
        "ece": expected_calibration_error(p, target),
    }


def scores(
    validation_logits: Tensor, validation_target: Tensor, test_logits: Tensor, test_target: Tensor
) -> dict[str, float]:
    """`classification_scores` of the test split, raw and ("…_scaled") at the temperature fitted on validation.

    Accuracies do not change with temperature and are given once; "temperature" is the one fitted.
    """
    return scores_at(search_temperature(validation_logits, validation_target), test_logits, test_target)


def scores_at(temperature: float, logits: Tensor, target: Tensor) -> dict[str, float]:
    """`classification_scores` raw and ("…_scaled") at `temperature`, which is among them."""
    found = classification_scores(logits, target)
    scaled = classification_scores(logits, target, temperature=temperature)
    found |= {f"{key}_scaled": scaled[key] for key in ("nll", "brier", "ece")}
    return found | {"temperature": temperature}


def class_scores(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> list[dict[str, Any]]:
    """How each class fares by softmax(logits / temperature), computed in float64.

    Args:
        logits: (N, C).
        target: (N,) class indices.
        temperature: above 0.

    Raises:
        ValueError, TypeError: as in `classification_scores`.

    Returns:
        One dict a class: "examples" of it and how many are "predicted" to be of it; "recall", the fraction of its
        examples that are found (its accuracy), and "precision", the fraction of those predicted that are of it; of its
        examples the mean probability of the class, "confidence", and the "nll" in nats. None where there is nothing to
        take a fraction or a mean of.

    Example:
        >>> found = class_scores(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1]))
        >>> [(entry["examples"], entry["recall"], entry["precision"]) for entry in found]
        [(1, 1.0, 0.5), (2, 0.5, 1.0)]
    """
    checks.predictions("logits", logits, target)
    classes = logits.shape[-1]
    log_p = log_softmax(logits.detach().double() / temperature, -1)
    of_target = log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    predicted = log_p.argmax(-1)
    examples, claimed, right = (
        torch.bincount(values, minlength=classes).tolist()
        for values in (target, predicted, target[predicted == target])
    )
    sure, surprise = (
        torch.zeros(classes, dtype=torch.float64).index_add(0, target, values).tolist()
        for values in (of_target.exp(), -of_target)
    )
    return [
        {
            "examples": examples[k],
            "predicted": claimed[k],
            "recall": _share(right[k], examples[k]),
            "precision": _share(right[k], claimed[k]),
            "confidence": _share(sure[k], examples[k]),
            "nll": _share(surprise[k], examples[k]),
        }
        for k in range(classes)
    ]


def _share(total: float, count: int) -> float | None:
    return total / count if count else None
