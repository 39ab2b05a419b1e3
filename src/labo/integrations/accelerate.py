"""Global means in an Accelerate loop: over all targets of an optimizer step, in all processes and accumulated batches.

count = target_count(accelerator, [batch["labels"] for batch in batches])
for batch in batches:
    with accelerator.accumulate(model):
        accelerator.backward(criterion.mean_over(model(batch["inputs"]), batch["labels"], count))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from labo import checks
from labo.checks import IGNORE_INDEX

__all__ = ["target_count"]


def target_count(accelerator: Accelerator, labels: Sequence[Tensor], *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The `count` of `LabelRegularizedLoss.mean_over` that makes `accelerator.backward` exact.

    Processes and accumulated batches have different numbers of targets, such as tokens, so that a mean of their means
    is not the mean over all. With this count the gradient is that of the mean over all targets of the step, whatever
    their division: it allows for Accelerate's division by the number of accumulated batches, and for the average of
    gradients over processes.

    Args:
        accelerator: of the loop.
        labels: this process's labels of each batch of the step: class indices (N, …), already shifted for causal
            language models, or probabilities (N, C).
        ignore_index: of class indices that are not counted.

    Returns:
        () float32 on the device of the accelerator.

    Raises:
        ValueError: there are no labels.

    Example:
        >>> target_count(Accelerator(cpu=True), [torch.tensor([1, -100]), torch.tensor([2, 3])])
        tensor(3.)
    """
    if not labels:
        raise ValueError("Expected the labels of at least one batch, but got none.")
    own = sum(_count(each, ignore_index) for each in labels)
    total = accelerator.reduce(torch.tensor(own, device=accelerator.device), "sum")
    assert isinstance(total, Tensor)
    return total / (accelerator.num_processes * accelerator.gradient_accumulation_steps)


def _count(labels: Tensor, ignore_index: int) -> int:
    if labels.dtype.is_floating_point:
        return len(labels)
    return int((checks.as_targets(labels) != ignore_index).sum())
