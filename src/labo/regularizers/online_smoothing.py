"""Online label smoothing: labels from the mean predictions of each class in the epoch before."""

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
    """(1 - strength) * CE(target, p) + strength * CE(S[y], p), S[y] the mean p of class y when predicted right.

    S is recomputed when the epoch changes, from the epoch before: the mean of p over the correctly classified training
    examples of a class, with p as it was when each was seen. A class without such an example keeps its row. A
    probability target mixes the rows of S, and its largest entry counts as its class.

    Args:
        strength: weight of S in [0, 1]; 0.5 in the paper.
        start: S in the first epoch. "uniform" is label smoothing. "zeros", as in the authors' code, leaves only
            (1 - strength) * CE(target, p). "smoothed", as in another published version, has 0.9 at the class. Uniform
            is the default because its rows are distributions: the scale of the loss is the same in all epochs.
        allow_large: whether to allow more than 10,000 classes; the state is two C x C tables in float32.

    Needs: the epoch with each batch.

    When: classes resemble each other, and training has enough epochs to learn how. The labels of a class come from its
        easy examples. Without epochs, S is never updated.

    Raises:
        ValueError: an option is out of range, or there are too many classes.

    Source: Zhang et al., *Delving Deep into Label Smoothing*, IEEE Transactions on Image Processing 2021.
    """

    name = "online_smoothing"
    summary = "targets mixed with the mean correct prediction of the class in the last epoch"
    paper = "Zhang et al., IEEE TIP 2021"
    year = 2021
    labels_from_target = True
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
        """The epoch."""
        return ("epoch",)

    @override
    def losses(self, rows: Rows) -> Tensor:
        if self.training:
            self._allocate(rows)
            if self.turn.advanced(rows.given["epoch"]):
                self._start_epoch()
        losses = super().losses(rows)
        if self.training:
            self._accumulate(rows)
        return losses

    def labels(self, rows: Rows) -> Tensor:
        """The rows of S for the targets, (N, C)."""
        logits = inner.working(rows.logits)
        classes = logits.shape[-1]
        table = self._initial_table(classes, logits.device) if self.table is None else self.table
        memory.refuse_other_size(self, "table", tuple(table.shape), (classes, classes))
        table = table.to(logits)
        return rows.target.to(table.dtype) @ table if rows.has_probabilities else table[rows.target]

    def _initial_table(self, classes: int, device: torch.device) -> Tensor:
        """S in the first epoch."""
        if self.start == "uniform":
            return torch.full((classes, classes), 1 / classes, device=device)
        if self.start == "zeros":
            return torch.zeros(classes, classes, device=device)
        return torch.full((classes, classes), 0.1 / max(1, classes - 1), device=device).fill_diagonal_(0.9)

    def _allocate(self, rows: Rows) -> None:
        if self.table is not None:
            return
        classes, device = rows.raw.shape[-1], rows.raw.device
        memory.refuse_large(self, classes, classes, most=MAX_CLASSES**2, tables=2)
        self.table = self._initial_table(classes, device)
        self.sums = torch.zeros(classes, classes, device=device)
        self.counts = torch.zeros(classes, dtype=torch.int64, device=device)

    def _start_epoch(self) -> None:
        """Compute S from the epoch that has ended, and reset the sums."""
        assert self.table is not None
        assert self.sums is not None
        assert self.counts is not None
        count = self.counts.unsqueeze(-1)
        self.table = torch.where(count > 0, self.sums / count.clamp(min=1), self.table)
        self.sums.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def _accumulate(self, rows: Rows) -> None:
        """Add the correctly classified examples of this batch, of all processes."""
        assert self.sums is not None
        assert self.counts is not None
        p = reference.masked_log_softmax(inner.working(rows.logits)).exp()
        target = rows.target.argmax(-1) if rows.has_probabilities else rows.target
        correct = p.argmax(-1) == target
        if rows.kept is not None:
            correct = correct & rows.kept
        # Gather every batch instead of summing at the end of the epoch, so that the state in a checkpoint, which one
        # process writes, is always complete.
        predictions, classes = (
            distributed.all_gather(p[correct].to(self.sums)),
            distributed.all_gather(target[correct].to(self.sums.device)),
        )
        self.sums.index_add_(0, classes, predictions)
        self.counts += torch.bincount(classes, minlength=len(self.counts))
