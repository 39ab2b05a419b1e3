"""Signs that a memory has failed: early mistakes of the network have become its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# A class has taken over if its share of the memory exceeds its share of the labels by this difference and this ratio.
_EXCESS, _RATIO = 0.1, 2.0
# Below this the memory disagrees with most labels. If most labels are wrong, nothing can be learnt anyway.
_MIN_AGREEMENT = 0.3
# The accuracy of the last epoch should not be below that of this early epoch by more than this.
_EARLY_EPOCH, _MAX_DROP = 5, 0.01
_ADVICE = "use a smaller alpha, sharpness=1, or label_smoothing (docs/memory.md#when-not-to-use-it)"


def signs(memory: Tensor, labels: Tensor, classes: Sequence[str], curve: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings about the memory of a finished run, a sentence each; empty if there are none.

    Args:
        memory: (N, C), the mean of the network's predictions of each example during training.
        labels: (N,) class indices, as given in the data.
        classes: their names.
        curve: one entry per epoch, with "validation_accuracy" if it was measured.

    Example:
        >>> memory = torch.tensor([[0.9, 0.1]]).repeat(10, 1)
        >>> print(signs(memory, torch.tensor([0, 1]).repeat(5), ["cat", "dog"], [])[0].partition(";")[0])
        The memory has moved to class 'cat': 90.0% of its mass, but 50.0% of the labels
    """
    sentences = []
    total = memory.sum()
    mass = memory.sum(0) / total.clamp(min=1e-12)
    fraction = torch.bincount(labels, minlength=len(classes)) / max(1, len(labels))
    taken_over = (mass - fraction > _EXCESS) & (mass > _RATIO * fraction) | (mass - fraction > 3 * _EXCESS)
    if bool(taken_over.any()):
        at = int(torch.where(taken_over, mass - fraction, -1.0).argmax())
        sentences.append(
            f"The memory has moved to class '{classes[at]}': {mass[at]:.1%} of its mass, but {fraction[at]:.1%} of the "
            f"labels; {_ADVICE}."
        )
    agreed = agreement(memory, labels)
    if agreed < max(_MIN_AGREEMENT, 2 / len(classes)) and not sentences:
        sentences.append(f"The memory agrees with only {agreed:.1%} of the labels; {_ADVICE}.")
    accuracies = [line["validation_accuracy"] for line in curve if "validation_accuracy" in line]
    if len(accuracies) > _EARLY_EPOCH and accuracies[-1] < accuracies[_EARLY_EPOCH - 1] - _MAX_DROP:
        sentences.append(
            f"Validation accuracy ended at {accuracies[-1]:.1%}, below the {accuracies[_EARLY_EPOCH - 1]:.1%} of epoch "
            f"{_EARLY_EPOCH}: the memory may preserve early mistakes; {_ADVICE}."
        )
    return sentences


def agreement(memory: Tensor, labels: Tensor) -> float:
    """The share of labels (N,) that are the likeliest class of the memory (N, C)."""
    return (memory.argmax(-1) == labels).double().mean().item()
