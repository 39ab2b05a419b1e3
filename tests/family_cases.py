"""Small problems for members of the family, and what their formulas are made of, with plain tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from family_ranks import CLASSES
from labo import LabelRegularizedLoss, regularizers
from labo.reduction import as_rows

TARGET = torch.tensor([0, 3, 1, 3, 2, 0])


def rows(seed: int = 0, classes: int = CLASSES, count: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, classes, generator=draw, dtype=torch.float64)


def network(seed: int = 1, classes: int = CLASSES) -> nn.Linear:
    made = nn.Linear(3, classes, dtype=torch.float64)
    made.weight.data = rows(seed, 3, classes)
    made.bias.data.zero_()
    return made


def loss(made: regularizers.Regularizer, logits: Tensor, target: Tensor = TARGET, **told: Any) -> Tensor:
    """The losses of the rows."""
    return LabelRegularizedLoss(made, reduction="none")(logits, target, **told)


def ce(logits: Tensor, target: Tensor = TARGET) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none")


def kl(towards: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """By torch's own, summed over classes."""
    q, log_p = (towards / temperature).softmax(-1), (logits / temperature).log_softmax(-1)
    return F.kl_div(log_p, q, reduction="none").sum(-1)


def made_with(name: str, provided: dict[str, Any], **options: Any) -> regularizers.Regularizer:
    made = regularizers.create(name, **options)
    made.provide(**provided)
    return made


def told_rows(logits: Tensor, target: Tensor, **told: Any) -> Any:
    return replace(as_rows(logits, target, None, -100), given=told)


INPUTS = rows(5, 3)
