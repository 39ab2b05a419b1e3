"""LABO with a memory of a few examples, for the tests of memories."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from family_cases import made_with
from family_ranks import CLASSES

# Half precision rounds what is remembered by one part in 2,048.
HALF: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-3}
ORDER = torch.tensor([3, 1, 5, 0, 2, 4])


def memory(examples: Any = 6, **options: Any) -> Any:
    return made_with("labo", {"examples": examples}, prior="memory", **{"aligned": False, **options})


def uniform(examples: int = 6, classes: int = CLASSES) -> Tensor:
    return torch.full((examples, classes), 1 / classes, dtype=torch.float64)


def sharpened(m: Tensor, exponent: float) -> Tensor:
    return m**exponent / (m**exponent).sum(-1, keepdim=True)
