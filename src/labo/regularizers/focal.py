"""The focal loss and Poly-1: cross-entropy with a factor or a term in the probability of the gold class."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers.base import Regularizer


class Focal(Regularizer):
    """-sum_k target_k * (1 - p_k)^gamma * log p_k: for a class index y, (1 - p_y)^gamma times the cross-entropy.

    Args:
        gamma: how strongly well-classified examples are down-weighted, at least 0; 0 is the cross-entropy.

    When: as a common baseline; it was designed for detectors with many easy negatives. It is not a proper scoring rule:
        its optimal prediction is less confident than the true distribution, which can look like better calibration.
        The paper's class-balancing factor is the `weight` of the loss.

    Raises:
        ValueError: an option is out of range.

    Source: Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017.
    """

    name = "focal"
    summary = "cross-entropy that counts less where the gold class is probable"
    paper = "Lin et al., ICCV 2017"
    year = 2017
    candidates = ({"gamma": 2.0}, {"gamma": 1.0}, {"gamma": 3.0}, {"gamma": 0.5}, {"gamma": 5.0})

    def __init__(self, *, gamma: float = 2.0) -> None:
        super().__init__()
        checks.number("gamma", gamma, "[0, inf)")
        self.gamma = gamma

    @override
    def losses(self, rows: Rows) -> Tensor:
        mass, log_p = _target_and_log_softmax(rows)
        # The smallest normal number instead of 0, because the derivative of 0 ** gamma may be infinite.
        one_minus_p = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        return -(mass * one_minus_p**self.gamma * log_p).sum(-1)


class Poly1(Regularizer):
    """CE(target, p) + strength * sum_k target_k * (1 - p_k): for a class index y, strength * (1 - p_y).

    Args:
        strength: epsilon_1 in the paper, at least -1, where the loss still decreases in p_y.

    When: as a common baseline. 2 is the paper's value for ImageNet classification; otherwise tune it, also below 0.
        Above 0 it pulls harder towards the labels, including wrong ones, where label smoothing pulls less.

    Raises:
        ValueError: an option is out of range.

    Source: Leng et al., *PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions*, ICLR 2022.
    """

    name = "poly1"
    summary = "cross-entropy plus the probability not on the gold class"
    paper = "Leng et al., ICLR 2022"
    year = 2022
    candidates = ({"strength": 2.0}, {"strength": 1.0}, {"strength": 4.0}, {"strength": -0.5}, {"strength": 8.0})

    def __init__(self, *, strength: float = 2.0) -> None:
        super().__init__()
        checks.number("strength", strength, "[-1, inf)")
        self.strength = strength

    @override
    def losses(self, rows: Rows) -> Tensor:
        mass, log_p = _target_and_log_softmax(rows)
        return (mass * (-log_p - self.strength * torch.expm1(log_p))).sum(-1)


def _target_and_log_softmax(rows: Rows) -> tuple[Tensor, Tensor]:
    """The (weighted) target and log p, both (N, C); log p is 0 at masked classes without target mass."""
    logits = inner.working(rows.logits)
    mass = reference.target_mass(logits, rows.target, rows.weight if rows.has_probabilities else None)
    log_p = reference.masked_log_softmax(logits)
    return mass, torch.where((mass == 0) & (log_p == -math.inf), 0.0, log_p)
