"""Self-adaptive smoothing: confident predictions are smoothed towards those of the last epoch's network."""

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
from labo.regularizers.base import SoftLabelRegularizer, data_losses, entropy


class SelfAdaptiveSmoothing(SoftLabelRegularizer):
    """(1 - s) * CE(target, p) + s * CE(p_past, p) with s = scale * (1 - H(p) / log C) for each example.

    Masked classes do not count in C; s is 0 where only one class is left.
    p_past is the prediction of the network from the end of the last epoch. s is constant for the gradient. In the first
    epoch the loss is the cross-entropy, because there is no past network.

    Args:
        scale: smoothing strength of a fully confident prediction, in [0, 1]; 1 in the paper.

    Needs: the network, by `provide(model=network)`, and with each batch its inputs and the epoch.

    When: over-confidence is the problem, as in text generation. It costs one more forward pass per batch, and a second
        network in memory and in the checkpoint. The paper uses the past network that was best on validation data; here
        it is that of the last epoch, which needs no validation. At scale=1 a confident prediction hardly depends on its
        target.

    Raises:
        ValueError: an option is out of range.

    Source: Lee et al., *Adaptive Label Smoothing with Self-Knowledge in Natural Language Generation*, EMNLP 2022.
    """

    name = "self_adaptive_smoothing"
    summary = "targets mixed with the network's past prediction, more for confident predictions"
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

    def provide(self, **inputs: Any) -> None:
        """Take the network, and keep a frozen copy of it."""
        super().provide(**inputs)
        if "model" in inputs:
            self.past = FrozenCopy(inputs["model"])

    @override
    def losses(self, rows: Rows) -> Tensor:
        if self.training and self.turn.advanced(rows.given["epoch"]) and self.turn.turns > 1:
            assert self.past is not None
            self.past.ema_update(self.provided("model"))
        return data_losses(rows)[0] if self.turn.turns < 2 else super().losses(rows)

    def labels(self, rows: Rows) -> Tensor | None:
        """The predictions of the past network, (N, C); None without inputs and in the first epoch."""
        if self.past is None or self.turn.turns < 2 or rows.given.get("inputs") is None:
            return None
        past = passes.to_device_of(self.past, rows)
        with torch.no_grad():
            logits = passes.constant_logits(past, rows.given["inputs"], rows, "the past network")
            return reference.masked_log_softmax(logits).exp()

    @torch.no_grad()
    def strength_of(self, rows: Rows) -> Tensor:
        """The strengths scale * (1 - H(p) / log C) of each row, (N,)."""
        log_p = reference.masked_log_softmax(inner.working(rows.logits))
        classes = (log_p != -math.inf).sum(-1)
        largest = classes.clamp(min=2).to(log_p.dtype).log()
        return torch.where(classes > 1, self.strength * (1 - entropy(log_p) / largest).clamp(0, 1), 0.0)
