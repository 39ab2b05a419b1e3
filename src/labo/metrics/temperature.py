"""Temperature scaling: one number that makes a trained classifier as sure as it should be."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import cross_entropy

COLDEST, HOTTEST = 0.05, 100.0
_GOLDEN = (math.sqrt(5) - 1) / 2


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature T in [0.05, 100] that minimises the NLL of softmax(logits / T), in float64.

    The NLL is convex in 1 / T, so a golden-section search over it finds the minimum. Where no finite T is best (all
    predictions right: colder is always better) the end of the range is given; without examples, 1.

    Args:
        logits: (N, C), finite.
        target: (N,) class indices.

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, section 4.2.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 0.0]] * 4)
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 3)  # 4 / T = log 3
        3.641
    """
    if len(target) == 0:
        return 1.0
    logits = logits.detach().double()

    def nll(inverse: float) -> float:
        return cross_entropy(logits * inverse, target).item()

    low, high = 1 / HOTTEST, 1 / COLDEST
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = nll(left), nll(right)
    while high - low > 1e-9 * high:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = nll(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = nll(right)
    return 2 / (low + high)
