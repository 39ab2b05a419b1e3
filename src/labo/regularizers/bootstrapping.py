"""Bootstrapping: targets mixed with the model's own prediction."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.errors import unknown
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses, entropy

ALPHAS = {"soft": 0.05, "hard": 0.2}


class Bootstrapping(Regularizer):
    """(1 - alpha) * CE(target, p) + alpha * CE(b, p): b = p if soft, b = the predicted class, one-hot, if hard.

    If soft, the gradient flows through b too, so the second term is alpha * H(p): the confidence penalty with the
    opposite sign. (With a constant b the term would have no gradient.) If hard, b is constant, and classes that tie for
    the maximum share it equally: this is LABO in the limit beta -> 0.

    Args:
        kind: "soft" or "hard".
        alpha: weight of the model's prediction, in [0, 1]; None for 0.05 if soft and 0.2 if hard. It is 1 - beta in the
            paper.

    When: some targets are wrong, and the model is already mostly right. It makes predictions more confident, so with
        clean targets calibration gets worse, and early in training it reinforces mistakes.

    Raises:
        ValueError: an option is out of range.

    Source: Reed et al., *Training Deep Neural Networks on Noisy Labels with Bootstrapping*, ICLR workshop 2015.
    """

    name = "bootstrapping"
    summary = "targets mixed with the model's own prediction"
    paper = "Reed et al., ICLR workshop 2015"
    year = 2015
    candidates = (
        {"kind": "soft", "alpha": 0.05},
        {"kind": "hard", "alpha": 0.2},
        {"kind": "soft", "alpha": 0.2},
        {"kind": "hard", "alpha": 0.4},
        {"kind": "soft", "alpha": 0.4},
    )

    def __init__(self, *, kind: str = "soft", alpha: float | None = None) -> None:
        super().__init__()
        if kind not in ALPHAS:
            raise unknown("kind", kind, ALPHAS)
        self.kind = kind
        self.alpha = ALPHAS[kind] if alpha is None else alpha
        checks.share("alpha", self.alpha)

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        log_p = reference.masked_log_softmax(inner.working(rows.logits))
        labels = self.labels(rows)
        regularizer = entropy(log_p) if labels is None else reference.cross_entropy(labels, log_p)
        return reference.mix(data, factor * regularizer, self.alpha)

    def labels(self, rows: Rows) -> Tensor | None:
        """The predicted class of each row, (N, C), if hard; None if soft, whose label is not constant."""
        if self.kind == "soft":
            return None
        with torch.no_grad():
            logits = inner.working(rows.logits)
            predicted = (logits == logits.amax(-1, keepdim=True)).to(logits.dtype)
            return predicted / predicted.sum(-1, keepdim=True)
