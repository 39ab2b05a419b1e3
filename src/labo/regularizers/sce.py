"""Symmetric cross-entropy: cross-entropy plus reverse cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, smoothed_target


class SymmetricCrossEntropy(Regularizer):
    """forward_strength * CE(t, p) + reverse_strength * RCE, RCE = -sum_k p_k * max(log t_k, log_zero), t the target.

    RCE is the reverse cross-entropy CE(p, t), in which log_zero stands for log 0. For a class index y it is
    -log_zero * (1 - p_y): the mean absolute error, times a constant. It is not linear in t, so the loss of a mixed
    target (mixup) is not the mixture of the losses.

    With epsilon above 0 the target of both terms is smoothed first: t = (1 - epsilon) * target + epsilon / C over the
    C classes that are not masked. Then log_zero matters only if log(epsilon / C) is below it.

    Args:
        forward_strength: weight of the cross-entropy, at least 0; alpha in the paper.
        reverse_strength: weight of the reverse cross-entropy, at least 0; beta in the paper.
        log_zero: replacement of log 0, below 0; A in the paper. The authors' code clamps labels at 1e-4 instead, which
            is a log_zero of -9.21. For class indices without smoothing only its product with
            reverse_strength matters.
        epsilon: smoothing mass in [0, 1]; 0 is the published loss.

    When: some labels are wrong. The cross-entropy learns fast and fits wrong labels; the reverse one is robust to them
        and learns slowly. The defaults are the paper's for CIFAR-10; for CIFAR-100 it uses 6 and 0.1, since with many
        classes the reverse term alone hardly starts to learn. The strengths scale the whole loss, and so the best
        learning rate. As with `gce`, the optimal prediction is more confident than the true distribution.

    Raises:
        ValueError: an option is out of range.

    Source: Wang et al., *Symmetric Cross Entropy for Robust Learning with Noisy Labels*, ICCV 2019; the smoothing is an
        addition of this package.

    Example:
        >>> from labo import LabelRegularizedLoss
        >>> member = SymmetricCrossEntropy(forward_strength=0.0)
        >>> LabelRegularizedLoss(member)(torch.zeros(2, 4), torch.tensor([0, 3]))  # 4 * (1 - 1/4)
        tensor(3.)
    """

    name = "sce"
    summary = "cross-entropy plus reverse cross-entropy, for wrong labels"
    paper = "Wang et al., ICCV 2019"
    year = 2019
    pulls_to_labels = False
    candidates = (
        {"forward_strength": 0.1, "reverse_strength": 1.0},
        {"forward_strength": 6.0, "reverse_strength": 0.1},
        {"forward_strength": 0.1, "reverse_strength": 1.0, "epsilon": 0.5},
        {"forward_strength": 1.0, "reverse_strength": 1.0},
        {"forward_strength": 6.0, "reverse_strength": 0.1, "epsilon": 0.5},
    )

    def __init__(
        self,
        *,
        forward_strength: float = 0.1,
        reverse_strength: float = 1.0,
        log_zero: float = -4.0,
        epsilon: float = 0.0,
    ) -> None:
        super().__init__()
        checks.number("forward_strength", forward_strength, "[0, inf)")
        checks.number("reverse_strength", reverse_strength, "[0, inf)")
        checks.number("log_zero", log_zero, "(-inf, 0)")
        checks.number("epsilon", epsilon, "[0, 1]")
        self.forward_strength = forward_strength
        self.reverse_strength = reverse_strength
        self.log_zero = log_zero
        self.epsilon = epsilon

    @override
    def losses(self, rows: Rows) -> Tensor:
        target = smoothed_target(rows, self.epsilon)
        log_p = reference.masked_log_softmax(inner.working(rows.logits))
        reverse = self.reverse_strength * self._reverse(target, log_p)
        if self.forward_strength == 0:  # the cross-entropy may be infinite
            return reverse
        return self.forward_strength * reference.cross_entropy(target, log_p) + reverse

    def _reverse(self, target: Tensor, log_p: Tensor) -> Tensor:
        """The reverse cross-entropy of each row, (N,), times the weighted mass of its target."""
        mass = target.sum(-1)
        share = target / torch.where(mass > 0, mass, 1.0).unsqueeze(-1)
        log_t = torch.where(share > 0, share, 1.0).log().clamp(min=self.log_zero)
        log_t = torch.where(share > 0, log_t, self.log_zero)
        return -mass * (log_p.exp() * log_t).sum(-1)
