"""The confidence penalty: cross-entropy minus the entropy of the prediction."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.errors import unknown
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses, entropy

CONVENTIONS = ("paper", "class_mean")


class ConfidencePenalty(Regularizer):
    """CE(target, p) - strength * H(p), with H(p) = -sum p log p.

    Args:
        strength: weight of the entropy, at least 0.
        convention: "paper"; or "class_mean", a common variant that also averages over the classes, so that the
            effective strength is strength / C.

    When: like label smoothing, but without pulling the wrong classes to equal logits: only low entropy is penalized. A
        strength of 1 or more makes the network very under-confident; apply temperature scaling afterwards.

    Raises:
        ValueError: an option is out of range.

    Source: Pereyra et al., *Regularizing Neural Networks by Penalizing Confident Output Distributions*, 2017.
    """

    name = "confidence_penalty"
    summary = "cross-entropy minus the entropy of the prediction"
    paper = "Pereyra et al., ICLR workshop 2017"
    year = 2017
    candidates = ({"strength": 0.1}, {"strength": 1.0}, {"strength": 2.0}, {"strength": 0.3}, {"strength": 0.03})

    def __init__(self, *, strength: float = 0.1, convention: str = "paper") -> None:
        super().__init__()
        checks.number("strength", strength, "[0, inf)")
        if convention not in CONVENTIONS:
            raise unknown("convention", convention, CONVENTIONS)
        self.strength = strength
        self.convention = convention

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        logits = inner.working(rows.logits)
        share = self.strength / (logits.shape[-1] if self.convention == "class_mean" else 1)
        return data - share * factor * entropy(reference.masked_log_softmax(logits))
