"""Teacher-free distillation by regularization: distillation from a hand-designed teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.errors import unknown
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses, divergence

CONVENTIONS = ("paper", "class_mean")
GOLD = 0.99  # the teacher's probability of the gold class before the temperature


class TeacherFreeRegularization(Regularizer):
    """(1 - alpha) * CE(target, p) + alpha * multiplier * KL(labels || p), labels = softmax(d / temperature).

    d is 0.99 at the gold class and 0.01 / (C - 1) at the others. For a probability target, d is the mixture of such
    teachers with the target's weights. Masked classes do not count in C.

    Args:
        alpha: weight of the teacher in [0, 1].
        temperature: above 0; it divides probabilities, not logits.
        multiplier: further weight of the divergence, at least 0.
        convention: "paper"; or "class_mean" as in the authors' code, which also averages the divergence over the
            classes, so that the effective multiplier is multiplier / C.

    When: as label smoothing that favours the gold class. Beware of the temperature: a softmax of probabilities divided
        by 20 is nearly uniform (with 100 classes the gold class gets 0.0105), so the default is almost label smoothing;
        at temperature 0.1 the gold class gets 0.995. The authors' code uses "class_mean" with multiplier 100 for
        ResNet-18 on CIFAR-100, which for 100 classes equals the default, "paper" with multiplier 1.

    Raises:
        ValueError: an option is out of range.

    Source: Yuan et al., *Revisiting Knowledge Distillation via Label Smoothing Regularization*, CVPR 2020, section 5.
    """

    name = "tf_kd_reg"
    summary = "distillation from a hand-designed teacher"
    paper = "Yuan et al., CVPR 2020"
    year = 2020
    # With a multiplier the two weights do not sum to 1.
    pulls_to_labels = False
    candidates = (
        {"alpha": 0.1, "temperature": 20.0},
        {"alpha": 0.4, "temperature": 20.0},
        {"alpha": 0.8, "temperature": 20.0},
        {"alpha": 0.4, "temperature": 0.2},
        {"alpha": 0.8, "temperature": 0.2},
    )

    def __init__(
        self, *, alpha: float = 0.1, temperature: float = 20.0, multiplier: float = 1.0, convention: str = "paper"
    ) -> None:
        super().__init__()
        checks.share("alpha", alpha)
        checks.positive("temperature", temperature)
        checks.number("multiplier", multiplier, "[0, inf)")
        if convention not in CONVENTIONS:
            raise unknown("convention", convention, CONVENTIONS)
        self.alpha = alpha
        self.temperature = temperature
        self.multiplier = multiplier
        self.convention = convention

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        logits = inner.working(rows.logits)
        classes = logits.shape[-1] if self.convention == "class_mean" else 1
        term = divergence(self.labels(rows), reference.masked_log_softmax(logits))
        return reference.mix(data, self.multiplier / classes * factor * term, self.alpha)

    def labels(self, rows: Rows) -> Tensor:
        """The teacher's distribution, (N, C)."""
        logits = inner.working(rows.logits).detach()
        unmasked = logits != -math.inf
        target = reference.target_mass(logits, rows.target, None)
        others = (unmasked.sum(-1, keepdim=True) - 1).clamp(min=1)
        designed = GOLD * target + (1 - GOLD) / others * (1 - target)
        return inner.masked_softmax(torch.where(unmasked, designed / self.temperature, -math.inf))
