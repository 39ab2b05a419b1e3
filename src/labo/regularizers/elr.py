"""Early-learning regularization: predictions stay close to their own running average."""

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

# The authors' code clamps predictions to [1e-4, 1 - 1e-4] before it averages and compares them.
_MARGIN = 1e-4


class EarlyLearningRegularization(Regularizer):
    """CE(t, p) + strength * log(1 - <p, m>), t = (1 - epsilon) * target + epsilon / C.

    m is a running average of the predictions for the example, m <- decay * m + (1 - decay) * p at each visit, starting
    from zeros. It includes the present prediction and is constant for the gradient. p is clamped to [1e-4, 1 - 1e-4]
    first, and normalised before it enters m.

    Args:
        strength: weight of the second term, a finite number of at least 0.
        decay: decay of the running average, in [0, 1).
        epsilon: label smoothing of the target, in [0, 1]; 0 as published. With 0.5 it is much more robust to wrong
            labels.

    Needs: the number of training examples, by `provide(examples=…)`, and with each batch the indices of its examples in
        the training data, `indices`.

    When: some labels are wrong and the network memorizes them. It hurts if the network is still learning slowly at the
        end of training, as LABO with a memory does. The memory is in half precision.

    Raises:
        ValueError: an option is out of range, an index is not in the training data, or an example's label changed.

    Source: Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, NeurIPS 2020; strength 3
        and decay 0.7 are those of the authors' code for CIFAR-10, 7 and 0.9 those for CIFAR-100.
    """

    name = "elr"
    summary = "cross-entropy, with predictions pulled to their running average"
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
        """The number of examples; with each batch, their indices."""
        return ("examples", "indices")

    @property
    @override
    def prediction_memory(self) -> PredictionMemory:
        return self.memory

    @property
    def decay(self) -> float:
        """The decay of the memory."""
        return self.memory.decay

    def provide(self, **inputs: Any) -> None:
        """Take the number of training examples."""
        checks.integer("examples", inputs.get("examples", 1))
        super().provide(**inputs)

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
        """The running averages (N, C), updated with the present predictions; in training the update is stored."""
        examples = self.provided("examples")
        self.memory.prepare(examples, rows)
        places = self.memory.places(rows, examples)
        before = self.memory.distributions(places, p.shape[-1]).to(p)
        p = p / p.sum(-1, keepdim=True)
        if self.training:
            self.memory.check_labels(places, rows)
            self.memory.remember(places, before, p, rows)
        return torch.lerp(p, before, self.memory.decay)
