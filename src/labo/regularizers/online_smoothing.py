"""Online label smoothing: labels that are what the network said of the class an epoch before."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from labo import distributed, inner
from labo.errors import unknown
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers import memory
from labo.regularizers.base import SoftLabelRegularizer

STARTS = ("uniform", "zeros", "smoothed")
MAX_CLASSES = 10_000


class OnlineSmoothing(SoftLabelRegularizer):
    """(1 - strength) * CE(target, p) + strength * CE(S[y], p), S[y] the mean p of the examples of class y got right.

    S is made anew when the epoch number changes, from the epoch before: the mean, over the training examples of a
    class whose largest p is at the class, of their p as it was when they were seen. A class with no such example keeps
    its row. A probability target mixes the rows of S, and its largest class counts as its class.

    Args:
        strength: weight of S in [0, 1]; the paper's loss is half and half.
        start: S in the first epoch. "uniform" is label smoothing. "zeros", as in the authors' code, leaves a share of
            1 - strength of the loss. "smoothed", as in another published version, has 0.9 at the class. Uniform is the
            default: its rows are distributions, so the loss is of one scale from the first epoch to the last, and
            nothing has to be chosen.
        allow_large: whether there may be more than 10,000 classes, which two float32 tables of C x C are kept for.

    Needs: the number of the epoch with each batch.

    When: classes resemble each other, and there are epochs enough to see it. The labels of a class are those of what
        is easy in it. Training in steps without epochs never makes S.

    Raises:
        ValueError: an option is out of range, or there are too many classes.

    Source: Zhang et al., *Delving Deep into Label Smoothing*, IEEE Transactions on Image Processing 2021.
    """

    name = "online_smoothing"
    summary = "targets mixed with the mean right prediction of the class in the last epoch"
    paper = "Zhang et al., IEEE TIP 2021"
    year = 2021
    candidates = ({"strength": 0.5}, {"strength": 0.1}, {"strength": 0.8}, {"strength": 0.3}, {"strength": 0.6})
    table: Tensor | None
    sums: Tensor | None
    counts: Tensor | None

    def __init__(self, *, strength: float = 0.5, start: str = "uniform", allow_large: bool = False) -> None:
        super().__init__(strength=strength)
        if start not in STARTS:
            raise unknown("start", start, STARTS)
        self.start = start
        self.allow_large = allow_large
        self.turn = memory.ChangeCounter()
        self.register_buffer("table", None)
        self.register_buffer("sums", None)
        self.register_buffer("counts", None)

    @property
    def needs(self) -> tuple[str, ...]:
        """The number of the epoch."""
        return ("epoch",)

    @override
    def losses(self, rows: Rows) -> Tensor:
        if self.training:
            self._begin(rows)
            if self.turn.advanced(rows.given["epoch"]):
                self._renew()
        losses = super().losses(rows)
        if self.training:
            self._add(rows)
        return losses

    def labels(self, rows: Rows) -> Tensor:
        """The rows of S for the targets, (N, C)."""
        logits = inner.working(rows.logits)
        classes = logits.shape[-1]
        table = self._first(classes, logits.device) if self.table is None else self.table
        memory.refuse_other_size(self, "table", tuple(table.shape), (classes, classes))
        table = table.to(logits)
        return rows.target.to(table.dtype) @ table if rows.has_probabilities else table[rows.target]

    def _first(self, classes: int, device: torch.device) -> Tensor:
        """S before anything was seen."""
        if self.start == "uniform":
            return torch.full((classes, classes), 1 / classes, device=device)
        if self.start == "zeros":
            return torch.zeros(classes, classes, device=device)
        return torch.full((classes, classes), 0.1 / max(1, classes - 1), device=device).fill_diagonal_(0.9)

    def _begin(self, rows: Rows) -> None:
        if self.table is not None:
            return
        classes, device = rows.raw.shape[-1], rows.raw.device
        memory.refuse_large(self, classes, classes, most=MAX_CLASSES**2, tables=2)
        self.table = self._first(classes, device)
        self.sums = torch.zeros(classes, classes, device=device)
        self.counts = torch.zeros(classes, dtype=torch.int64, device=device)

    def _renew(self) -> None:
        """Make S from the epoch that is over, and begin to count anew."""
        assert self.table is not None
        assert self.sums is not None
        assert self.counts is not None
        count = self.counts.unsqueeze(-1)
        self.table = torch.where(count > 0, self.sums / count.clamp(min=1), self.table)
        self.sums.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def _add(self, rows: Rows) -> None:
        """Count the examples of all processes that this batch got right."""
        assert self.sums is not None
        assert self.counts is not None
        p = reference.masked_log_softmax(inner.working(rows.logits)).exp()
        target = rows.target.argmax(-1) if rows.has_probabilities else rows.target
        right = p.argmax(-1) == target
        if rows.kept is not None:
            right = right & rows.kept
        # Gathered at once and not summed at the end of the epoch: a checkpoint, which one process writes, is then
        # whole at any time.
        seen, classes = (
            distributed.all_gather(p[right].to(self.sums)),
            distributed.all_gather(target[right].to(self.sums.device)),
        )
        self.sums.index_add_(0, classes, seen)
        self.counts += torch.bincount(classes, minlength=len(self.counts))
