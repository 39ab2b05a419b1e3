"""Distillation from a teacher, and from a trained twin of the network."""

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

    soft(z) = softmax(z / temperature); t are the logits of the teacher on the same inputs, z the network's. The
    divergence is summed over the classes. Classes that the batch masks (a logit of -inf) are masked for the teacher.

    Args:
        alpha: weight of the teacher in [0, 1].
        temperature: finite, above 0.

    Needs: a teacher, by `provide(teacher=network)`, which is held still (evaluation mode, no gradient, not saved), and
        the inputs of each batch.

    When: there is a better network for the same classes. It costs a forward pass of the teacher for each batch. A
        `KLDivLoss()` of another code base averages over the classes too: its alpha counts 1 / C of this one.

    Raises:
        ValueError: an option is out of range, or the teacher has other classes.

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

    def provide(self, *, teacher: Any = None, **given: Any) -> None:
        """Take the teacher, a network."""
        super().provide(**given)
        if teacher is None:
            return
        if isinstance(teacher, (str, Path)):
            raise UserError(
                f"Expected argument `teacher` to be a network, but got the path '{teacher}': "
                "labo.experiment.saved_run.load(path).model is the network of a run."
            )
        if not isinstance(teacher, nn.Module):
            raise UserError(f"Expected argument `teacher` to be a network, but got {type(teacher).__name__}.")
        super().provide(teacher=teacher.eval())

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        term = passes.divergence(inner.working(rows.logits), self._taught(rows), self.temperature)
        return reference.mix(data, factor * self._scale(rows) * term, self.alpha)

    def labels(self, rows: Rows) -> Tensor | None:
        """The teacher's softened prediction, (N, C); None without inputs."""
        if rows.given.get("inputs") is None:
            return None
        with torch.no_grad():
            return reference.masked_log_softmax(self._taught(rows) / self.temperature).exp()

    def _scale(self, rows: Rows) -> float:
        """What the divergence is multiplied by: gradients shrink with the temperature squared."""
        return self.temperature**2

    def _taught(self, rows: Rows) -> Tensor:
        teacher = passes.beside(self.provided("teacher"), rows).eval()
        return passes.constant_logits(teacher, rows.given["inputs"], rows, "the teacher")


class TeacherFreeDistillation(Distillation):
    """(1 - alpha) * CE(target, p) + alpha * multiplier * temperature ** 2 * KL(soft(t) || soft(z)).

    soft(z) = softmax(z / temperature); t are the logits of a trained twin: the same network, trained before on the
    same data.

    Args:
        alpha: weight of the twin in [0, 1].
        convention: "paper", or "repo" as in the authors' code, where the divergence is averaged over the classes.
        temperature: finite, above 0; None for 20 in the paper and 6 in the repo.
        multiplier: of the divergence, at least 0; None for 1 in the paper and 50 in the repo.

    Needs: the twin, by `provide(teacher=network)`, and the inputs of each batch.

    When: there is no better network to learn from, and training twice is affordable. In "repo" the effective weight
        is alpha * multiplier / C: it falls with the number of classes.

    Raises:
        ValueError: an option is out of range, or the twin has other classes.

    Source: Yuan et al., *Revisiting Knowledge Distillation via Label Smoothing Regularization*, CVPR 2020, Tf-KD_self;
        "repo" is `loss_kd_self` of their code. The defaults are those for ResNet-18 on CIFAR-100.
    """

    name = "tf_kd_self"
    summary = "distillation from a trained twin of the network"
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
        hot, many = (20.0, 1.0) if convention == "paper" else (6.0, 50.0)
        super().__init__(alpha=alpha, temperature=hot if temperature is None else temperature)
        self.multiplier = many if multiplier is None else multiplier
        checks.number("multiplier", self.multiplier, "[0, inf)")
        self.convention = convention

    def _scale(self, rows: Rows) -> float:
        classes = rows.raw.shape[-1] if self.convention == "repo" else 1
        return self.multiplier * self.temperature**2 / classes
