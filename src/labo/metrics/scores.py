"""What a classifier is scored by: accuracy, NLL, Brier score and calibration, before and after temperature scaling."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from labo.metrics.calibration import expected_calibration_error
from labo.metrics.temperature import fit_temperature


def classification_scores(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> dict[str, float]:
    """Scores of softmax(logits / temperature), computed in float64.

    Args:
        logits: (N, C).
        target: (N,) class indices.
        temperature: above 0.

    Returns:
        "accuracy" and "ece" (15 bins) as fractions, "nll" in nats, "brier" as the mean over examples of the squared
        distance to the one-hot target, summed over classes (0 to 2).

    Raises:
        ValueError: no examples.

    Example:
        >>> import torch
        >>> classification_scores(torch.zeros(2, 2), torch.tensor([0, 1]))["brier"]
        0.5
    """
    if len(target) == 0:
        raise ValueError("Expected argument `target` to hold at least one example, but got none.")
    log_p = log_softmax(logits.detach().double() / temperature, -1)
    p = log_p.exp()
    return {
        "accuracy": (log_p.argmax(-1) == target).double().mean().item(),
        "nll": -log_p.gather(-1, target.unsqueeze(-1)).mean().item(),
        "brier": (p - one_hot(target, p.shape[-1])).square().sum(-1).mean().item(),
        "ece": expected_calibration_error(p, target),
    }


def scores(
    validation_logits: Tensor, validation_target: Tensor, test_logits: Tensor, test_target: Tensor
) -> dict[str, float]:
    """`classification_scores` of the test split, raw and ("…_scaled") at the temperature fitted on validation.

    Accuracy does not change with temperature and is given once; "temperature" is the one fitted.
    """
    return scores_at(fit_temperature(validation_logits, validation_target), test_logits, test_target)


def scores_at(temperature: float, logits: Tensor, target: Tensor) -> dict[str, float]:
    """`classification_scores` raw and ("…_scaled") at `temperature`, which is among them."""
    found = classification_scores(logits, target)
    scaled = classification_scores(logits, target, temperature=temperature)
    found |= {f"{key}_scaled": scaled[key] for key in ("nll", "brier", "ece")}
    return found | {"temperature": temperature}
