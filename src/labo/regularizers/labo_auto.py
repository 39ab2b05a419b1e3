"""LABO that decides from the data how far it trusts its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from labo.errors import UserError
from labo.kernels.autograd import Solve
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers import registry
from labo.regularizers.base import Regularizer
from labo.regularizers.prediction_memory import PredictionMemory

if TYPE_CHECKING:
    from labo.outer.trust import Decision


class LABOAuto(Regularizer):
    """Label smoothing, or LABO with a mild or a strong memory: the one whose networks do best on held-out labels.

    Each candidate is trained on two halves of the training data, and judged on the other half by how well it predicts
    the labels as they are written; the best one is then trained on all of them (`labo.outer.trust.decide`). There is
    nothing to set.

    Needs: the decision. `labo train` and `labo compare` find it, and `labo.learn_labels` finds it for a training
        function of your own.

    When: you do not know whether labels are wrong, or whether the network comes to learn them by heart. It costs about
        four trainings in place of one.

    Raises:
        ValueError: it is used before there is a decision.

    Source: this project; docs/memory.md.
    """

    name = "labo_auto"
    summary = "label smoothing or LABO with a memory, decided on held-out labels"
    paper = ""
    year = None
    tuned = False
    chosen: Regularizer | None

    def __init__(self) -> None:
        super().__init__()
        self.register_module("chosen", None)

    @property
    def needs(self) -> tuple[str, ...]:
        """The decision, then what the chosen method needs."""
        return ("decision",) if self.chosen is None else self.chosen.needs

    @property
    def missing(self) -> tuple[str, ...]:
        """See `Regularizer.missing`."""
        return ("decision",) if self.chosen is None else self.chosen.missing

    def provide(self, *, decision: Decision | None = None, **given: Any) -> None:
        """Take the decision, or what the chosen method needs."""
        if decision is not None:
            self.chosen = registry.create(decision.method, **decision.options)
        if given:
            if self.chosen is None:
                super().provide(**given)
            else:
                self.chosen.provide(**given)

    def provided(self, name: str) -> Any:
        """See `Regularizer.provided`."""
        return super().provided(name) if self.chosen is None else self.chosen.provided(name)

    @property
    def has_linear_form(self) -> bool:
        """See `Regularizer.has_linear_form`."""
        return self.chosen is not None and self.chosen.has_linear_form

    @property
    def prediction_memory(self) -> PredictionMemory | None:
        """See `Regularizer.prediction_memory`."""
        return None if self.chosen is None else self.chosen.prediction_memory

    def as_labo(self, rows: Rows) -> Options | None:
        """See `Regularizer.as_labo`."""
        return self._decided().as_labo(rows)

    def solver(self, rows: Rows) -> Solve | None:
        """See `Regularizer.solver`."""
        return self._decided().solver(rows)

    def losses(self, rows: Rows) -> Tensor:
        """See `Regularizer.losses`."""
        return self._decided().losses(rows)

    def labels(self, rows: Rows) -> Tensor | None:
        """See `Regularizer.labels`: of the chosen method."""
        return self._decided().labels(rows)

    def _decided(self) -> Regularizer:
        if self.chosen is None:
            raise UserError("Method 'labo_auto' has not decided: train with labo.learn_labels, or with labo train.")
        return self.chosen
