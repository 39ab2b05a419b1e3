"""Label smoothing, in the conventions of PyTorch, fairseq and Joey NMT."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from labo import functional, inner
from labo.errors import UserError, unknown
from labo.kernels import reference
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers.base import SoftLabelRegularizer

CONVENTIONS = ("torch", "fairseq", "joeynmt")


class LabelSmoothing(SoftLabelRegularizer):
    """CE((1 - epsilon) * target + epsilon * labels, p), with labels that do not depend on the input.

    Three conventions of epsilon are in use:

    * "torch": labels are 1 / C everywhere, the gold class included; what `F.cross_entropy(label_smoothing=)` does.
    * "fairseq": labels are 1 / (C - 1) on the other classes. epsilon_torch = epsilon_fairseq * C / (C - 1).
    * "joeynmt": labels are 1 / (C - 2) on the classes that are neither gold nor padding, the loss is the divergence
      KL(smoothed || p), and the loss of rows whose target is the padding class is 0. A mean counts such rows unless
      they are ignored: pass ignore_index=padding_index to the loss, or use -100 as their target.

    Args:
        epsilon: smoothing mass in [0, 1].
        convention: "torch", "fairseq" or "joeynmt".
        padding_index: the padding class; required with "joeynmt", and only there.

    When: the first method to try, and the baseline for the others. The network becomes under-confident by about
        epsilon: apply temperature scaling before using its probabilities. All wrong classes are pulled to the same
        logit.

    Raises:
        ValueError: an option is out of range, or the logits have too few classes for the convention.

    Source: Szegedy et al., *Rethinking the Inception Architecture*, CVPR 2016, section 7; the conventions are those of
        the named libraries.

    Example:
        >>> from labo import LabelRegularizedLoss
        >>> LabelRegularizedLoss(LabelSmoothing(epsilon=0.1))(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    name = "label_smoothing"
    summary = "targets mixed with the uniform distribution"
    paper = "Szegedy et al., CVPR 2016"
    year = 2016
    labels_from_target = True
    strength_name = "epsilon"
    candidates = ({"epsilon": 0.1}, {"epsilon": 0.4}, {"epsilon": 0.8}, {"epsilon": 0.2}, {"epsilon": 0.6})

    def __init__(self, *, epsilon: float = 0.1, convention: str = "torch", padding_index: int | None = None) -> None:
        super().__init__(strength=epsilon)
        if convention not in CONVENTIONS:
            raise unknown("convention", convention, CONVENTIONS)
        if (convention == "joeynmt") != (padding_index is not None):
            raise UserError("Expected argument `padding_index` with convention='joeynmt', and only there.")
        self.convention = convention
        self.padding_index = padding_index

    def as_labo(self, rows: Rows) -> Options | None:
        """LABO at infinite beta, in PyTorch's convention."""
        return functional.row_options(rows, self.strength, math.inf, None) if self.convention == "torch" else None

    def labels(self, rows: Rows) -> Tensor:
        """The constant labels (N, C): over all classes, or over all but the gold (and the padding) one."""
        logits = inner.working(rows.logits)
        classes = logits.shape[-1]
        if self.convention == "torch":
            return torch.full_like(logits[:1], 1 / classes).expand(logits.shape)
        others_count = classes - (1 if self.convention == "fairseq" else 2)
        if others_count < 1:
            raise ValueError(f"Expected argument `input` to have more classes for '{self.convention}', got {classes}.")
        others = 1 - _one_hot(rows, logits)
        if self.padding_index is not None:
            others = others.index_fill(-1, torch.tensor([self.padding_index], device=logits.device), 0.0)
        return others / others_count

    @override
    def losses(self, rows: Rows) -> Tensor:
        if self.padding_index is None:
            return super().losses(rows)
        return self._divergence(rows, self.padding_index)

    def _divergence(self, rows: Rows, padding: int) -> Tensor:
        if rows.has_probabilities or not 0 <= padding < rows.logits.shape[-1]:
            raise ValueError("Expected class index targets and a `padding_index` among the classes with 'joeynmt'.")
        logits = inner.working(rows.logits)
        with torch.no_grad():
            smoothed = (1 - self.strength) * _one_hot(rows, logits) + self.strength * self.labels(rows)
            entropy = -torch.special.xlogy(smoothed, smoothed).sum(-1)
        losses = reference.cross_entropy(smoothed, reference.masked_log_softmax(logits)) - entropy
        return torch.where(rows.target == padding, 0.0, losses)


def _one_hot(rows: Rows, logits: Tensor) -> Tensor:
    if rows.has_probabilities:
        return rows.target.to(logits.dtype)
    return torch.zeros_like(logits).scatter(-1, rows.target.unsqueeze(-1), 1.0)
