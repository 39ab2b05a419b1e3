"""LABO's prior from a noise channel: the posterior of each example's true class, given its label."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from labo import checks, functional
from labo.errors import UserError
from labo.kernels import reference
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers.prediction_memory import PredictionMemory


class PosteriorPrior(nn.Module):
    """Fixed label distributions q of all examples; the target of an example is a mixture with its label, smoothed.

    The target is (1 - epsilon) * ((1 - alpha) * label + alpha * q) + epsilon / C. That is LABO at beta = inf, with the
    prior proportional to (1 - epsilon) * alpha * q + epsilon / C.

    Args:
        method: the name of the method, for errors.
        epsilon: label smoothing of the mixture, in [0, 1].
        top: as in `PredictionMemory`.
    """

    def __init__(self, method: str, *, epsilon: float, top: int | None = None) -> None:
        super().__init__()
        checks.number("epsilon", epsilon, "[0, 1]")
        self.epsilon = checks.python_number(epsilon)
        self.stored = PredictionMemory(method, decay=0.0, top=top)

    def options(self) -> dict[str, Any]:
        """The options and their values."""
        return {"epsilon": self.epsilon, "top": self.stored.top}

    def fill(self, posterior: Tensor) -> None:
        """Take the distributions (N, C)."""
        if not isinstance(posterior, Tensor) or posterior.dim() != 2 or not posterior.dtype.is_floating_point:
            raise UserError("Expected `posterior` to be (N, C) distributions, one for each training example.")
        checks.distribution("posterior", posterior, -1)
        self.stored.fill(posterior.float())

    @torch.no_grad()
    def as_labo(self, rows: Rows, alpha: float, *, training: bool) -> Options:
        """The options with which LABO's loss is the cross-entropy of the mixture."""
        labels, strength = self._labels(rows, training), alpha * (1 - self.epsilon) + self.epsilon
        if not strength:
            return functional.row_options(rows, 0.0, math.inf, None)
        prior = (alpha * (1 - self.epsilon) * labels + self.epsilon / labels.shape[-1]) / strength
        return functional.row_options(rows, strength, math.inf, prior.reshape(*rows.shape, labels.shape[-1]))

    def labels(self, rows: Rows) -> Tensor:
        """The distributions q (N, C) of the rows; uniform for ignored rows."""
        return self._labels(rows, training=False)

    def _labels(self, rows: Rows, training: bool) -> Tensor:
        values = self.stored.values
        if values is None:
            raise UserError(f"Method '{self.stored.name}' has no posterior labels yet.")
        examples = len(values) - 1
        self.stored.prepare(examples, rows)
        places = self.stored.places(rows, examples)
        if training:
            self.stored.check_labels(places, rows)
        dtype = reference.working_dtype(rows.raw)
        labels = self.stored.distributions(places, rows.raw.shape[-1]).to(dtype)
        total = labels.sum(-1, keepdim=True)  # 1, but for the rounding of half precision; 0 for ignored rows
        return torch.where(total > 0, labels / total, 1 / labels.shape[-1])
