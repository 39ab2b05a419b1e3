"""Adaptive and conditional label smoothing: margins for the predicted class and for the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses
from labo.regularizers.margin_smoothing import distance_below_max


class ACLS(Regularizer):
    """CE(target, p) + strength * (predicted_strength * P + others_strength * O).

    P = ReLU(max logits - margin)^2, and O = sum_k ReLU(max logits - logits_k - margin)^2 / (C - 1) over the classes
    below the largest. The maximum in O is constant for the gradient, that in P is not. If several classes share the
    maximum, each counts in P, as in the authors' code. Masked classes do not count in C. The penalty does not depend
    on the target, so it is the same for class indices and probabilities.

    Args:
        strength: weight of the penalty, at least 0.
        predicted_strength: weight of the predicted class in it, at least 0.
        others_strength: weight of the other classes in it, at least 0.
        margin: logits (P) or gaps (O) up to this are not penalized; in units of logits, at least 0.

    When: for calibration. P depends on the logit itself, not on its distance to the others: adding a constant to all
        logits raises the penalty though the prediction stays the same. The penalty therefore also acts on a common
        bias of the logits, and a good margin depends on the network, not on the task. At margin 10 many networks are
        never penalized.

    Raises:
        ValueError: an option is out of range.

    Source: Park et al., *ACLS: Adaptive and Conditional Label Smoothing for Network Calibration*, ICCV 2023, in the
        form of the authors' code.
    """

    name = "acls"
    summary = "squared margins for the predicted class and for the others"
    paper = "Park et al., ICCV 2023"
    year = 2023
    has_constants = True
    shift_invariant = False
    candidates = (
        {"strength": 0.1, "margin": 10.0},
        {"strength": 0.1, "margin": 5.0},
        {"strength": 0.4, "margin": 5.0},
        {"strength": 0.1, "margin": 2.0},
        {"strength": 0.4, "margin": 2.0},
    )

    def __init__(
        self,
        *,
        strength: float = 0.1,
        predicted_strength: float = 1.0,
        others_strength: float = 0.1,
        margin: float = 10.0,
    ) -> None:
        super().__init__()
        self.strength = strength
        self.predicted_strength = predicted_strength
        self.others_strength = others_strength
        self.margin = margin
        for name, value in self.options().items():
            checks.number(name, value, "[0, inf)")

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        return data + self.strength * factor * self._penalty(inner.working(rows.logits))

    def _penalty(self, logits: Tensor) -> Tensor:
        unmasked = logits != -math.inf
        predicted = unmasked & (logits == logits.amax(-1, keepdim=True))
        # 0 instead of the logit of other classes keeps -inf out of the gradient.
        above = torch.relu(torch.where(predicted, logits, 0.0) - self.margin) ** 2
        below = torch.relu(distance_below_max(logits, constant=True) - self.margin) ** 2
        others = (unmasked.sum(-1) - 1).clamp(min=1)
        return self.predicted_strength * above.sum(-1) + self.others_strength * below.sum(-1) / others
