"""Zipf smoothing: the wrong classes pulled to 1, 1/2, 1/3, … by their rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.errors import UserError, unknown
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, data_losses, divergence

RANKINGS = ("logits", "dense")


class ZipfSmoothing(Regularizer):
    """CE(target, p) + strength * KL(labels || softmax over the wrong logits), labels_k proportional to 1 / rank_k.

    The wrong classes are those that the target gives nothing and that are not masked: C - 1 for a class index. They
    are ranked from 1, the highest score first. Equal scores share the best of their ranks, so the result does not
    depend on an order. Ranks are constant for the gradient. Rows without a wrong class have no penalty.

    Args:
        strength: weight of the divergence, at least 0; the authors run CIFAR-100 with 0.1, Tiny ImageNet with 1.
        ranking: what the scores are: "logits"; or "dense", how many places of the last feature map have the class as
            their first (the first index of equals). Classes that no place votes for then share the last rank.
        gold_ranked: whether the gold class takes a rank beside the wrong ones and is left out after, as in the
            authors' code: where it is the first, the wrong ones get 1/2, 1/3, … in proportion, which is flatter.

    Needs: of each batch, `dense_logits` (N, P, C), the classifier at each of P places, with ranking="dense" alone.

    When: for image classification with many classes that resemble each other, at no cost but a sort. "dense" is what
        was published; with "logits" the model confirms its own order. With few classes there is little to rank.

    Raises:
        ValueError: an option is out of range, or `dense_logits` is not (N, P, C).

    Source: Liang et al., *Efficient One Pass Self-distillation with Zipf's Label Smoothing*, ECCV 2022.
    """

    name = "zipf_smoothing"
    summary = "the wrong classes pulled to Zipf's law by their rank"
    paper = "Liang et al., ECCV 2022"
    year = 2022
    # Its labels are of the wrong classes alone.
    pulls_to_labels = False
    candidates = ({"strength": 0.1}, {"strength": 1.0}, {"strength": 0.3}, {"strength": 3.0}, {"strength": 0.03})

    def __init__(self, *, strength: float = 0.1, ranking: str = "logits", gold_ranked: bool = False) -> None:
        super().__init__()
        checks.number("strength", strength, "[0, inf)")
        if ranking not in RANKINGS:
            raise unknown("ranking", ranking, RANKINGS)
        if not isinstance(gold_ranked, bool):
            raise UserError(f"Expected argument `gold_ranked` to be true or false, but got {gold_ranked!r}.")
        self.strength = strength
        self.ranking = ranking
        self.gold_ranked = gold_ranked

    @property
    def needs(self) -> tuple[str, ...]:
        """The logits at the places of the feature map with ranking="dense"."""
        return ("dense_logits",) if self.ranking == "dense" else ()

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        logits = inner.working(rows.logits)
        log_q = reference.masked_log_softmax(torch.where(_wrong(rows, logits), logits, -math.inf))
        return data + self.strength * factor * divergence(self._zipf(rows, logits), log_q)

    def labels(self, rows: Rows) -> Tensor | None:
        """Zipf's law over the wrong classes, (N, C), 0 at the others; None without the dense logits that it needs."""
        return None if self.missing_from(rows.given) else self._zipf(rows, inner.working(rows.logits))

    @torch.no_grad()
    def _zipf(self, rows: Rows, logits: Tensor) -> Tensor:
        wrong = _wrong(rows, logits)
        scores = logits if self.ranking == "logits" else _votes(rows.given["dense_logits"], logits)
        ranked = logits != -math.inf if self.gold_ranked else wrong
        shares = torch.where(wrong, 1 / _ranks(torch.where(ranked, scores, -math.inf)), 0.0)
        return shares / torch.where(wrong.any(-1, keepdim=True), shares.sum(-1, keepdim=True), 1.0)


def _wrong(rows: Rows, logits: Tensor) -> Tensor:
    """Which classes (N, C) have no part in the target and are not masked."""
    return (reference.target_mass(logits, rows.target, None) == 0) & (logits != -math.inf)


def _ranks(scores: Tensor) -> Tensor:
    """1 + how many scores of the row are greater, (N, C)."""
    falling = (-scores).contiguous()
    return 1 + torch.searchsorted(falling.sort(-1).values, falling).to(scores.dtype)


def _votes(dense_logits: Tensor, logits: Tensor) -> Tensor:
    """How many places have each class as their first, (N, C)."""
    count, classes = logits.shape
    if dense_logits.dim() != 3 or (dense_logits.shape[0], dense_logits.shape[2]) != (count, classes):
        raise ValueError(
            f"Expected argument `dense_logits` to have shape ({count}, places, {classes}), but got "
            f"{tuple(dense_logits.shape)}."
        )
    first = dense_logits.detach().to(logits.device).argmax(-1)
    return torch.zeros_like(logits).scatter_add(-1, first, torch.ones_like(first, dtype=logits.dtype))
