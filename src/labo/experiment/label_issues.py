"""Which training labels look wrong: examples whose given class and label q* disagree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labo import checks, inner

# q* of this many rows is worked out at a time.
_PIECE = 65_536
DEFAULT_BETA = 2.0


@dataclass(frozen=True)
class Ranking:
    """Examples by how wrong their given class looks; every tensor is (N,), all but `order` in the examples' own order.

    `order` holds their indices, the most suspicious first; `scores` are above 0 where q* prefers another class;
    `other` is the class that q* likes best beside the given one; `q_given` and `q_other` are q* of the two.
    """

    order: Tensor
    scores: Tensor
    other: Tensor
    q_given: Tensor
    q_other: Tensor


def suspicious(logits: Tensor, target: Tensor, *, beta: float) -> Ranking:
    """Rank examples by log q*_k - log q*_target, where k is the likeliest class beside the target; the largest first.

    q* = softmax(logits / beta) is the label of the inner problem with a uniform prior (`labo.optimal_labels`), so the
    score is (logits_k - logits_target) / beta: beta says how strongly q* objects, and changes no order. LABO's alpha
    has no say: it weighs q* against the target alike for all. docs/suspicious-labels.md compares scores.

    Args:
        logits: (N, C), of at least two classes.
        target: class indices (N,), as they were given.
        beta: in (0, inf); see `beta_of`.

    Raises:
        ValueError, TypeError: `beta` is out of range, or an argument does not fit.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 4.0], [1.0, 0.0]])
        >>> suspicious(logits, torch.tensor([0, 0, 1]), beta=2.0).order
        tensor([1, 2, 0])
    """
    checks.floating("logits", logits)
    checks.positive("beta", beta)
    if logits.dim() != 2 or logits.shape[1] < 2 or target.shape != logits.shape[:1] or math.isinf(beta):
        raise ValueError(
            "Expected `logits` (N, C) of at least two classes, `target` (N,) and a finite `beta`, but got "
            f"{tuple(logits.shape)}, {tuple(target.shape)} and {beta}."
        )
    found = [
        _ratios(rows.double(), labels.unsqueeze(1), beta)
        for rows, labels in zip(logits.split(_PIECE), target.split(_PIECE), strict=True)
    ]
    scores, other, q_given, q_other = (torch.cat(column).squeeze(1) for column in zip(*found, strict=True))
    return Ranking(scores.argsort(descending=True, stable=True), scores, other, q_given, q_other)


def _ratios(logits: Tensor, target: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = inner.optimal_labels(logits, beta=beta)
    likeliest, other = logits.scatter(1, target, -torch.inf).max(1, keepdim=True)
    # From the logits: of labels, the ratio would be 0 / 0 where both are tiny.
    scores = (likeliest - logits.gather(1, target)) / beta
    return scores, other, labels.gather(1, target), labels.gather(1, other)


def beta_of(method: str, settings: Mapping[str, Any]) -> float:
    """The beta that q* of a run is worked out with: LABO's own, 2 for other methods and where it is infinite.

    Example:
        >>> beta_of("labo", {"alpha": 0.4, "beta": 4.0}), beta_of("none", {})
        (4.0, 2.0)
    """
    beta = float(settings.get("beta", DEFAULT_BETA)) if method.partition("[")[0] == "labo" else DEFAULT_BETA
    return DEFAULT_BETA if math.isinf(beta) else beta  # label smoothing: its q* is the same for all


def precision(order: Tensor, planted: Tensor) -> float:
    """Which share of the first n examples of `order` were `planted`, a mask (N,) of n examples.

    Example:
        >>> precision(torch.tensor([2, 0, 1]), torch.tensor([True, False, True]))
        1.0
    """
    count = int(planted.sum())
    return planted[order[:count]].double().mean().item()
