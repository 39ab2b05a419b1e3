"""Cross-fitting: predictions for every training example, by networks that did not train on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from labo.errors import UserError
from labo.metrics.temperature import search_temperature
from labo.outer.channel import Channel, fit_channel, posterior_labels
from labo.outer.training_function import Run, Train, check_targets, criterion
from labo.splitting import equal_parts, rarest_class

DEFAULT_METHOD, DEFAULT_OPTIONS = "label_smoothing", {"epsilon": 0.3}


@dataclass(frozen=True)
class CrossFit:
    """Out-of-fold logits, and what follows from them.

    Args:
        logits: (N, C) float32, each row by a network that did not train on that example.
        epoch: after which they were taken, from 1: the one with the lowest held-out NLL.
        curve: the NLL of the given labels after temperature scaling, all folds together, by epoch.
        fingerprint: of the targets.
    """

    logits: Tensor
    epoch: int
    curve: tuple[float, ...]
    fingerprint: str

    def channel(self, targets: Tensor, **options: Any) -> Channel:
        """The noise channel of the targets (N,), by `fit_channel`.

        Raises:
            UserError: the targets are other ones than the networks were trained on.
        """
        return fit_channel(self.logits, self._own(targets), **options)

    def posterior_labels(self, targets: Tensor, channel: Channel | None = None) -> Tensor:
        """The distribution (N, C) of each example's true class, given its label; see `labo.outer.posterior_labels`.

        Raises:
            UserError: the targets are other ones than the networks were trained on.
        """
        targets = self._own(targets)
        return posterior_labels(self.logits, targets, channel or self.channel(targets))

    def _own(self, targets: Tensor) -> Tensor:
        if fingerprint(targets) != self.fingerprint:
            raise UserError("These out-of-fold logits are of other targets: cross-fit again on these data.")
        return targets


def cross_fit(
    train: Train,
    targets: Tensor,
    *,
    folds: int = 5,
    method: str = DEFAULT_METHOD,
    options: Mapping[str, Any] = DEFAULT_OPTIONS,
    patience: int = 8,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> CrossFit:
    """Train a network without each fold, side by side, epoch by epoch, and predict what it has not seen.

    Training ends when the NLL of the held-out labels, all folds together and after temperature scaling, has not
    improved for `patience` epochs; the logits are those of the best epoch. The cost is up to folds - 1 training runs,
    and the memory that of `folds` networks.

    A fold whose network gives non-finite logits is trained again once.

    Args:
        train: the training function, as in `labo.learn_labels`: a generator function that trains on `indices`, yields
            logits of `held_out` after each epoch and returns the model.
        targets: (N,) class indices, as given in the data.
        folds: at least 2; fewer are taken if a class has fewer examples.
        method, options: the regularizer that the networks are trained with.
        patience: in epochs.
        seed: draws the folds.
        say: receives what is worth knowing, a sentence each.

    Raises:
        UserError: an argument is out of range, `train` is no generator function or yields logits of another shape, or
            the network of a fold diverges twice.

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
        >>> fitted = cross_fit(train, y)
        >>> fitted.logits.shape, fitted.posterior_labels(y).argmax(-1).equal(y)
        (torch.Size([20, 2]), True)
    """
    if folds < 2 or patience < 1:
        raise UserError(f"Expected at least 2 folds and a patience of 1 epoch, but got {folds} and {patience}.")
    targets = check_targets(targets, 2)
    networks = _Folds(train, targets, _possible(folds, targets, say), (method, options), seed, say)
    curve: list[float] = []
    best, epoch = None, 0
    while not curve or len(curve) < epoch + patience:
        logits = networks.epoch()
        if logits is None:
            break
        scaled = logits.double() / search_temperature(logits, targets)
        curve.append(F.cross_entropy(scaled, targets).item())
        if best is None or curve[-1] < min(curve[:-1]):
            best, epoch = logits, len(curve)
    networks.close()
    assert best is not None
    return CrossFit(best, epoch, tuple(curve), fingerprint(targets))


def _possible(folds: int, targets: Tensor, say: Callable[[str], None]) -> int:
    """The number of folds: not more than a class has examples."""
    _, smallest = rarest_class(targets)
    if smallest < 2:
        raise UserError("Expected at least 2 examples of every class, one to train on and one to hold out.")
    if smallest < folds:
        say(f"A class has {smallest} examples, so that {smallest} folds are taken instead of {folds}.")
    return min(folds, smallest)


class _Folds:
    """The networks of all folds, trained side by side."""

    def __init__(
        self,
        train: Train,
        targets: Tensor,
        folds: int,
        method: tuple[str, Mapping[str, Any]],
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.train, self.targets, self.method, self.say = train, targets, method, say
        self.parts = equal_parts(targets, folds, seed)
        self.epochs, self.repeated = 0, set[int]()
        self.runs = [self._start(number) for number in range(folds)]

    def epoch(self) -> Tensor | None:
        """Train an epoch; returns the out-of-fold logits (N, C), None if the training has ended."""
        if not all([run.epoch() for run in self.runs]):
            return None
        self.epochs += 1
        for number, run in enumerate(self.runs):
            if not _finite(run):
                self.runs[number] = self._repeat(number)
        parts = [_logits(run) for run in self.runs]
        logits = torch.empty(len(self.targets), parts[0].shape[1], device="cpu")
        for part, rows in zip(self.parts, parts, strict=True):
            logits[part] = rows
        return logits

    def close(self) -> None:
        for run in self.runs:
            run.close()

    def _start(self, number: int) -> Run:
        others = torch.cat(self.parts[:number] + self.parts[number + 1 :])
        return Run(self.train, criterion(*self.method, len(self.targets)), others, self.parts[number])

    def _repeat(self, number: int) -> Run:
        """Another run of a fold that has diverged, up to the present epoch."""
        name = f"The network of fold {number + 1} of {len(self.parts)}"
        if number not in self.repeated:
            self.repeated.add(number)
            self.say(f"{name} has diverged; it is trained again.")
            run = self._start(number)
            if all(run.epoch() and _finite(run) for _ in range(self.epochs)):
                return run
        raise UserError(f"{name} diverges: use a smaller learning rate.")


def fingerprint(targets: Tensor) -> str:
    """A digest of class indices (N,)."""
    return hashlib.sha256(targets.long().cpu().numpy().tobytes()).hexdigest()[:16]


def _logits(run: Run) -> Tensor:
    assert run.logits is not None
    return run.logits


def _finite(run: Run) -> bool:
    return bool(_logits(run).isfinite().all())
