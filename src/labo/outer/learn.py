"""`labo_auto` for a user's training function: decide on held-out halves, then train on all data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labo.errors import UserError
from labo.outer import health, trust
from labo.outer.training_function import Run, Train, check_targets, criterion
from labo.outer.trust import Candidate, Decision, HeldOut
from labo.regularized_loss import LabelRegularizedLoss
from labo.regularizers.labo_auto import check_budget


@dataclass(frozen=True)
class Learnt:
    """The result of `learn_labels`: the model, the loss that it was trained with, and the decision."""

    model: Any
    criterion: LabelRegularizedLoss
    decision: Decision
    classes: int

    @property
    def memory(self) -> Tensor | None:
        """The running average of the predictions for each example, (N, C) float32; None without a memory.

        An example whose average contradicts its label may be labelled wrong.
        """
        return _memory(self.criterion, self.classes)


def learn_labels(
    train: Train,
    targets: Tensor,
    *,
    seed: int = 0,
    budget: float = trust.BUDGET,
    say: Callable[[str], None] = print,
) -> Learnt:
    """Train as `labo_auto` does: with a strong or a mild memory, or label smoothing, as held-out labels decide.

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
        budget: the most that it may cost, in training runs: 1.5, 3 or 6 (`labo.outer.trust.decide`).
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
    targets = check_targets(targets, trust.MIN_EXAMPLES)
    check_budget(budget)
    halves = trust.halves(targets, seed)
    quarter, *others = trust.quarters(targets, seed)

    def train_half(candidate: Candidate, half: int) -> HeldOut | None:
        trained, held_out = halves[2 - half], halves[half - 1]
        if half == trust.QUARTER:
            trained, held_out = quarter, torch.cat(others)
        loss = criterion(candidate.method, candidate.options, len(targets))
        logits = Run(train, loss, trained, held_out).finish()
        if not bool(logits.isfinite().all()):
            return None
        memory = _memory(loss, logits.shape[-1])
        if memory is None:
            raise UserError("Expected the training function to call `criterion`, but it did not.")
        agreement = health.agreement(memory[trained], targets[trained])
        return HeldOut(logits, targets[held_out], agreement)

    decision = trust.decide(train_half, budget)
    loss = criterion(decision.method, decision.options, len(targets))
    run = Run(train, loss, torch.arange(len(targets), device="cpu"), targets.new_empty(0))
    logits = run.finish()
    say(decision.sentence)
    return Learnt(run.model, loss, decision, logits.shape[-1])


def _memory(loss: LabelRegularizedLoss, classes: int) -> Tensor | None:
    """The distributions (N, C) that a loss remembers, on the CPU; None if it remembers none."""
    memory = loss.regularizer.prediction_memory
    if memory is None or memory.values is None:
        return None
    return memory.all_distributions(len(memory.values) - 1, classes).cpu()
