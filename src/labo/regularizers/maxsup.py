"""Max suppression: label smoothing that holds down the largest logit in place of the gold one."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.errors import UserError
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses
from labo.regularizers.margin_smoothing import below_the_top, mean_of_unmasked

FIRST, LAST = 0.1, 0.2  # the strength over training


class MaxSup(Regularizer):
    """CE(target, p) + strength * (max logits - mean logits), over the classes that are not masked.

    Label smoothing is CE + epsilon * (gold logit - mean logits): the same where the gold class is the largest, and the
    other way round in the gold class where it is not. The gradient flows through the maximum, in equal shares if
    several share it. The target has no part in the penalty, so it is the same for class indices and probabilities.

    Args:
        strength: "linear" for 0.1 at the start of training to 0.2 at its end, in a straight line; or a number of at
            least 0 that stays.

    Needs: of each batch, `progress` (the share of training that is done), with strength="linear" alone.

    When: where label smoothing helps accuracy but features collapse. The penalty has no floor: a large strength
        flattens all logits.

    Raises:
        ValueError: `strength` is neither, or `progress` is not in [0, 1].

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
        return data + self._strength_of(rows) * factor * mean_of_unmasked(below_the_top(logits), logits)

    def _strength_of(self, rows: Rows) -> float:
        if not isinstance(self.strength, str):
            return self.strength
        progress = float(rows.given["progress"])
        checks.share("progress", progress)
        return FIRST + (LAST - FIRST) * progress
