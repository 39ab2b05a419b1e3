"""Cross-fitting by a training function of one's own."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import labo
from labo.errors import UserError
from labo.outer import cross_fit as module

CENTRES = 4 * torch.eye(3)


def data(count: int = 300, share: float = 0.2) -> tuple[Tensor, Tensor, Tensor]:
    """Three clusters, labels with a share of wrong ones, and the true classes."""
    draw = torch.Generator().manual_seed(0)
    true = torch.arange(count) % 3
    wrong = torch.rand(count, generator=draw) < share
    labels = torch.where(wrong, (true + torch.randint(1, 3, (count,), generator=draw)) % 3, true)
    return CENTRES[true] + torch.randn(count, 3, generator=draw), labels, true


class Training:
    """A training function that keeps what it was called with."""

    def __init__(self, x: Tensor, y: Tensor, epochs: int = 20, diverge: tuple[int, ...] = ()) -> None:
        self.x, self.y, self.epochs, self.diverge = x, y, epochs, diverge
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.criteria: list[Any] = []
        self.trained = 0

    def __call__(self, criterion: Any, indices: Tensor, held_out: Tensor) -> Generator[Tensor, None, nn.Module]:
        number = len(self.calls)
        self.calls.append((indices, held_out))
        self.criteria.append(criterion)
        torch.manual_seed(number)
        model = nn.Linear(3, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for epoch in range(self.epochs):
            optimizer.zero_grad()
            criterion(model(self.x[indices]), self.y[indices], indices=indices).backward()
            optimizer.step()
            self.trained += 1
            logits = model(self.x[held_out])
            yield logits / 0 if number in self.diverge and epoch == 2 else logits
        return model


def test_each_example_is_predicted_by_a_network_that_has_not_seen_it():
    x, y, true = data()
    train = Training(x, y)
    fitted = labo.cross_fit(train, y, folds=3)
    assert len(train.calls) == 3
    held_out = torch.cat([part for _, part in train.calls])
    assert sorted(held_out.tolist()) == list(range(300))
    for indices, part in train.calls:
        assert not set(indices.tolist()) & set(part.tolist())
        assert len(indices) + len(part) == 300
    assert fitted.logits.shape == (300, 3)
    assert (fitted.logits.argmax(-1) == true).double().mean() > 0.95
    channel = fitted.channel(y)
    low, high = channel.interval
    assert low <= (y != true).double().mean().item() <= high
    posterior = fitted.posterior_labels(y)
    assert (posterior.argmax(-1) == true).double().mean() > (y == true).double().mean() + 0.1


def test_it_stops_when_the_likelihood_has_turned():
    x, y, _ = data(60, 0.4)
    train = Training(torch.cat([x, torch.randn(60, 40, generator=torch.Generator().manual_seed(1))], 1), y, 400)

    def wide(criterion: Any, indices: Tensor, held_out: Tensor) -> Generator[Tensor, None, nn.Module]:
        torch.manual_seed(0)
        model = nn.Linear(43, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(400):
            optimizer.zero_grad()
            criterion(model(train.x[indices]), y[indices]).backward()
            optimizer.step()
            yield model(train.x[held_out])
        return model

    fitted = labo.cross_fit(wide, y, folds=2, method="none", options={}, patience=5)
    assert len(fitted.curve) == fitted.epoch + 5 < 400
    assert fitted.curve[fitted.epoch - 1] == min(fitted.curve)


def test_the_logits_are_those_of_the_best_epoch():
    _, y, _ = data(90, 0.0)
    right = 3 * nn.functional.one_hot(y, 3).float()

    def train(criterion: Any, indices: Tensor, held_out: Tensor) -> Generator[Tensor, None, None]:
        for logits in (torch.zeros(90, 3), right, torch.zeros(90, 3)):
            yield logits[held_out]

    fitted = labo.cross_fit(train, y, folds=3)
    assert fitted.epoch == 2
    assert fitted.logits.equal(right)
    assert len(fitted.curve) == 3


def test_a_function_may_yield_within_no_grad():
    x, y, _ = data(30, 0.0)

    def train(criterion: Any, indices: Tensor, held_out: Tensor) -> Generator[Tensor, None, None]:
        model = nn.Linear(3, 3)
        for _ in range(2):
            criterion(model(x[indices]), y[indices]).backward()
            with torch.no_grad():
                yield model(x[held_out])

    assert len(labo.cross_fit(train, y, folds=3, method="none", options={}).curve) == 2
    assert torch.is_grad_enabled()


def test_the_method_is_what_the_networks_train_with():
    x, y, _ = data(30)
    train = Training(x, y, 2)
    labo.cross_fit(train, y, folds=2, method="labo", options={"prior": "memory"})
    assert [criterion.regularizer.name for criterion in train.criteria] == ["labo", "labo"]
    assert train.criteria[0].regularizer.prediction_memory is not None


def test_a_fold_that_diverges_is_trained_again_once():
    x, y, _ = data()
    said: list[str] = []
    train = Training(x, y, 6, diverge=(1,))
    fitted = labo.cross_fit(train, y, folds=3, say=said.append)
    assert said == ["The network of fold 2 of 3 has diverged; it is trained again."]
    assert len(train.calls) == 4
    assert train.calls[3][1].equal(train.calls[1][1])
    assert bool(fitted.logits.isfinite().all())
    assert len(fitted.curve) == 6
    with pytest.raises(UserError, match="The network of fold 2 of 3 diverges: use a smaller learning rate"):
        labo.cross_fit(Training(x, y, 6, diverge=(1, 3)), y, folds=3, say=said.append)


def test_a_small_class_takes_fewer_folds():
    x, y, _ = data(30, 0.0)
    y[:] = 0
    y[:3] = 1
    said: list[str] = []
    train = Training(x, y, 1)
    labo.cross_fit(train, y, say=said.append)
    assert said == ["A class has 3 examples, so that 3 folds are taken instead of 5."]
    assert len(train.calls) == 3
    y[0] = 2
    with pytest.raises(UserError, match="at least 2 examples of every class"):
        labo.cross_fit(train, y)


def test_other_data_are_refused():
    x, y, _ = data()
    fitted = labo.cross_fit(Training(x, y, 2), y, folds=2)
    other = y.clone()
    other[0] = (other[0] + 1) % 3
    with pytest.raises(UserError, match="of other targets"):
        fitted.posterior_labels(other)
    with pytest.raises(UserError, match="of other targets"):
        fitted.channel(y[:-1])
    assert fitted.fingerprint == module.fingerprint(y.to(torch.int32))


def no_generator(criterion: Any, indices: Tensor, held_out: Tensor) -> None: ...


def yields_nothing(criterion: Any, indices: Tensor, held_out: Tensor) -> Generator[Tensor, None, None]:
    yield from ()


def yields_too_few(criterion: Any, indices: Tensor, held_out: Tensor) -> Generator[Tensor, None, None]:
    yield torch.zeros(1, 3)


@pytest.mark.parametrize(
    ("train", "targets", "options", "message"),
    [
        (no_generator, torch.arange(9) % 3, {}, "to yield logits of the held-out examples after each epoch"),
        (yields_nothing, torch.arange(9) % 3, {}, "but it yields none"),
        (yields_too_few, torch.arange(9) % 3, {}, "of the held-out examples, but got shape (1, 3)"),
        (yields_too_few, torch.rand(9, 3), {}, "`targets` to be (N,) class indices"),
        (yields_too_few, torch.arange(9) % 3, {"folds": 1}, "at least 2 folds"),
        (yields_too_few, torch.arange(9) % 3, {"patience": 0}, "a patience of 1 epoch"),
    ],
)
def test_what_does_not_fit_is_refused(train, targets, options, message):
    with pytest.raises(UserError) as refusal:
        labo.cross_fit(train, targets, **options)
    assert message in str(refusal.value)
