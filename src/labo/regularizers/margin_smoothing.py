"""Margin-based label smoothing: a penalty on logits far below the largest one."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses


class MarginSmoothing(Regularizer):
    """CE(target, p) + strength * mean_k ReLU(max logits - logits_k - margin).

    The mean is over the classes that are not masked, including the largest one (at distance 0). The gradient flows
    through the maximum, in equal shares if several classes tie. The penalty does not depend on the target, so it is the
    same for class indices and probabilities.

    Args:
        strength: weight of the penalty, at least 0.
        margin: distances below the largest logit up to this are not penalized; in units of logits, at least 0.

    When: for calibration with less bias than label smoothing. At margin 10 a class is not penalized until its
        probability is below exp(-10) of the largest one, so a less confident network trains with the plain
        cross-entropy; look at its logits before choosing. Margin 0 is MaxSup.

    Raises:
        ValueError: an option is out of range.

    Source: Liu et al., *The Devil is in the Margin: Margin-based Label Smoothing for Network Calibration*, CVPR 2022.
    """

    name = "margin_smoothing"
    summary = "a penalty on logits further below the largest than a margin (MbLS)"
    paper = "Liu et al., CVPR 2022"
    year = 2022
    candidates = (
        {"strength": 0.1, "margin": 10.0},
        {"strength": 0.1, "margin": 5.0},
        {"strength": 0.4, "margin": 5.0},
        {"strength": 0.1, "margin": 2.0},
        {"strength": 0.4, "margin": 2.0},
    )

    def __init__(self, *, strength: float = 0.1, margin: float = 10.0) -> None:
        super().__init__()
        checks.number("strength", strength, "[0, inf)")
        checks.number("margin", margin, "[0, inf)")
        self.strength = strength
        self.margin = margin

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        logits = inner.working(rows.logits)
        penalty = mean_of_unmasked(torch.relu(distance_below_max(logits) - self.margin), logits)
        return data + self.strength * factor * penalty


def distance_below_max(logits: Tensor, *, constant: bool = False) -> Tensor:
    """The distance of each logit below the largest of its row, (N, C), at least 0; 0 for masked classes.

    With `constant`, no gradient flows through the largest logit.
    """
    top = logits.amax(-1, keepdim=True)
    return torch.where(logits == -math.inf, 0.0, (top.detach() if constant else top) - logits)


def mean_of_unmasked(values: Tensor, logits: Tensor) -> Tensor:
    """The mean of `values` (N, C), which are 0 at masked classes, over the classes that `logits` leaves unmasked."""
    return values.sum(-1) / (logits != -math.inf).sum(-1).clamp(min=1)
