"""A memory is aligned with the class shares of the labels, once an epoch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from family_cases import TARGET, loss, made_with, rows
from family_ranks import CLASSES
from labo.errors import UserError
from memory_cases import HALF, memory, uniform


def test_the_memory_is_aligned_where_an_example_comes_again():
    made, m, ones = memory(aligned=True), uniform(), torch.ones(CLASSES)
    for index in (torch.tensor([4, 0, 4]), torch.tensor([1, 2])):  # one of them twice: the last prediction counts
        loss(made, rows()[index], TARGET[index], indices=index)
        assert torch.equal(made.memory.memory.alignment, ones)
    m[[4, 0, 1, 2]] = 0.8 * uniform(4) + 0.2 * rows()[[4, 0, 1, 2]].softmax(-1)
    labels = torch.full((CLASSES,), 2 / CLASSES) + torch.bincount(TARGET[[4, 0, 1, 2]], minlength=CLASSES)
    expected = labels / labels.sum() / m.mean(0).float()
    state = copy.deepcopy(made.state_dict())
    for part in (torch.tensor([2]), torch.tensor([5, 0])):  # of one batch
        loss(made, rows(1)[part], TARGET[part], indices=part)
    again = memory(aligned=True)
    again.load_state_dict(state)
    whole = torch.tensor([2, 5, 0])
    loss(again, rows(1)[whole], TARGET[whole], indices=whole)
    for each in (made, again):
        torch.testing.assert_close(each.memory.memory.alignment, expected, **HALF)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())
    assert made.memory.memory.visited.tolist() == [True, False, True, False, False, True, False]


def test_no_class_is_lost_where_predictions_favour_another():
    """Half of the examples are of class 1, but a network that says class 0 of all of them makes it their label."""
    logits, target = torch.tensor([[1.0, 0.8], [1.0, 0.8]], dtype=torch.float64), torch.tensor([0, 1])
    label: dict[bool, Tensor] = {}
    for aligned in (False, True):
        made: Any = made_with("labo", {"examples": 2}, prior="memory", aligned=aligned, sharpness=2.0)
        for _ in range(20):
            loss(made, logits, target, indices=torch.arange(2))
        held = made.memory
        label[aligned] = held.sharpened(held.memory.values[:2].double(), held.memory.alignment).mean(0)
    assert label[False][1] < 0.41
    assert label[True][1] == pytest.approx(0.5, abs=0.01)


def test_probabilities_are_not_aligned_and_a_part_of_the_classes_cannot_be():
    plain, made, one_hot = memory(), memory(aligned=None), F.one_hot(TARGET, CLASSES).double()
    for visit in range(2):
        theirs, mine = (loss(each, rows(visit), one_hot, indices=torch.arange(6)) for each in (plain, made))
        torch.testing.assert_close(mine, theirs)
    with pytest.raises(UserError, match=r"Expected aligned=False with 2 of 4 classes in the memory of method 'labo'"):
        loss(memory(aligned=True, top=2), rows(), indices=torch.arange(6))
    with pytest.raises(TypeError, match="Expected argument `aligned` to be a boolean, but got 1"):
        memory(aligned=1)


@pytest.mark.parametrize(("aligned", "expected"), [(None, [1.0, 1.0]), (True, [1.5, 0.5])])
def test_unbalanced_labels_are_aligned_only_where_asked_for(aligned, expected):
    made, index = memory(4, aligned=aligned), torch.arange(4)
    for _ in range(2):
        loss(made, torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), indices=index)
    torch.testing.assert_close(made.memory.memory.alignment, torch.tensor(expected))
