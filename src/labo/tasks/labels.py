"""Labels: the names of classes, class indices, and label noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from labo.errors import UserError, unknown
from labo.tasks.base import Examples

NOISE_KINDS = ("symmetric", "pair")
_E = TypeVar("_E", bound=Examples)


def class_name(value: Any) -> str:
    """The name of the class whose label is `value`; whole numbers of type float are written without a decimal point.

    Example:
        >>> class_name(2.0), class_name("2.0"), class_name("007")
        ('2', '2.0', '007')
    """
    whole = isinstance(value, float | np.floating) and math.isfinite(value) and value == int(value)
    return str(int(value)) if whole else str(value)


def class_indices(
    labels: Mapping[str, np.ndarray], names: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels (N,) of each part as class indices int64 (N,), and the names of the classes.

    With `names`, integers are indices into them and strings are among them. Without, the classes are the distinct
    values, sorted.

    Raises:
        UserError: a string is not among `names`.
    """
    joined = np.concatenate(list(labels.values()))
    if names is not None and joined.dtype.kind in "iu":
        return {part: values.astype(np.int64) for part, values in labels.items()}, tuple(names)
    if names is None:
        distinct = np.unique(joined)
        indices = {part: np.searchsorted(distinct, values).astype(np.int64) for part, values in labels.items()}
        return indices, tuple(class_name(value) for value in distinct)
    index_of = {name: index for index, name in enumerate(names)}
    unknown_names = sorted(set(map(str, joined)) - set(index_of))
    if unknown_names:
        raise unknown("class", unknown_names[0], names)
    indices = {part: np.array([index_of[str(value)] for value in values], np.int64) for part, values in labels.items()}
    return indices, tuple(names)


def parse_label_noise(text: str) -> tuple[float, str]:
    """("0.2,symmetric") to (0.2, "symmetric"); the kind is optional.

    Raises:
        UserError: the fraction is not in [0, 1), or the kind is unknown.
    """
    fraction, _, kind = text.partition(",")
    kind = kind.strip() or "symmetric"
    try:
        value = float(fraction)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1 or kind not in NOISE_KINDS:
        raise UserError(
            f"Expected label noise as SHARE,KIND with a share in [0, 1) and one of {', '.join(NOISE_KINDS)}, such as "
            f"0.2,symmetric, but got '{text}'."
        )
    return value, kind


def flip_labels(target: Tensor, classes: int, fraction: float, kind: str, generator: torch.Generator) -> Tensor:
    """Labels (N,) with exactly round(fraction * N) changed: "symmetric" to any other class, "pair" to the next class.

    Source: Patrini et al., *Making Deep Neural Networks Robust to Label Noise*, CVPR 2017, for the two kinds.

    Example:
        >>> flipped = flip_labels(torch.zeros(10, dtype=torch.long), 3, 0.3, "pair", torch.Generator())
        >>> flipped.sum().item()
        3
    """
    selected = torch.randperm(len(target), generator=generator)[: round(fraction * len(target))]
    step = torch.ones_like(selected)
    if kind == "symmetric":
        step = torch.randint(1, classes, selected.shape, generator=generator)
    flipped = target.clone()
    flipped[selected] = (target[selected] + step) % classes
    return flipped


def with_noise(examples: _E, classes: int, fraction: float, kind: str, generator: torch.Generator) -> _E:
    """The examples with labels changed by `flip_labels`; `before_noise` keeps the clean labels."""
    flipped = flip_labels(examples.target, classes, fraction, kind, generator)
    return replace(examples, target=flipped, before_noise=examples.target)
