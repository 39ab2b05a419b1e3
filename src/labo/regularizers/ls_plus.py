"""Label Smoothing++: label smoothing with a learnt distribution over the other classes, per class."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from labo import checks, distributed, functional, inner
from labo.errors import UserError
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers import memory
from labo.regularizers.base import Regularizer, data_losses

MAX_CLASSES = 10_000


class LabelSmoothingPlusPlus(Regularizer):
    """(CE(t, p) + CE(p, t)) / 2 with t = (1 - alpha) * target + alpha * C[y].

    C[y] is a distribution over the classes other than y: the softmax of a row of a learnt table, initially uniform. t
    is constant in the first term, p in the second: the network learns only from the first, the table only from the
    second. A probability target mixes the rows of C.

    Args:
        alpha: smoothing mass, above 0 and below 1.
        allow_large: whether to allow more than 10,000 classes; the table is C x (C - 1) in float32.

    Needs: the class counts, for the number of classes, by `provide(class_counts=…)`; then the optimizer, by
        `provide(optimizer=…)`, with `learnt()` in a group without weight decay.

    When: you set up the optimizer yourself. The gradient of the network is half that of label smoothing, which halves
        the effective learning rate. Weight decay would pull C to uniform, so it raises an error.

    Raises:
        ValueError: an option is out of range, there are too many classes, or the optimizer does not update the table or
            decays it.

    Source: Chhabra et al., *Label Smoothing++: Enhanced Label Regularization for Training Neural Networks*, BMVC 2024;
        their code adds 1e-6 inside each logarithm; this does not.
    """

    name = "ls_plus"
    summary = "targets mixed with a learnt distribution over the other classes"
    paper = "Chhabra et al., BMVC 2024"
    year = 2024
    candidates = ({"alpha": 0.1}, {"alpha": 0.4}, {"alpha": 0.8}, {"alpha": 0.2}, {"alpha": 0.6})
    has_constants = True
    pulls_to_labels = False
    table: nn.Parameter | None

    def __init__(self, *, alpha: float = 0.1, allow_large: bool = False) -> None:
        super().__init__()
        checks.number("alpha", alpha, "(0, 1)")
        self.alpha = alpha
        self.allow_large = allow_large
        self.register_parameter("table", None)

    @property
    def needs(self) -> tuple[str, ...]:
        """The class counts, then the optimizer."""
        return ("class_counts", "optimizer")

    def provide(self, *, class_counts: Any = None, optimizer: Any = None, **inputs: Any) -> None:
        """Take the (C,) class counts, which set the size of the table, and the optimizer that updates it."""
        super().provide(**inputs)
        if class_counts is not None:
            self._create_table(checks.as_tensor(class_counts))
            super().provide(class_counts=class_counts)
        if optimizer is not None:
            self._check(optimizer)
            super().provide(optimizer=optimizer)

    @property
    @override
    def missing(self) -> tuple[str, ...]:
        missing = super().missing
        # A deep copy has a table of its own, which the optimizer of the original does not update.
        if "optimizer" in missing or self._group(self.provided("optimizer")) is not None:
            return missing
        return (*missing, "optimizer")

    def _create_table(self, class_counts: Tensor) -> None:
        classes = len(class_counts)
        if classes < 2:
            raise UserError(f"Expected argument `class_counts` of at least 2 classes, but got {classes}.")
        memory.refuse_large(self, classes, classes - 1, most=MAX_CLASSES**2)
        if self.table is None or len(self.table) != classes:
            self.table = nn.Parameter(torch.zeros(classes, classes - 1, device=class_counts.device))
            self.table.register_hook(_mean_of_processes)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if self.table is not None:  # a copy of a parameter has no hooks
            self.table.register_hook(_mean_of_processes)

    def _group(self, optimizer: Any) -> dict[str, Any] | None:
        """The group of the optimizer that holds the table; None if there is none."""
        groups = optimizer.param_groups
        return next((g for g in groups if any(parameter is self.table for parameter in g["params"])), None)

    def _check(self, optimizer: Any) -> None:
        if self.table is None:
            raise UserError(f"Method '{self.name}' needs class_counts before the optimizer: they create its table.")
        group = self._group(optimizer)
        if group is None:
            raise UserError(
                f"Expected the optimizer to learn the table of method '{self.name}': add regularizer.learnt() to it as "
                "a group with weight_decay=0."
            )
        if group.get("weight_decay"):
            raise UserError(
                f"Expected the optimizer to learn the table of method '{self.name}' with weight_decay=0, but got "
                f"{group['weight_decay']}."
            )

    @override
    def losses(self, rows: Rows) -> Tensor:
        if torch.is_grad_enabled() and rows.target.requires_grad:
            raise UserError(
                f"Expected argument `target` not to require grad with method '{self.name}', where it is constant in "
                "one of the two terms."
            )
        logits = inner.working(rows.logits)
        log_c = self._log_rows(rows)
        if rows.has_probabilities:
            target = rows.target.to(logits.dtype)
            labels = target @ log_c.exp()
            mixed = (1 - self.alpha) * target + self.alpha * labels
            log_t = mixed.clamp(min=torch.finfo(mixed.dtype).tiny).log()
        else:
            labels = log_c.exp()
            gold = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, rows.target.unsqueeze(-1), True)
            log_t = torch.where(gold, math.log1p(-self.alpha), math.log(self.alpha) + log_c)
        _, factor = data_losses(rows)
        loss_of_network = functional.soft_label_losses(rows, labels.detach(), self.alpha)
        loss_of_table = factor * reference.cross_entropy(reference.masked_log_softmax(logits).exp().detach(), log_t)
        return (loss_of_network + loss_of_table) / 2

    def labels(self, rows: Rows) -> Tensor:
        """The learnt distribution over the other classes, (N, C)."""
        with torch.no_grad():
            c = self._log_rows(rows).exp()
            return rows.target.to(c.dtype) @ c if rows.has_probabilities else c

    def _log_rows(self, rows: Rows) -> Tensor:
        """Log probabilities C[y] of the rows, (N, C), or of all classes for probability targets; -inf at y itself."""
        self.require()
        assert self.table is not None
        dtype, device, classes = inner.working(rows.logits).dtype, rows.raw.device, rows.raw.shape[-1]
        memory.refuse_other_size(self, "table", tuple(self.table.shape), (classes, classes - 1))
        at = torch.arange(classes, device=device) if rows.has_probabilities else rows.target
        log_p_others = self.table.to(device, dtype)[at].log_softmax(-1)
        others = torch.arange(classes - 1, device=device)
        others = others + (others >= at.unsqueeze(-1))  # all classes in order except the class itself
        return log_p_others.new_full((len(at), classes), -math.inf).scatter(-1, others, log_p_others)


def _mean_of_processes(gradient: Tensor) -> Tensor:
    """Average a gradient over the processes; data parallelism does this only for the network's parameters."""
    return distributed.all_reduce_sum(gradient) / distributed.world_size()
