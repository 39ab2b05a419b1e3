"""Plain cross-entropy: the member that regularizes nothing."""

from __future__ import annotations

from torch import Tensor

from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses


class NoRegularizer(Regularizer):
    """CE(target, p), as `F.cross_entropy` without smoothing."""

    name = "none"
    summary = "plain cross-entropy"

    def losses(self, rows: Rows) -> Tensor:
        """See `Regularizer.losses`."""
        return data_losses(rows)[0]
