"""LABO with a strong or a mild memory, or label smoothing, chosen on held-out labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks
from labo.errors import UserError
from labo.kernels.autograd import Solve
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers import registry
from labo.regularizers.base import Regularizer
from labo.regularizers.prediction_memory import PredictionMemory

# How much it may cost, in plain training runs.
BUDGETS = (1.5, 3.0, 6.0)
BUDGET = 3.0


class Choice(Protocol):
    """What a decision chose; see `labo.outer.trust.Decision`."""

    @property
    def method(self) -> str:
        """The name of the chosen method."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """Its options."""
        ...


class LABOAuto(Regularizer):
    """LABO with a strong or a mild memory, or label smoothing, chosen on held-out labels.

    A network with a strong memory and one with a mild memory train on one half of the training data and predict the
    given labels of the other half; if the result is not clear, the halves are also swapped. The final network trains on
    all data: with the strong memory if it predicts better; else with the mild one if the networks memorize labels, and
    with label smoothing of 0.1 if they do not (`labo.outer.trust.decide`).

    Args:
        budget: the most that it may cost, in plain training runs: 1.5 (both train on a quarter and predict the rest), 3
            (on a half; the default), or 6 (two variants of the strong memory are compared too, on both halves).

    Needs: the decision. `labo train` and `labo compare` make it, and `labo.learn_labels` makes it for your own training
        function.

    When: you do not know whether labels are wrong, or whether the network memorizes them. It costs two or three
        training runs instead of one, or what `budget` says.

    Raises:
        ValueError: `budget` is another one, or it is used before the decision is provided.

    Source: this project; docs/memory.md.
    """

    name = "labo_auto"
    summary = "LABO with a strong or a mild memory or label smoothing, chosen on held-out labels"
    paper = ""
    year = None
    tuned = False
    chosen: Regularizer | None

    def __init__(self, *, budget: float | None = None) -> None:
        super().__init__()
        budget = checks.python_number(budget)
        if budget is not None:
            check_budget(budget)
        self.budget = budget
        self.register_module("chosen", None)

    @classmethod
    @override
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The budget, only if it is given: records of earlier versions have none."""
        return {name: given[name] for name in cls.option_names() if name in given}

    @override
    def options(self) -> dict[str, Any]:
        return {} if self.budget is None else {"budget": self.budget}

    @property
    def needs(self) -> tuple[str, ...]:
        """The decision, then what the chosen method needs."""
        return ("decision",) if self.chosen is None else self.chosen.needs

    @property
    @override
    def missing(self) -> tuple[str, ...]:
        return ("decision",) if self.chosen is None else self.chosen.missing

    def provide(self, *, decision: Choice | None = None, **inputs: Any) -> None:
        """Take the decision, or the inputs of the chosen method."""
        if decision is not None:
            self.chosen = registry.create(decision.method, **decision.options)
        if inputs:
            if self.chosen is None:
                super().provide(**inputs)
            else:
                self.chosen.provide(**inputs)

    def get_extra_state(self) -> Tensor:
        """The decision as JSON bytes in a tensor, which every checkpoint format can hold."""
        chosen = {} if self.chosen is None else {"method": self.chosen.name, "options": self.chosen.options()}
        return torch.frombuffer(bytearray(json.dumps(chosen).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Restore a saved decision, unless there is one already."""
        chosen = json.loads(bytes(state.tolist()))
        if chosen and self.chosen is None:
            self.chosen = registry.create(chosen["method"], **chosen["options"])
            self.chosen._provided.update({name: self._provided[name] for name in self._provided})

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
    def training_targets(self, labels: Tensor, classes: int) -> Tensor | None:
        return None if self.chosen is None else self.chosen.training_targets(labels, classes)

    @override
    def as_labo(self, rows: Rows) -> Options | None:
        return self._chosen_method().as_labo(rows)

    @override
    def solver(self, rows: Rows) -> Solve | None:
        return self._chosen_method().solver(rows)

    @override
    def losses(self, rows: Rows) -> Tensor:
        return self._chosen_method().losses(rows)

    def labels(self, rows: Rows) -> Tensor | None:
        """The label distribution (N, C) of the chosen method; None if it has none."""
        return self._chosen_method().labels(rows)

    def _chosen_method(self) -> Regularizer:
        if self.chosen is None:
            raise UserError("Method 'labo_auto' has not decided: train with labo.learn_labels, or with labo train.")
        return self.chosen


def check_budget(budget: float) -> None:
    """Refuse a budget that is none of `BUDGETS`.

    Raises:
        UserError: see above.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float) or budget not in BUDGETS:
        raise UserError(f"Expected option `budget` to be 1.5, 3 or 6 (plain training runs), but got {budget!r}.")
