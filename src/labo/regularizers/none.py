"""Plain cross-entropy, without regularization."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import override

from labo import functional
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses


class NoRegularizer(Regularizer):
    """CE(target, p), like `F.cross_entropy` without smoothing.

    When: as the baseline; and if the network will be used without temperature scaling.
    """

    name = "none"
    summary = "plain cross-entropy"

    def as_labo(self, rows: Rows) -> Options:
        """LABO with strength 0."""
        return functional.row_options(rows, 0.0, math.inf, None)

    @override
    def losses(self, rows: Rows) -> Tensor:
        return data_losses(rows)[0]
