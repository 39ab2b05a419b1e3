"""Distillation from a teacher, and from a trained copy of the same architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from labo import checks, inner
from labo.errors import UserError, unknown
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers import passes
from labo.regularizers.base import Regularizer, data_losses

CONVENTIONS = ("paper", "repo")


class Distillation(Regularizer):
    """(1 - alpha) * CE(target, p) + alpha * temperature ** 2 * KL(soft(t) || soft(z)).

    soft(z) = softmax(z / temperature); t are the teacher's logits for the same inputs, z the network's. The
    divergence is summed over the classes. Classes that the batch masks (a logit of -inf) are masked for the teacher.

    Args:
        alpha: weight of the divergence, in [0, 1].
        temperature: finite, above 0.

    Needs: a teacher, by `provide(teacher=network)`, which is frozen (evaluation mode, no gradient, not saved), and the
        inputs of each batch.

    When: there is a better network for the same classes. It costs a forward pass of the teacher per batch. Code that
        uses `KLDivLoss()` with its default reduction also averages over the classes: its alpha is worth 1 / C here.

    Raises:
        ValueError: an option is out of range, or the teacher has a different number of classes.

    Source: Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015, section 2.
    """

    name = "distillation"
    summary = "cross-entropy and the divergence from a teacher's softened prediction"
    paper = "Hinton et al., 2015"
    year = 2015
    candidates = ({"alpha": 0.9}, {"alpha": 0.5}, {"alpha": 0.9, "temperature": 2.0}, {"alpha": 0.1}, {"alpha": 0.7})
    pulls_to_labels = False

    def __init__(self, *, alpha: float = 0.9, temperature: float = 4.0) -> None:
        super().__init__()
        checks.share("alpha", alpha)
        checks.number("temperature", temperature, "(0, inf)")
        self.alpha = alpha
        self.temperature = temperature

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher, and the inputs of each batch."""
        return ("teacher", "inputs")

    def provide(self, *, teacher: Any = None, **inputs: Any) -> None:
        """Take the teacher, a network."""
        super().provide(**inputs)
        if teacher is None:
            return
        if isinstance(teacher, (str, Path)):
            raise UserError(
                f"Expected argument `teacher` to be a network, but got the path '{teacher}': "
                "labo.experiment.saved_run.load(path).model loads the network of a run."
            )
        if not isinstance(teacher, nn.Module):
            raise UserError(f"Expected argument `teacher` to be a network, but got {type(teacher).__name__}.")
        super().provide(teacher=teacher.eval())

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        term = passes.divergence(inner.working(rows.logits), self._teacher_logits(rows), self.temperature)
        return reference.mix(data, factor * self._scale(rows) * term, self.alpha)

    def labels(self, rows: Rows) -> Tensor | None:
        """The teacher's softened prediction, (N, C); None without inputs."""
        if rows.given.get("inputs") is None:
            return None
        with torch.no_grad():
            return reference.masked_log_softmax(self._teacher_logits(rows) / self.temperature).exp()

    def _scale(self, rows: Rows) -> float:
        """The factor of the divergence: its gradients shrink with the temperature squared."""
        return self.temperature**2

    def _teacher_logits(self, rows: Rows) -> Tensor:
        teacher = passes.to_device_of(self.provided("teacher"), rows).eval()
        return passes.constant_logits(teacher, rows.given["inputs"], rows, "the teacher")


class TeacherFreeDistillation(Distillation):
    """(1 - alpha) * CE(target, p) + alpha * multiplier * temperature ** 2 * KL(soft(t) || soft(z)).

    soft(z) = softmax(z / temperature); t are the logits of a teacher of the same architecture that was trained before
    on the same data.

    Args:
        alpha: weight of the divergence, in [0, 1].
        convention: "paper", or "repo" as in the authors' code, where the divergence is averaged over the classes.
        temperature: finite, above 0; None for 20 with "paper" and 6 with "repo".
        multiplier: extra factor of the divergence, at least 0; None for 1 with "paper" and 50 with "repo".

    Needs: the trained network, by `provide(teacher=network)`, and the inputs of each batch.

    When: there is no better teacher, and you can afford to train twice. With "repo" the effective weight is
        alpha * multiplier / C: it falls with the number of classes.

    Raises:
        ValueError: an option is out of range, or the teacher has a different number of classes.

    Source: Yuan et al., *Revisiting Knowledge Distillation via Label Smoothing Regularization*, CVPR 2020, Tf-KD_self;
        "repo" is `loss_kd_self` in their code. The defaults are theirs for ResNet-18 on CIFAR-100.
    """

    name = "tf_kd_self"
    summary = "distillation from a trained network of the same architecture"
    paper = "Yuan et al., CVPR 2020"
    year = 2020
    candidates = (
        {"alpha": 0.95},
        {"alpha": 0.95, "convention": "repo"},
        {"alpha": 0.5, "temperature": 4.0},
        {"alpha": 0.1},
        {"alpha": 0.9, "temperature": 4.0},
    )

    def __init__(
        self,
        *,
        alpha: float = 0.95,
        convention: str = "paper",
        temperature: float | None = None,
        multiplier: float | None = None,
    ) -> None:
        if convention not in CONVENTIONS:
            raise unknown("convention", convention, CONVENTIONS)
        default_temperature, default_multiplier = (20.0, 1.0) if convention == "paper" else (6.0, 50.0)
        super().__init__(alpha=alpha, temperature=default_temperature if temperature is None else temperature)
        self.multiplier = default_multiplier if multiplier is None else multiplier
        checks.number("multiplier", self.multiplier, "[0, inf)")
        self.convention = convention

    def _scale(self, rows: Rows) -> float:
        classes = rows.raw.shape[-1] if self.convention == "repo" else 1
        return self.multiplier * self.temperature**2 / classes
