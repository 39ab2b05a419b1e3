"""A user's training function: a generator of held-out logits after each epoch, which returns the model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor

from labo import regularizers
from labo.errors import UserError
from labo.regularized_loss import LabelRegularizedLoss

# (criterion, indices to train on, held-out indices) -> yields logits of the latter after each epoch, returns the model.
Train = Callable[[LabelRegularizedLoss, Tensor, Tensor], Generator[Tensor, None, Any]]


def criterion(method: str, options: Mapping[str, Any], examples: int) -> LabelRegularizedLoss:
    """The loss of a method, for `examples` training examples."""
    regularizer = regularizers.create(method, **options)
    if "examples" in regularizer.missing:
        regularizer.provide(examples=examples)
    return LabelRegularizedLoss(regularizer)


def check_targets(targets: Tensor, minimum: int) -> Tensor:
    """The targets (N,) as int64 on the CPU.

    Raises:
        UserError: they are not class indices, or fewer than `minimum`.
    """
    if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.dtype.is_floating_point:
        raise UserError("Expected argument `targets` to be (N,) class indices, one for each training example.")
    if len(targets) < minimum:
        raise UserError(f"Expected at least {minimum} training examples, but got {len(targets)}.")
    return targets.long().cpu()


class Run:
    """One run of a training function.

    Args:
        train: the training function.
        loss: what it trains with.
        indices: what it trains on.
        held_out: what it predicts, (n,); may be empty.

    Raises:
        UserError: it is not a generator function.
    """

    def __init__(self, train: Train, loss: LabelRegularizedLoss, indices: Tensor, held_out: Tensor) -> None:
        self.held_out, self.model, self.logits = held_out, None, None
        self._with_grad = True
        self._training = train(loss, indices, held_out)
        if not isinstance(self._training, Generator):
            raise UserError("Expected the training function to yield logits of the held-out examples after each epoch.")

    def epoch(self) -> bool:
        """Train an epoch, after which `logits` are those of the held-out examples; False if training has ended.

        Raises:
            UserError: the training function ends without logits, or yields some of another shape.
        """
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(self._with_grad)  # the function may yield within torch.no_grad()
        try:
            logits = next(self._training)
        except StopIteration as end:
            self.model = end.value
            if self.logits is None:
                raise UserError("Expected the training function to yield held-out logits, but it yields none.") from end
            return False
        finally:
            self._with_grad = torch.is_grad_enabled()
            torch.set_grad_enabled(before)
        logits = logits.detach().float().cpu()
        if logits.dim() != 2 or len(logits) != len(self.held_out):
            raise UserError(
                f"Expected the training function to yield logits ({len(self.held_out)}, C) of the held-out examples, "
                f"but got shape {tuple(logits.shape)}."
            )
        self.logits: Tensor | None = logits
        return True

    def finish(self) -> Tensor:
        """Train to the end; returns the last logits."""
        while self.epoch():
            pass
        assert self.logits is not None
        return self.logits

    def close(self) -> None:
        """End the training early."""
        self._training.close()
