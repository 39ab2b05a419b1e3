"""A memory that keeps the largest entries alone, as with many classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import labo
from family_cases import TARGET, loss, rows
from family_ranks import CLASSES
from labo import LabelRegularizedLoss
from labo.errors import UserError
from labo.kernels import linear
from labo.kernels.largest import _in_blocks, largest
from labo.regularizers.prediction_memory import TOP, PredictionMemory
from memory_cases import HALF, ORDER, memory, sharpened, uniform


def test_all_entries_kept_one_by_one_are_the_whole():
    whole = PredictionMemory("labo", decay=0.9)
    listed: Any = PredictionMemory("labo", decay=0.9, top=CLASSES)
    listed._kept = lambda classes: classes
    listed._allocate(6, CLASSES, CLASSES, torch.device("cpu"))
    listed.classes = torch.arange(CLASSES, dtype=torch.int16).repeat(7, 1)
    listed.rest = torch.zeros(7, dtype=torch.float16)
    whole._allocate(6, CLASSES, CLASSES, torch.device("cpu"))
    for visit in range(5):
        batch = labo.reduction.as_rows(rows(visit), TARGET, None, -100)  # pyright: ignore[reportAttributeAccessIssue]
        for each in (whole, listed):
            before = each.distributions(ORDER, CLASSES)
            each.remember(ORDER, before, rows(visit)[ORDER].softmax(-1).float(), batch)
    torch.testing.assert_close(listed.distributions(ORDER, CLASSES), whole.distributions(ORDER, CLASSES))


def test_the_largest_entries_are_kept_and_the_rest_is_spread():
    made, classes = memory(top=3), 9
    target = torch.zeros(6, dtype=torch.long)
    m = uniform(6, classes)
    for visit in range(3):
        logits = rows(visit, classes)
        found = loss(made, logits, target, indices=torch.arange(6))
        label = 0.2 * (0.5 * F.one_hot(target, classes) + 0.5 / classes) + 0.8 * sharpened(m, 2.0)
        torch.testing.assert_close(found, -(label * logits.log_softmax(-1)).sum(-1), **HALF)
        m = 0.8 * m + 0.2 * logits.softmax(-1)
        largest, at = m.topk(3)
        rest = (1 - largest.sum(-1, keepdim=True)) / (classes - 3)
        m = rest.expand(-1, classes).scatter(-1, at, largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_classes_by_entries_give_what_whole_distributions_give(dtype):
    torch.manual_seed(0)
    listed, whole = memory(6), memory(6)
    for _ in range(4):
        z = (4 * torch.randn(6, 1000, dtype=dtype)).requires_grad_()
        other = z.detach().clone().requires_grad_()
        index = torch.randperm(6)
        target = torch.tensor([0, 999, 5, -100, 7, 7])[index]
        counted = target != -100
        soft = F.one_hot(target.clamp(min=0), 1000).to(dtype)  # probabilities go the long way
        mine = LabelRegularizedLoss(listed, reduction="sum")(z, target, indices=index)
        theirs = loss(whole, other, soft, indices=index)[counted].sum()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
        grads = [torch.autograd.grad(each, at)[0] for each, at in ((mine, z), (theirs, other))]
        torch.testing.assert_close(grads[0][counted], grads[1][counted], rtol=1e-4, atol=1e-5)
        assert not grads[0][~counted].any()
        places = index[counted]
        found, expected = (each.memory.memory.distributions(places, 1000) for each in (listed, whole))
        torch.testing.assert_close(found, expected, rtol=3e-3, atol=1e-6)
        whole.memory.memory.load_state_dict(listed.memory.memory.state_dict())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [9, 1000])
def test_hidden_states_give_what_logits_give(classes, reduction, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(linear, "CHUNK_BYTES", 3 * 4 * classes)  # three rows at a time
    through, plain = (LabelRegularizedLoss(memory(12), reduction=reduction) for _ in range(2))
    labels = torch.randint(classes, (12,))
    labels[4] = -100
    weight = (torch.randn(classes, 5) / 2).requires_grad_()
    for visit in range(3):
        hidden, index = torch.randn(10, 5).requires_grad_(), torch.randperm(12)[:10]
        other = (hidden @ weight.T).detach().requires_grad_()
        mine = through.linear(hidden, weight, labels[index], indices=index)
        theirs = plain(other, labels[index], indices=index)
        torch.testing.assert_close(mine, theirs, msg=str(visit))
        (grad,) = torch.autograd.grad(theirs.sum(), other)
        found = torch.autograd.grad(mine.sum(), (hidden, weight))
        torch.testing.assert_close(found[0], grad @ weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1], grad.T @ hidden.detach(), rtol=1e-4, atol=1e-5)
        held: list[Any] = [each.regularizer.prediction_memory for each in (through, plain)]
        ours, expected = (each.distributions(torch.arange(12), classes) for each in held)
        torch.testing.assert_close(ours, expected, rtol=3e-3, atol=1e-6)
        assert torch.equal(held[0].labels, held[1].labels)
    through.eval()
    expected = F.cross_entropy(hidden @ weight.T, labels[index], reduction=reduction)
    torch.testing.assert_close(through.linear(hidden, weight, labels[index]), expected)


def test_at_a_finite_beta_there_is_no_form_of_hidden_states():
    made = LabelRegularizedLoss(memory(12, beta=4.0))
    with pytest.raises(UserError, match="needs the full logits"):
        made.linear(torch.randn(2, 5), torch.randn(9, 5), torch.tensor([0, 1]), indices=torch.tensor([0, 1]))


@pytest.mark.parametrize(("classes", "count"), [(1000, 4), (1000, 20), (4097, 16), (300, 16), (64, 3)])
def test_the_largest_logits_are_found(classes, count):
    z = torch.randn(9, classes, generator=torch.Generator().manual_seed(0))
    z[:, -1] = 9.0
    expected = z.topk(count)
    for find in (largest, _in_blocks):
        values, at = find(z, count)
        torch.testing.assert_close(values.sort(-1, descending=True).values, expected.values)
        torch.testing.assert_close(z.gather(-1, at), values)


@pytest.mark.parametrize(("classes", "kept"), [(256, 256), (257, TOP), (1000, TOP)])
def test_many_classes_keep_few_entries(classes, kept):
    made = memory(50)
    loss(made, rows(0, classes), TARGET, indices=torch.arange(6))
    assert made.memory.memory.values.shape == (51, kept)


def test_imagenets_classes_and_50_000_examples_take_less_than_150_mb():
    for options in ({}, {"top": 1000}):
        made = memory(50_000, **options)
        loss(made, rows(0, 1000), TARGET, indices=torch.arange(6))
        assert made.memory.memory.nbytes < 150e6
