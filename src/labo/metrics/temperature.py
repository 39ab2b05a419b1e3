"""Temperature scaling: calibrate a classifier by one parameter fitted on held-out data."""

from __future__ import annotations

import math
import warnings

from torch import Tensor
from torch.nn.functional import cross_entropy

from labo import checks
from labo.metrics.golden_section import minimum

# The range of the first search; if the minimum is at its upper end, the search continues up to `MAX_TEMPERATURE`.
MIN_TEMPERATURE, FIRST_MAX_TEMPERATURE = 0.05, 100.0
MAX_TEMPERATURE = 1e6
_TOLERANCE = 1e-9
# A minimum within this relative distance of an end of the range counts as that end.
_NEAR = 1e-6


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature T in [0.05, 1e6] that minimises the NLL of softmax(logits / T), in float64.

    The NLL is convex in 1 / T, so a golden-section search finds the minimum. If the NLL has no minimum (it keeps
    falling as T -> 0 if all predictions are right, or as T -> inf if all are wrong), the end of the range is returned
    with a warning. Without examples T is 1.

    Args:
        logits: (N, C), without NaN.
        target: (N,) class indices.

    Raises:
        ValueError, TypeError: logits with NaN or inf, or invalid targets or shapes.

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, section 4.2.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 0.0]] * 4)
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 3)  # 4 / T = log 3
        3.641
    """
    temperature = search_temperature(logits, target)
    if _at_bound(temperature):
        reason = (
            "all predictions are right" if temperature == MIN_TEMPERATURE else "the predictions carry no information"
        )
        warnings.warn(
            f"The fitted temperature is {temperature:g}, an end of the search range: {reason}, so the NLL of these "
            "examples has no minimum within the range.",
            stacklevel=2,
        )
    return temperature


def _at_bound(temperature: float) -> bool:
    """Whether a fitted temperature is an end of the search range, so that no minimum was found within."""
    return temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE)


def search_temperature(logits: Tensor, target: Tensor) -> float:
    """Like `fit_temperature`, without the warning."""
    if len(target) == 0:
        return 1.0
    checks.predictions("logits", logits, target)
    logits = logits.detach().double()

    def nll(inverse: float) -> float:
        return cross_entropy(logits * inverse, target.long()).item()

    inverse = minimum(nll, 1 / FIRST_MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, _TOLERANCE / MIN_TEMPERATURE)
    if inverse * MIN_TEMPERATURE > 1 - _NEAR:
        return MIN_TEMPERATURE
    if inverse * FIRST_MAX_TEMPERATURE > 1 + _NEAR:
        return 1 / inverse
    # The NLL is also unimodal in the logarithm, which gives the same relative precision at all magnitudes.
    low, high = -math.log(MAX_TEMPERATURE), -math.log(FIRST_MAX_TEMPERATURE) + _NEAR
    inverse = math.exp(minimum(lambda log: nll(math.exp(log)), low, high, _TOLERANCE * -low))
    return MAX_TEMPERATURE if inverse * MAX_TEMPERATURE < 1 + _NEAR * 10 else 1 / inverse
