"""Early-learning regularization: the network is held to the running average of its own predictions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, functional, inner
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers.base import Regularizer
from labo.regularizers.prediction_memory import PredictionMemory

# The published code clamps predictions to [1e-4, 1 - 1e-4] before they are remembered and compared.
_MARGIN = 1e-4


class EarlyLearningRegularization(Regularizer):
    """CE(t, p) + strength * log(1 - <p, m>), t = (1 - epsilon) * target + epsilon / C.

    m is a running average of the predictions for the example, m <- decay * m + (1 - decay) * p at each visit, from
    zeros; the present prediction is in it already, and m is constant for the gradient. p is clamped to [1e-4, 1 - 1e-4]
    first, and normalised where it is remembered.

    Args:
        strength: weight of the second term, a finite number of at least 0.
        decay: the weight of the past, in [0, 1).
        epsilon: label smoothing of the target, in [0, 1]; 0 as published. With 0.5 it is much stronger on wrong labels.

    Needs: how many training examples there are, by `provide(examples=…)`, and with each batch the places of its
        examples in the training data, `indices`.

    When: some labels are wrong and the network comes to learn them by heart. It harms where the network learns slowly
        to the end of training, as LABO with a memory does. The memory is in half precision.

    Raises:
        ValueError: an option is out of range, an index is not in the training data, or an example's label changed.

    Source: Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, NeurIPS 2020; strength 3
        and decay 0.7 are those of the authors' code for CIFAR-10, 7 and 0.9 those for CIFAR-100.
    """

    name = "elr"
    summary = "cross-entropy, with predictions held to the running average of those before"
    paper = "Liu et al., NeurIPS 2020"
    year = 2020
    candidates = (
        {"strength": 3.0, "decay": 0.7, "epsilon": 0.0},
        {"strength": 3.0, "decay": 0.7, "epsilon": 0.5},
        {"strength": 3.0, "decay": 0.9, "epsilon": 0.5},
        {"strength": 7.0, "decay": 0.9, "epsilon": 0.0},
        {"strength": 1.0, "decay": 0.7, "epsilon": 0.5},
    )
    has_constants = True
    pulls_to_labels = False

    def __init__(self, *, strength: float = 3.0, decay: float = 0.7, epsilon: float = 0.0) -> None:
        super().__init__()
        checks.number("strength", strength, "[0, inf)")
        checks.number("epsilon", epsilon, "[0, 1]")
        self.strength, self.epsilon = strength, epsilon
        self.memory = PredictionMemory(self.name, decay=decay, from_zeros=True)

    @property
    def needs(self) -> tuple[str, ...]:
        """How many examples there are; with each batch, which they are."""
        return ("examples", "indices")

    @property
    @override
    def prediction_memory(self) -> PredictionMemory:
        return self.memory

    @property
    def decay(self) -> float:
        """The decay of the memory."""
        return self.memory.decay

    def provide(self, **given: Any) -> None:
        """Take the number of training examples."""
        checks.integer("examples", given.get("examples", 1))
        super().provide(**given)

    @override
    def losses(self, rows: Rows) -> Tensor:
        smoothed = functional.labo_losses(rows, functional.row_options(rows, self.epsilon, math.inf, None))
        p = inner.masked_softmax(inner.working(rows.logits)).clamp(_MARGIN, 1 - _MARGIN)
        penalty = torch.log1p(-(p * self._average(rows, p.detach())).sum(-1))
        if rows.has_probabilities and rows.weight is not None:
            penalty = penalty * reference.target_mass(p, rows.target, rows.weight).sum(-1)
        return smoothed + self.strength * penalty

    @torch.no_grad()
    def _average(self, rows: Rows, p: Tensor) -> Tensor:
        """The running averages (N, C) with the present predictions in them, which are remembered in training."""
        examples = self.provided("examples")
        self.memory.prepare(examples, rows)
        places = self.memory.places(rows, examples)
        before = self.memory.distributions(places, p.shape[-1]).to(p)
        p = p / p.sum(-1, keepdim=True)
        if self.training:
            self.memory.check_labels(places, rows)
            self.memory.remember(places, before, p, rows)
        return torch.lerp(p, before, self.memory.decay)
