"""Class-wise self-knowledge distillation: consistent predictions for examples of the same class."""

from __future__ import annotations

from contextlib import nullcontext

from torch import Tensor
from typing_extensions import override

from labo import checks, inner, networks
from labo.errors import UserError
from labo.reduction import Rows
from labo.regularizers import passes
from labo.regularizers.base import Regularizer, data_losses


class ClassWiseDistillation(Regularizer):
    """CE(target, p) + strength * temperature ** 2 * KL(soft(t) || soft(z)).

    soft(z) = softmax(z / temperature); t are the network's own logits for a partner, another example of the same class,
    and are constant for the gradient.

    Args:
        strength: weight of the divergence, at least 0.
        temperature: finite, above 0.
        hold_statistics: whether the forward pass of the partners leaves the running statistics of batch and instance
            norms unchanged.

    Needs: the network, by `provide(model=network)`, and the partners of each batch, which
        `labo.regularizers.SameClass` draws.

    When: classes are fine-grained and have several examples each. The forward pass of the partners adds about a third
        to the cost. In the authors' code that pass also updates batch-norm statistics, and half of each batch serves as
        the partners of the other half; here the cross-entropy covers the whole batch.

    Raises:
        ValueError: an option is out of range, or the number of partners differs from that of the rows.

    Source: Yun et al., *Regularizing Class-wise Predictions via Self-knowledge Distillation*, CVPR 2020.
    """

    name = "cs_kd"
    summary = "cross-entropy and the divergence from the prediction for another example of the class"
    paper = "Yun et al., CVPR 2020"
    year = 2020
    candidates = ({"strength": 1.0}, {"strength": 3.0}, {"strength": 0.3}, {"strength": 2.0}, {"strength": 0.1})

    def __init__(self, *, strength: float = 1.0, temperature: float = 4.0, hold_statistics: bool = True) -> None:
        super().__init__()
        checks.number("strength", strength, "[0, inf)")
        checks.number("temperature", temperature, "(0, inf)")
        if not isinstance(hold_statistics, bool):
            raise UserError(f"Expected argument `hold_statistics` to be True or False, but got {hold_statistics!r}.")
        self.strength = strength
        self.temperature = temperature
        self.hold_statistics = hold_statistics

    @property
    def needs(self) -> tuple[str, ...]:
        """The network, and the partners of each batch."""
        return ("model", "partners")

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        model = self.provided("model")
        with networks.frozen_batch_norm_stats(model) if self.hold_statistics else nullcontext():
            partner = passes.constant_logits(model, rows.given["partners"], rows, "the network on `partners`")
        term = passes.divergence(inner.working(rows.logits), partner, self.temperature)
        return data + self.strength * self.temperature**2 * factor * term
