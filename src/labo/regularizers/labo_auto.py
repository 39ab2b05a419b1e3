"""LABO that decides from the data how far it trusts its memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

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
    """Label smoothing, or LABO with a memory: decided by predictions of labels that a network did not train on.

    A strong memory and a mild one are trained on one half of the training data and predict the labels of the other, as
    they are written; where that is not clear, also the other way round. Where the strong one predicts them better, all
    data are trained with it, else with label smoothing of 0.1 (`labo.outer.trust.decide`). There is nothing to set.

    Needs: the decision. `labo train` and `labo compare` find it, and `labo.learn_labels` finds it for a training
        function of your own.

    When: you do not know whether labels are wrong, or whether the network comes to learn them by heart. It costs two or
        three trainings in place of one.

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
    @override
    def missing(self) -> tuple[str, ...]:
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

    def get_extra_state(self) -> Tensor:
        """The decision, as a tensor of the bytes of JSON: every format of checkpoints can hold one."""
        chosen = {} if self.chosen is None else {"method": self.chosen.name, "options": self.chosen.options()}
        return torch.frombuffer(bytearray(json.dumps(chosen).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Take a decision that was saved, if there is none."""
        chosen = json.loads(bytes(state.tolist()))
        if chosen and self.chosen is None:
            self.chosen = registry.create(chosen["method"], **chosen["options"])
            self.chosen._provided.update(self._provided)

    @override
    def provided(self, name: str) -> Any:
        return super().provided(name) if self.chosen is None else self.chosen.provided(name)

    @property
    @override
    def has_linear_form(self) -> bool:
        return self.chosen is not None and self.chosen.has_linear_form

    @property
    @override
    def prediction_memory(self) -> PredictionMemory | None:
        return None if self.chosen is None else self.chosen.prediction_memory

    @override
    def as_labo(self, rows: Rows) -> Options | None:
        return self._decided().as_labo(rows)

    @override
    def solver(self, rows: Rows) -> Solve | None:
        return self._decided().solver(rows)

    @override
    def losses(self, rows: Rows) -> Tensor:
        return self._decided().losses(rows)

    def labels(self, rows: Rows) -> Tensor | None:
        """The label distribution (N, C) of the chosen method; None where it has none."""
        return self._decided().labels(rows)

    def _decided(self) -> Regularizer:
        if self.chosen is None:
            raise UserError("Method 'labo_auto' has not decided: train with labo.learn_labels, or with labo train.")
        return self.chosen
