"""Confident learning: examples whose labels are probably wrong are left out."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import override

from labo import functional, inner
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers.base import SoftLabelRegularizer


class ConfidentLearning(SoftLabelRegularizer):
    """Label smoothing on the examples that confident learning keeps.

    Networks that did not train on an example predict its class; the package `cleanlab` estimates from these predictions
    how often a label of one class belongs to another, and lists as many examples of each pair of classes
    (`cleanlab.filter.find_label_issues` with its defaults). The final network trains without them.

    Args:
        epsilon: label smoothing of the final network, in [0, 1].

    Needs: the indices of the examples that are kept. `labo train` and `labo compare` find them, by the same networks of
        folds as for `labo[prior=channel]`.

    When: some labels are wrong, and there are enough examples to leave some out. Hard examples are left out as well. It
        costs two to three more trainings.

    Raises:
        ValueError: an option is out of range.

    Source: Northcutt, Jiang and Chuang, *Confident Learning: Estimating Uncertainty in Dataset Labels*, JAIR 2021.
    """

    name = "confident_learning"
    summary = "label smoothing without the examples that confident learning (cleanlab) finds wrong"
    paper = "Northcutt et al., JAIR 2021"
    year = 2021
    strength_name = "epsilon"
    candidates = ({"epsilon": 0.3}, {"epsilon": 0.1}, {"epsilon": 0.5}, {"epsilon": 0.0}, {"epsilon": 0.8})

    def __init__(self, *, epsilon: float = 0.3) -> None:
        super().__init__(strength=epsilon)

    @property
    def needs(self) -> tuple[str, ...]:
        """The indices of the examples to train on."""
        return ("kept",)

    @override
    def as_labo(self, rows: Rows) -> Options | None:
        self.require()
        return functional.row_options(rows, self.strength, math.inf, None)

    def labels(self, rows: Rows) -> Tensor:
        """The uniform distribution, (N, C)."""
        logits = inner.working(rows.logits)
        return inner.labels_of_rows(logits, inner.over_rows("beta", math.inf, logits), None)
