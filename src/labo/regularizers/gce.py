"""Generalized cross-entropy: between the cross-entropy and the mean absolute error."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, smoothed_target

# Below this the loss equals the cross-entropy to the last digit, and 1 / q may overflow.
MIN_Q = 1e-25


class GeneralizedCrossEntropy(Regularizer):
    """sum_k t_k * (1 - p_k^q) / q with the target t: for a class index y, (1 - p_y^q) / q.

    Its limits are the cross-entropy at q = 0 and the mean absolute error 1 - p_y at q = 1. The gradient of an example
    is that of its cross-entropy times p_y^q, so an example whose label has a low probability counts for little.

    With epsilon above 0 the target is smoothed first: t = (1 - epsilon) * target + epsilon / C over the C classes that
    are not masked. The loss is minimal where p_k is proportional to t_k^(1 / (1 - q)), which is sharper than t: the
    same epsilon smooths less than under the cross-entropy.

    Args:
        q: in [0, 1]; 0 is the cross-entropy, 1 the mean absolute error.
        epsilon: smoothing mass in [0, 1]; 0 is the published loss.

    When: some labels are wrong. A larger q is more robust to wrong labels and trains more slowly, especially with many
        classes: at the start p_y is about 1 / C, so p_y^q is small. It is not a proper scoring rule: with q above 0 its
        optimal prediction is more confident than the true distribution.

    Raises:
        ValueError: an option is out of range.

    Source: Zhang and Sabuncu, *Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels*,
        NeurIPS 2018, without its truncated form; the smoothing is an addition of this package.

    Example:
        >>> from labo import LabelRegularizedLoss
        >>> LabelRegularizedLoss(GeneralizedCrossEntropy(q=1.0))(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(0.7500)
    """

    name = "gce"
    summary = "between cross-entropy and the mean absolute error, for wrong labels"
    paper = "Zhang and Sabuncu, NeurIPS 2018"
    year = 2018
    pulls_to_labels = False
    candidates = (
        {"q": 0.7},
        {"q": 0.5},
        {"q": 0.7, "epsilon": 0.5},
        {"q": 0.3},
        {"q": 0.3, "epsilon": 0.5},
    )

    def __init__(self, *, q: float = 0.7, epsilon: float = 0.0) -> None:
        super().__init__()
        checks.number("q", q, "[0, 1]")
        checks.number("epsilon", epsilon, "[0, 1]")
        self.q = q
        self.epsilon = epsilon

    @override
    def losses(self, rows: Rows) -> Tensor:
        target = smoothed_target(rows, self.epsilon)
        log_p = reference.masked_log_softmax(inner.working(rows.logits))
        if self.q < MIN_Q:
            return reference.cross_entropy(target, log_p)
        return -(target * torch.expm1(self.q * log_p)).sum(-1) / self.q
