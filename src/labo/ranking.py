"""Examples ranked by how strongly the label q* disagrees with their given class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labo import checks, inner

# Rows of logits for which q* is computed at a time.
_CHUNK_ROWS = 65_536
# A memory in half precision holds 0 below this.
_MIN_MASS = 1e-8


@dataclass(frozen=True)
class Ranking:
    """A ranking of N examples; every tensor is (N,), all but `order` in the examples' own order.

    `order` holds their indices, the most likely issue first; `scores` are above 0 where q* prefers another class;
    `other` is the likeliest class of q* beside the given one; `q_given` and `q_other` are q* of the two.
    """

    order: Tensor
    scores: Tensor
    other: Tensor
    q_given: Tensor
    q_other: Tensor


def rank(logits: Tensor, target: Tensor, *, beta: float) -> Ranking:
    """Rank examples by log q*_k - log q*_target, where k is the likeliest class beside the target; the largest first.

    q* = softmax(logits / beta) is the label of the inner problem with a uniform prior (`labo.optimal_labels`), so the
    score is (logits_k - logits_target) / beta: beta scales the scores and changes no order. LABO's alpha does not
    matter: it weights q* against the target in the same way for all. docs/suspicious-labels.md compares scores.

    Args:
        logits: (N, C), of at least two classes.
        target: the given class indices (N,).
        beta: in (0, inf); see `default_beta`.

    Raises:
        ValueError, TypeError: `beta` is out of range, or an argument does not fit.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 4.0], [1.0, 0.0]])
        >>> rank(logits, torch.tensor([0, 0, 1]), beta=2.0).order
        tensor([1, 2, 0])
    """
    checks.floating("logits", logits)
    checks.positive("beta", beta)
    if logits.dim() != 2 or logits.shape[1] < 2 or target.shape != logits.shape[:1] or math.isinf(beta):
        raise ValueError(
            "Expected `logits` (N, C) of at least two classes, `target` (N,) and a finite `beta`, but got "
            f"{tuple(logits.shape)}, {tuple(target.shape)} and {beta}."
        )
    chunks = [
        _log_ratios(rows.double(), labels.unsqueeze(1), beta)
        for rows, labels in zip(logits.split(_CHUNK_ROWS), target.split(_CHUNK_ROWS), strict=True)
    ]
    scores, other, q_given, q_other = (torch.cat(column).squeeze(1) for column in zip(*chunks, strict=True))
    return Ranking(scores.argsort(descending=True, stable=True), scores, other, q_given, q_other)


def _log_ratios(logits: Tensor, target: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = inner.optimal_labels(logits, beta=beta)
    likeliest, other = logits.scatter(1, target, -torch.inf).max(1, keepdim=True)
    # From the logits: of labels, the ratio would be 0 / 0 where both underflow.
    scores = (likeliest - logits.gather(1, target)) / beta
    return scores, other, labels.gather(1, target), labels.gather(1, other)


def memory_logits(memory: Tensor) -> Tensor:
    """Logits (N, C) whose q*, at beta = 1, is a memory (N, C) of probabilities."""
    return memory.clamp(min=_MIN_MASS).log()
