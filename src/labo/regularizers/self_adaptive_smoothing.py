"""Self-adaptive smoothing: the surer the network, the more it is held to what it said an epoch before."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from labo import inner
from labo.kernels import reference
from labo.networks import FrozenCopy
from labo.reduction import Rows
from labo.regularizers import memory, passes
from labo.regularizers.base import SoftLabelRegularizer, data_losses


class SelfAdaptiveSmoothing(SoftLabelRegularizer):
    """(1 - s) * CE(target, p) + s * CE(p_past, p) with s = scale * (1 - H(p) / log C) for each example.

    p_past is the prediction of the network as it was at the end of the last epoch. s is constant for the gradient.
    In the first epoch there is no past, and the loss is the cross-entropy: a network that has learnt nothing is no
    teacher.

    Args:
        scale: what a sure prediction is smoothed by, in [0, 1]; 1 in the paper.

    Needs: the network, by `provide(model=network)`, and with each batch its inputs and the number of the epoch.

    When: over-confidence is what you fight, as in generation. It costs one more forward pass for each batch, and a
        second network in memory and checkpoint. The paper takes the past network that did best on validation data;
        here it is that of the last epoch, which needs none. At scale=1 a sure prediction hardly sees its target.

    Raises:
        ValueError: an option is out of range.

    Source: Lee et al., *Adaptive Label Smoothing with Self-Knowledge in Natural Language Generation*, EMNLP 2022.
    """

    name = "self_adaptive_smoothing"
    summary = "targets mixed with the network's own past prediction, the more the surer it is"
    paper = "Lee et al., EMNLP 2022"
    year = 2022
    strength_name = "scale"
    candidates = ({"scale": 1.0}, {"scale": 0.4}, {"scale": 0.1}, {"scale": 0.8}, {"scale": 0.2})
    past: FrozenCopy | None

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__(strength=scale)
        self.turn = memory.ChangeCounter()
        self.register_module("past", None)

    @property
    def needs(self) -> tuple[str, ...]:
        """The network; with each batch, its inputs and the epoch."""
        return ("model", "inputs", "epoch")

    def provide(self, **given: Any) -> None:
        """Take the network, whose past is kept."""
        super().provide(**given)
        if "model" in given:
            self.past = FrozenCopy(given["model"])

    @override
    def losses(self, rows: Rows) -> Tensor:
        if self.training and self.turn.advanced(rows.given["epoch"]) and self.turn.turns > 1:
            assert self.past is not None
            self.past.ema_update(self.provided("model"))
        return data_losses(rows)[0] if self.turn.turns < 2 else super().losses(rows)

    def labels(self, rows: Rows) -> Tensor | None:
        """What the past network predicts, (N, C); None without inputs, and before there is a past."""
        if self.past is None or self.turn.turns < 2 or rows.given.get("inputs") is None:
            return None
        past = passes.beside(self.past, rows)
        with torch.no_grad():
            logits = passes.constant_logits(past, rows.given["inputs"], rows, "the past network")
            return reference.masked_log_softmax(logits).exp()

    @torch.no_grad()
    def strength_of(self, rows: Rows) -> Tensor:
        """The strengths scale * (1 - H(p) / log C) of each row, (N,)."""
        p = reference.masked_log_softmax(inner.working(rows.logits)).exp()
        entropy = -torch.special.xlogy(p, p).sum(-1)
        return self.strength * (1 - entropy / math.log(max(2, p.shape[-1]))).clamp(0, 1)
