"""Signs that a memory goes wrong: early mistakes of the network that have become its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# A class with so much more of the memory than of the labels, and so many times as much, has taken over.
_MORE, _TIMES = 0.1, 2.0
# The memory agrees with fewer labels than this; with most labels wrong nothing can be learnt anyway.
_MIN_AGREEMENT = 0.3
# The epoch that a later one should not fall behind, and by how much.
_EARLY_EPOCH, _LOSS = 5, 0.01
_CURE = "take a smaller alpha, sharpness=1, or label_smoothing (docs/memory.md#when-not-to-use-it)"


def signs(memory: Tensor, labels: Tensor, classes: Sequence[str], curve: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on what looks wrong with the memory of a finished run; none where all looks well.

    Args:
        memory: (N, C), what the network has said of each example.
        labels: (N,) class indices, as they are written.
        classes: their names.
        curve: a line for each epoch, with "validation_accuracy" where it was measured.

    Example:
        >>> memory = torch.tensor([[0.9, 0.1]]).repeat(10, 1)
        >>> print(signs(memory, torch.tensor([0, 1]).repeat(5), ["cat", "dog"], [])[0].partition(";")[0])
        The memory has moved to class 'cat': 90.0% of its mass, but 50.0% of the labels
    """
    found = []
    total = memory.sum()
    mass = memory.sum(0) / total.clamp(min=1e-12)
    share = torch.bincount(labels, minlength=len(classes)) / max(1, len(labels))
    taken = (mass - share > _MORE) & (mass > _TIMES * share) | (mass - share > 3 * _MORE)
    if bool(taken.any()):
        at = int(torch.where(taken, mass - share, -1.0).argmax())
        found.append(
            f"The memory has moved to class '{classes[at]}': {mass[at]:.1%} of its mass, but {share[at]:.1%} of the "
            f"labels; {_CURE}."
        )
    agreement = (memory.argmax(-1) == labels).double().mean().item()
    if agreement < max(_MIN_AGREEMENT, 2 / len(classes)) and not found:
        found.append(f"The memory agrees with {agreement:.1%} of the labels only; {_CURE}.")
    accuracies = [line["validation_accuracy"] for line in curve if "validation_accuracy" in line]
    if len(accuracies) > _EARLY_EPOCH and accuracies[-1] < accuracies[_EARLY_EPOCH - 1] - _LOSS:
        found.append(
            f"Validation accuracy ended at {accuracies[-1]:.1%}, below the {accuracies[_EARLY_EPOCH - 1]:.1%} of epoch "
            f"{_EARLY_EPOCH}: the memory may hold on to early mistakes; {_CURE}."
        )
    return found
