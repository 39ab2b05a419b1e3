"""Zipf smoothing: the wrong classes pulled towards probabilities 1, 1/2, 1/3, … by rank."""

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

    The wrong classes are the unmasked classes without target mass: C - 1 for a class index. They are ranked from 1, the
    highest score first. Equal scores share the best of their ranks, so the result does not depend on an order. Ranks
    are constant for the gradient. Rows without a wrong class have no penalty.

    Args:
        strength: weight of the divergence, at least 0; the authors use 0.1 for CIFAR-100 and 1 for Tiny ImageNet.
        ranking: the scores: "logits"; or "dense", the number of positions of the last feature map whose top class it is
            (the first index among ties). Classes without a vote then share the last rank.
        gold_ranked: whether the gold class takes part in the ranking and is removed afterwards, as in the authors'
            code: if it is first, the wrong classes get 1/2, 1/3, … in proportion, which is flatter.

    Needs: with each batch, `dense_logits` (N, P, C), the classifier at each of P positions, only with ranking="dense".

    When: for image classification with many similar classes, at the cost of a sort. "dense" is the published method;
        "logits" reinforces the model's own ranking. With few classes there is little to rank.

    Raises:
        ValueError: an option is out of range, or `dense_logits` is not (N, P, C).

    Source: Liang et al., *Efficient One Pass Self-distillation with Zipf's Label Smoothing*, ECCV 2022.
    """

    name = "zipf_smoothing"
    summary = "wrong classes pulled towards Zipf's law by rank"
    paper = "Liang et al., ECCV 2022"
    year = 2022
    # Its labels cover only the wrong classes.
    pulls_to_labels = False
    candidates = ({"strength": 0.1}, {"strength": 1.0}, {"strength": 0.3}, {"strength": 3.0}, {"strength": 0.03})

    def __init__(self, *, strength: float = 0.1, ranking: str = "logits", gold_ranked: bool = False) -> None:
        super().__init__()
        checks.number("strength", strength, "[0, inf)")
        if ranking not in RANKINGS:
            raise unknown("ranking", ranking, RANKINGS)
        if not isinstance(gold_ranked, bool):
            raise UserError(f"Expected argument `gold_ranked` to be True or False, but got {gold_ranked!r}.")
        self.strength = strength
        self.ranking = ranking
        self.gold_ranked = gold_ranked

    @property
    def needs(self) -> tuple[str, ...]:
        """The logits at the positions of the feature map, with ranking="dense"."""
        return ("dense_logits",) if self.ranking == "dense" else ()

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, factor = data_losses(rows)
        logits = inner.working(rows.logits)
        log_q = reference.masked_log_softmax(torch.where(_wrong(rows, logits), logits, -math.inf))
        return data + self.strength * factor * divergence(self._zipf(rows, logits), log_q)

    def labels(self, rows: Rows) -> Tensor | None:
        """Zipf's law over the wrong classes, (N, C), 0 elsewhere; None without the dense logits that it needs."""
        return None if self.missing_from(rows.given) else self._zipf(rows, inner.working(rows.logits))

    @torch.no_grad()
    def _zipf(self, rows: Rows, logits: Tensor) -> Tensor:
        wrong = _wrong(rows, logits)
        scores = logits if self.ranking == "logits" else _votes(rows.given["dense_logits"], logits)
        ranked = logits != -math.inf if self.gold_ranked else wrong
        shares = torch.where(wrong, 1 / _ranks(torch.where(ranked, scores, -math.inf)), 0.0)
        return shares / torch.where(wrong.any(-1, keepdim=True), shares.sum(-1, keepdim=True), 1.0)


def _wrong(rows: Rows, logits: Tensor) -> Tensor:
    """The mask (N, C) of unmasked classes without target mass."""
    return (reference.target_mass(logits, rows.target, None) == 0) & (logits != -math.inf)


def _ranks(scores: Tensor) -> Tensor:
    """The rank of each score in its row, 1 + the number of greater ones, (N, C)."""
    negated = (-scores).contiguous()
    return 1 + torch.searchsorted(negated.sort(-1).values, negated).to(scores.dtype)


def _votes(dense_logits: Tensor, logits: Tensor) -> Tensor:
    """The number of positions whose top class it is, for each class, (N, C)."""
    count, classes = logits.shape
    if dense_logits.dim() != 3 or (dense_logits.shape[0], dense_logits.shape[2]) != (count, classes):
        raise ValueError(
            f"Expected argument `dense_logits` to have shape ({count}, positions, {classes}), but got "
            f"{tuple(dense_logits.shape)}."
        )
    first = dense_logits.detach().to(logits.device).argmax(-1)
    return torch.zeros_like(logits).scatter_add(-1, first, torch.ones_like(first, dtype=logits.dtype))
