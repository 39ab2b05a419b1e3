"""Temperature scaling: one number fitted on held-out data that calibrates a trained classifier."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import cross_entropy

from labo import checks

# The range that is searched first; where the minimum lies at its hot end, the search goes on up to `MAX_TEMPERATURE`.
MIN_TEMPERATURE, WARM = 0.05, 100.0
MAX_TEMPERATURE = 1e6
_GOLDEN = (math.sqrt(5) - 1) / 2
_TOLERANCE = 1e-9
# A minimum so near an end of the range, relative to it, is that end.
_NEAR = 1e-6


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature T in [0.05, 1e6] that minimises the NLL of softmax(logits / T), in float64.

    The NLL is convex in 1 / T, so a golden-section search over it finds the minimum. Where no finite T above 0 is best
    (all predictions right: colder is always better; all wrong: hotter is), the end of the range is returned with a
    warning. Without examples it is 1.

    Args:
        logits: (N, C), without NaN.
        target: (N,) class indices.

    Raises:
        ValueError, TypeError: logits with NaN or inf, targets that are no classes, or other shapes.

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, section 4.2.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 0.0]] * 4)
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 3)  # 4 / T = log 3
        3.641
    """
    temperature = search_temperature(logits, target)
    if at_bound(temperature):
        what = "all predictions are right" if temperature == MIN_TEMPERATURE else "the predictions say nothing"
        warnings.warn(
            f"The fitted temperature is {temperature:g}, the end of the range that is searched: {what}, so the NLL of "
            "these examples has no minimum at a temperature within.",
            stacklevel=2,
        )
    return temperature


def at_bound(temperature: float) -> bool:
    """Whether a fitted temperature is an end of the range: there no temperature within is best."""
    return temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE)


def search_temperature(logits: Tensor, target: Tensor) -> float:
    """As `fit_temperature`, without its warning."""
    if len(target) == 0:
        return 1.0
    checks.predictions("logits", logits, target)
    logits = logits.detach().double()

    def nll(inverse: float) -> float:
        return cross_entropy(logits * inverse, target.long()).item()

    inverse = _minimum(nll, 1 / WARM, 1 / MIN_TEMPERATURE)
    if inverse * MIN_TEMPERATURE > 1 - _NEAR:
        return MIN_TEMPERATURE
    if inverse * WARM > 1 + _NEAR:
        return 1 / inverse
    # In the logarithm the NLL has one minimum too, and so many magnitudes are searched with one relative precision.
    inverse = math.exp(_minimum(lambda log: nll(math.exp(log)), -math.log(MAX_TEMPERATURE), -math.log(WARM) + _NEAR))
    return MAX_TEMPERATURE if inverse * MAX_TEMPERATURE < 1 + _NEAR * 10 else 1 / inverse


def _minimum(value: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum in [low, high] has it, by golden-section search."""
    tolerance = _TOLERANCE * max(abs(low), abs(high))
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = value(left), value(right)
    while high - low > tolerance:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = value(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = value(right)
    return (low + high) / 2
