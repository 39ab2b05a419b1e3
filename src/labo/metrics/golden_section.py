"""Golden-section search."""

from __future__ import annotations

import math
from collections.abc import Callable

_RATIO = (math.sqrt(5) - 1) / 2


def minimum(value: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """The minimizer of a unimodal function in [low, high], to within `tolerance`.

    Example:
        >>> round(minimum(lambda x: (x - 2) ** 2, 0.0, 5.0, 1e-6), 4)
        2.0
    """
    left, right = high - _RATIO * (high - low), low + _RATIO * (high - low)
    at_left, at_right = value(left), value(right)
    while high - low > tolerance:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _RATIO * (high - low)
            at_left = value(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _RATIO * (high - low)
            at_right = value(right)
    return (low + high) / 2
