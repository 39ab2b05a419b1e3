"""`labo_auto` for a user's training function: decide on held-out halves, then train on all data."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labo import regularizers
from labo.errors import UserError
from labo.modules import LabelRegularizedLoss
from labo.outer import trust
from labo.outer.trust import Candidate, Decision

# (criterion, indices to train on, held-out indices) -> yields logits of the latter after each epoch, returns the model.
Train = Callable[[LabelRegularizedLoss, Tensor, Tensor], Generator[Tensor, None, Any]]


@dataclass(frozen=True)
class Learnt:
    """The result of `learn_labels`: the model, the loss that it was trained with, and the decision."""

    model: Any
    criterion: LabelRegularizedLoss
    decision: Decision
    classes: int

    @property
    def memory(self) -> Tensor | None:
        """The running average of the predictions for each example, (N, C) float32; None if label smoothing was chosen.

        An example whose average contradicts its label may be labelled wrong.
        """
        memory = self.criterion.regularizer.prediction_memory
        if memory is None or memory.values is None:
            return None
        examples = torch.arange(len(memory.values) - 1, device=memory.values.device)
        return memory.distributions(examples, self.classes)


def learn_labels(train: Train, targets: Tensor, *, seed: int = 0, say: Callable[[str], None] = print) -> Learnt:
    """Train with label smoothing or with LABO's memory, whichever predicts held-out labels better.

    `train` is called two or four times on a half of the data, and once on all data, so that the total cost is that of
    two or three training runs. It is a generator function:

        def train(criterion, indices, held_out):
            model = …                      # fresh each time
            for epoch in range(epochs):
                …                          # criterion(model(x[batch]), y[batch], indices=batch), batches of `indices`
                yield model(x[held_out])   # logits (len(held_out), C), without gradient
            return model

    Args:
        train: the training function. Only the last yielded logits count. In the final run `held_out` is empty.
        targets: (N,) class indices, as given in the data.
        seed: seed of the halves.
        say: receives the decision as one sentence.

    Raises:
        UserError: `targets` are not class indices or too few, or `train` is not a generator function or yields logits
            of the wrong shape.

    Example:
        >>> def train(criterion, indices, held_out):
        ...     model = torch.nn.Linear(2, 2)
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        ...     for _ in range(10):
        ...         loss = criterion(model(x[indices]), y[indices], indices=indices)
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        ...         yield model(x[held_out])
        ...     return model
        >>> x, y = torch.eye(2).repeat(10, 1), torch.tensor([0, 1]).repeat(10)
        >>> learn_labels(train, y, say=lambda sentence: None).decision.name in ("plain", "strong")
        True
    """
    if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.dtype.is_floating_point:
        raise UserError("Expected argument `targets` to be (N,) class indices, one for each training example.")
    if len(targets) < trust.MIN_EXAMPLES:
        raise UserError(f"Expected at least {trust.MIN_EXAMPLES} training examples, but got {len(targets)}.")
    targets = targets.long().cpu()
    halves = trust.halves(targets, seed)

    def held_out(candidate: Candidate, half: int) -> tuple[Tensor, Tensor] | None:
        held_out_indices = halves[half - 1]
        _, logits = _run(train, _criterion(candidate, len(targets)), halves[2 - half], held_out_indices)
        if logits.shape[:1] != held_out_indices.shape or logits.dim() != 2:
            raise UserError(
                f"Expected the training function to yield logits ({len(held_out_indices)}, C) of the held-out "
                f"examples, but got shape {tuple(logits.shape)}."
            )
        return (logits, targets[held_out_indices]) if bool(logits.isfinite().all()) else None

    decision = trust.decide(held_out)
    criterion = _criterion(Candidate(decision.name, decision.method, decision.options), len(targets))
    model, logits = _run(train, criterion, torch.arange(len(targets), device="cpu"), targets.new_empty(0))
    say(decision.sentence)
    return Learnt(model, criterion, decision, logits.shape[-1])


def _criterion(candidate: Candidate, examples: int) -> LabelRegularizedLoss:
    regularizer = regularizers.create(candidate.method, **candidate.options)
    if "examples" in regularizer.missing:
        regularizer.provide(examples=examples)
    return LabelRegularizedLoss(regularizer)


def _run(train: Train, criterion: LabelRegularizedLoss, indices: Tensor, held_out: Tensor) -> tuple[Any, Tensor]:
    """(the model, the last yielded logits)."""
    training = train(criterion, indices, held_out)
    if not isinstance(training, Generator):
        raise UserError("Expected the training function to yield logits of the held-out examples after each epoch.")
    logits = None
    while True:
        try:
            logits = next(training)
        except StopIteration as end:
            if logits is None:
                raise UserError("Expected the training function to yield held-out logits, but it yields none.") from end
            return end.value, logits.detach().float().cpu()
