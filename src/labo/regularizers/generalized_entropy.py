"""Generalized entropy regularization: the family between the confidence penalty and label smoothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses


class GeneralizedEntropy(Regularizer):
    """CE(target, p) + strength * J(u, p), J = ((1 - skew) * KL(u || m) + skew * KL(p || m)) / (skew * (1 - skew)).

    m = skew * p + (1 - skew) * u interpolates between the prediction and the uniform distribution u; J is their skew
    Jensen divergence. Its limits, implemented separately:

    * skew 0 is KL(p || u) = log C - H(p): the confidence penalty of the same strength, up to a constant.
    * skew 1 is KL(u || p): label smoothing of epsilon = strength / (1 + strength), times 1 + strength.

    Args:
        skew: weight of the prediction in m, in [0, 1]; alpha in the paper. 0.5 is 4 times the Jensen-Shannon
            divergence.
        strength: weight of the divergence, at least 0.

    When: to choose between the confidence penalty, label smoothing and what lies between. Strengths are not comparable
        across values of `skew`.

    Raises:
        ValueError: an option is out of range.

    Source: Meister et al., *Generalized Entropy Regularization or: There's Nothing Special about Label Smoothing*,
        ACL 2020; which limit is which as in the authors' code.
    """

    name = "generalized_entropy"
    summary = "cross-entropy plus a skew Jensen divergence from uniform"
    paper = "Meister et al., ACL 2020"
    year = 2020
    candidates = (
        {"skew": 0.5, "strength": 0.7},
        {"skew": 0.5, "strength": 0.2},
        {"skew": 0.5, "strength": 2.0},
        {"skew": 0.25, "strength": 0.7},
        {"skew": 0.75, "strength": 0.7},
    )

    def __init__(self, *, skew: float = 0.5, strength: float = 0.7) -> None:
        super().__init__()
        checks.share("skew", skew)
        checks.number("strength", strength, "[0, inf)")
        self.skew = skew
        self.strength = strength

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        return data + self.strength * factor * self._divergence(inner.working(rows.logits))

    def _divergence(self, logits: Tensor) -> Tensor:
        """J of each row, (N,), over the classes that are not masked."""
        log_p, skew = reference.masked_log_softmax(logits), self.skew
        unmasked = log_p != -math.inf
        log_u = -unmasked.sum(-1, keepdim=True).clamp(min=1).to(logits.dtype).log()
        p, u = log_p.exp(), torch.where(unmasked, log_u.exp(), 0.0)
        gap = log_u - torch.where(unmasked, log_p, log_u)  # log(u / p)
        if skew == 0:
            return -(p * gap).sum(-1)
        if skew == 1:
            return (u * gap).sum(-1)
        # Compute the log that vanishes in the limit of the skew without cancellation, and the other from it.
        if skew <= 0.5:
            log_u_over_m = -torch.log1p(skew * torch.expm1(-gap))
            log_p_over_m = log_u_over_m - gap
        else:
            gap = gap.clamp(max=60.0)  # beyond this p is negligible against u, and u / p may overflow
            log_p_over_m = -torch.log1p((1 - skew) * torch.expm1(gap))
            log_u_over_m = log_p_over_m + gap
        return (u * log_u_over_m).sum(-1) / skew + (p * log_p_over_m).sum(-1) / (1 - skew)
