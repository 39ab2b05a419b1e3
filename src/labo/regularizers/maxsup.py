"""Max suppression: label smoothing that penalizes the largest logit instead of the gold one."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.errors import UserError
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses
from labo.regularizers.margin_smoothing import distance_below_max, mean_of_unmasked

START, END = 0.1, 0.2  # the linear schedule of the strength


class MaxSup(Regularizer):
    """CE(target, p) + strength * (max logits - mean logits), over the classes that are not masked.

    Label smoothing is CE + epsilon * (gold logit - mean logits): the same if the gold logit is the largest; otherwise
    label smoothing lowers the gold logit, and MaxSup the wrong largest one. The gradient flows through the maximum, in
    equal shares if several classes tie. The penalty does not depend on the target, so it is the same for class indices
    and probabilities.

    Args:
        strength: "linear" for a linear schedule from 0.1 to 0.2 over training; or a constant of at least 0.

    Needs: with each batch, `progress` (the fraction of training that is done), only with strength="linear".

    When: label smoothing helps accuracy but features collapse. A large strength flattens all logits, because the
        penalty keeps decreasing with them.

    Raises:
        ValueError: `strength` is invalid, or `progress` is not in [0, 1].

    Source: Zhou et al., *MaxSup: Overcoming Representation Collapse in Label Smoothing*, NeurIPS 2025.
    """

    name = "maxsup"
    summary = "a penalty on the largest logit above their mean"
    paper = "Zhou et al., NeurIPS 2025"
    year = 2025
    candidates = ({"strength": "linear"}, {"strength": 0.4}, {"strength": 0.8}, {"strength": 0.2}, {"strength": 0.1})

    def __init__(self, *, strength: float | str = "linear") -> None:
        super().__init__()
        if isinstance(strength, str) and strength != "linear":
            raise UserError(f"Expected argument `strength` to be a number or 'linear', but got {strength!r}.")
        if not isinstance(strength, str):
            checks.number("strength", strength, "[0, inf)")
        self.strength = strength

    @property
    def needs(self) -> tuple[str, ...]:
        """The progress of training with strength="linear"."""
        return ("progress",) if isinstance(self.strength, str) else ()

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        logits = inner.working(rows.logits)
        return data + self._strength_of(rows) * factor * mean_of_unmasked(distance_below_max(logits), logits)

    def _strength_of(self, rows: Rows) -> float:
        if not isinstance(self.strength, str):
            return self.strength
        progress = float(rows.given["progress"])
        checks.share("progress", progress)
        return START + (END - START) * progress
