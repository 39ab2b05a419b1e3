"""Label noise: a share of the training and validation labels turned into wrong ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from labo.errors import UserError
from labo.tasks.base import Examples

KINDS = ("symmetric", "pair")
_Some = TypeVar("_Some", bound=Examples)


def parse_label_noise(text: str) -> tuple[float, str]:
    """("0.2,symmetric") to (0.2, "symmetric"); the kind may be left out.

    Raises:
        UserError: the share is not in [0, 1), or the kind is unknown.
    """
    share, _, kind = text.partition(",")
    kind = kind.strip() or "symmetric"
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1 or kind not in KINDS:
        raise UserError(
            f"Expected label noise as SHARE,KIND with a share in [0, 1) and one of {', '.join(KINDS)}, such as "
            f"0.2,symmetric, but got '{text}'."
        )
    return value, kind


def flip_labels(target: Tensor, classes: int, share: float, kind: str, generator: torch.Generator) -> Tensor:
    """Exactly round(share * N) labels of (N,) changed: "symmetric" to any other class, "pair" to the next one.

    Source: Patrini et al., *Making Deep Neural Networks Robust to Label Noise*, CVPR 2017, for the two kinds.

    Example:
        >>> flipped = flip_labels(torch.zeros(10, dtype=torch.long), 3, 0.3, "pair", torch.Generator())
        >>> flipped.sum().item()
        3
    """
    chosen = torch.randperm(len(target), generator=generator)[: round(share * len(target))]
    step = torch.ones_like(chosen)
    if kind == "symmetric":
        step = torch.randint(1, classes, chosen.shape, generator=generator)
    flipped = target.clone()
    flipped[chosen] = (target[chosen] + step) % classes
    return flipped


def with_noise(examples: _Some, classes: int, share: float, kind: str, generator: torch.Generator) -> _Some:
    """The examples with `flip_labels` done to them; the labels that they had are kept as `before_noise`."""
    flipped = flip_labels(examples.target, classes, share, kind, generator)
    return replace(examples, target=flipped, before_noise=examples.target)
