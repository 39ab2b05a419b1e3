"""Progressive self-knowledge distillation: targets mixed with the previous prediction for the example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, distributed, inner
from labo.errors import UserError
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers import memory
from labo.regularizers.base import SoftLabelRegularizer

MAX_NUMBERS = 1_000_000_000


class ProgressiveDistillation(SoftLabelRegularizer):
    """(1 - alpha_t) * CE(target, p) + alpha_t * CE(before, p), alpha_t = alpha * (epoch + 1) / epochs.

    before is p at the last visit of the same example; it is the target in epoch 0 and for examples not seen yet.

    Args:
        alpha: final value of the weight, in [0, 1].
        allow_large: whether to allow a memory of training examples x classes above 10 ** 9 float32 numbers (4 GB).

    Needs: the numbers of training examples and epochs, by `provide(examples=…, epochs=…)`, and with each batch the
        indices of its examples in the training data and the epoch.

    When: each example has one label, and augmentation is not too strong. Memory and checkpoint grow by examples x
        classes.

    Raises:
        ValueError: an option is out of range, the memory would be too large, or an index is not in the training data.

    Source: Kim et al., *Self-Knowledge Distillation with Progressive Refinement of Targets*, ICCV 2021. The authors'
        code counts the epochs of alpha_t from 1, as here.
    """

    name = "ps_kd"
    summary = "targets mixed increasingly with the previous prediction for the example"
    paper = "Kim et al., ICCV 2021"
    year = 2021
    labels_from_target = True
    strength_name = "alpha"
    candidates = ({"alpha": 0.8}, {"alpha": 0.4}, {"alpha": 1.0}, {"alpha": 0.2}, {"alpha": 0.6})
    memory: Tensor | None

    def __init__(self, *, alpha: float = 0.8, allow_large: bool = False) -> None:
        super().__init__(strength=alpha)
        self.allow_large = allow_large
        self.register_buffer("memory", None)

    @property
    def needs(self) -> tuple[str, ...]:
        """The numbers of examples and epochs; with each batch, the indices and the epoch."""
        return ("examples", "epochs", "indices", "epoch")

    def provide(self, **inputs: Any) -> None:
        """Take the numbers of training examples and of epochs."""
        for name in ("examples", "epochs"):
            checks.integer(name, inputs.get(name, 1))
        super().provide(**inputs)

    @override
    def losses(self, rows: Rows) -> Tensor:
        if self.training and self.memory is None:
            examples, classes = self.provided("examples"), rows.raw.shape[-1]
            memory.refuse_large(self, examples, classes, most=MAX_NUMBERS)
            self.memory = torch.zeros(examples, classes, device=rows.raw.device)
        losses = super().losses(rows)
        if self.training:
            self._remember(rows)
        return losses

    def labels(self, rows: Rows) -> Tensor | None:
        """The previous predictions for the examples, (N, C); None without `indices`."""
        if rows.given.get("indices") is None:
            return None
        target = reference.target_mass(inner.working(rows.logits), rows.target, None)
        places = self._places(rows)
        if self.memory is None or rows.given.get("epoch") == 0:
            return target
        before = self.memory[places.to(self.memory.device)].to(target)
        return torch.where(before.sum(-1, keepdim=True) > 0, before, target)  # zeros mean not seen yet

    def strength_of(self, rows: Rows) -> float | Tensor:
        """alpha_t."""
        return self.strength * min(1.0, (int(rows.given["epoch"]) + 1) / self.provided("epochs"))

    def _places(self, rows: Rows) -> Tensor:
        """The places of the rows in the memory, (N,); 0 for ignored rows."""
        examples, classes = self.provided("examples"), rows.raw.shape[-1]
        if self.memory is not None:
            memory.refuse_other_size(self, "prediction", tuple(self.memory.shape), (examples, classes))
        places = checks.as_tensor(rows.given["indices"])
        if places.dtype.is_floating_point or places.shape != rows.raw.shape[:1]:
            raise UserError(
                f"Expected `indices` to be {len(rows.raw)} whole numbers, one for each row, but got {places.dtype} of "
                f"shape {tuple(places.shape)}."
            )
        places = checks.as_targets(places)
        if rows.kept is not None:
            places = torch.where(rows.kept.to(places.device), places, 0)
        wrong = (places < 0) | (places >= examples)
        if bool(wrong.any()):
            raise UserError(f"Expected `indices` of {examples} training examples, but got {int(places[wrong][0])}.")
        return places

    @torch.no_grad()
    def _remember(self, rows: Rows) -> None:
        """Store the predictions of all processes; the last one of an example that occurs twice."""
        assert self.memory is not None
        p = reference.masked_log_softmax(inner.working(rows.logits)).exp().to(self.memory)
        places = self._places(rows).to(self.memory.device)
        if rows.kept is not None:
            kept = rows.kept.to(self.memory.device)
            p, places = p[kept], places[kept]
        p, places = distributed.all_gather(p), distributed.all_gather(places)
        examples, which = places.unique(return_inverse=True)
        # Duplicate places in one write have no defined order, so select the last one.
        order = torch.arange(len(places), device=places.device)
        last = order.new_zeros(len(examples)).scatter_reduce(0, which, order, "amax")
        self.memory[examples] = p[last]
