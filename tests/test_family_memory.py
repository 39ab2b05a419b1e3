"""Members that remember examples, classes and batches: their formulas by hand, special cases, what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from family_cases import TARGET, ce, kl, loss, made_with, network, rows
from family_ranks import CLASSES
from labo import LabelRegularizedLoss, regularizers
from labo.errors import UserError

# Online label smoothing.


def test_online_smoothing_by_hand():
    made = regularizers.create("online_smoothing", strength=0.3)
    table = torch.full((CLASSES, CLASSES), 1 / CLASSES, dtype=torch.float64)
    for epoch in range(3):
        sums, counts = torch.zeros_like(table), torch.zeros(CLASSES)
        for seed in (10 * epoch, 10 * epoch + 1):
            logits = rows(seed) + 3 * F.one_hot(TARGET, CLASSES) * (TARGET != 2).unsqueeze(1)
            logits[TARGET == 2, 0] = 9.0  # class 2 is never right
            expected = 0.7 * ce(logits) - 0.3 * (table[TARGET] * logits.log_softmax(-1)).sum(-1)
            torch.testing.assert_close(loss(made, logits, epoch=epoch), expected, rtol=1e-6, atol=1e-6)
            for row, y in zip(logits.softmax(-1), TARGET.tolist(), strict=True):
                if row.argmax() == y:
                    sums[y] += row
                    counts[y] += 1
        assert counts[2] == 0
        table = torch.stack([sums[y] / counts[y] if counts[y] else table[y] for y in range(CLASSES)])
    assert torch.equal(table[2], torch.full((CLASSES,), 0.25, dtype=torch.float64))
    assert (table[0] - 0.25).abs().max() > 0.1


def test_online_smoothing_with_a_uniform_table_is_label_smoothing():
    made, logits = regularizers.create("online_smoothing", strength=0.3), rows()
    for _ in range(2):
        found = loss(made, logits, epoch=0)
        torch.testing.assert_close(found, F.cross_entropy(logits, TARGET, reduction="none", label_smoothing=0.3))


def test_online_smoothing_starts_as_asked():
    logits = rows()
    zeros = loss(regularizers.create("online_smoothing", start="zeros"), logits, epoch=0)
    torch.testing.assert_close(zeros, 0.5 * ce(logits))
    smoothed = loss(regularizers.create("online_smoothing", start="smoothed"), logits, epoch=0)
    fairseq = loss(regularizers.create("label_smoothing", convention="fairseq", epsilon=0.05), logits)
    torch.testing.assert_close(smoothed, fairseq, rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match="Unknown start 'one'"):
        regularizers.create("online_smoothing", start="one")


def test_online_smoothing_mixes_rows_for_probabilities_and_leaves_out_ignored_rows():
    made, logits = regularizers.create("online_smoothing"), rows() + 9 * F.one_hot(TARGET, CLASSES)
    masked = torch.where(torch.arange(6) == 1, -100, TARGET)
    loss(made, logits, masked, epoch=0)
    loss(made, logits, masked, epoch=1)
    p = logits.softmax(-1)
    means = torch.stack([(p[0] + p[5]) / 2, p[2], p[4], p[3]])
    mixed = torch.full((6, CLASSES), 0.1, dtype=torch.float64)
    mixed[:, 1] = 0.7
    expected = -0.5 * ((mixed + mixed @ means) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(loss(made, logits, mixed, epoch=1), expected, rtol=1e-6, atol=1e-6)


def test_online_smoothing_refuses_what_does_not_fit():
    many = torch.zeros(1, 10_001)
    with pytest.raises(UserError, match=r"keep 2 tables of 10001 x 10001 numbers, 0\.8 GB; allow_large=True"):
        loss(regularizers.create("online_smoothing"), many, torch.tensor([0]), epoch=0)
    made, other = regularizers.create("online_smoothing"), regularizers.create("online_smoothing")
    loss(made, rows(), epoch=0)
    with pytest.raises(UserError, match="has stored a table of 4 x 4, but this training needs one of 7 x 7"):
        loss(made, rows(0, 7), epoch=0)
    loss(other, rows(0, 7), epoch=0)
    with pytest.raises(UserError, match=r"saved `table` of .* shape \(7, 7\), but this one has \(4, 4\)"):
        made.load_state_dict(other.state_dict())
    fresh = regularizers.create("online_smoothing")
    fresh.load_state_dict(other.state_dict())
    with pytest.raises(UserError, match="has stored a table of 7 x 7"):
        loss(fresh, rows(), epoch=0)


# Progressive self-distillation.


def progressive(examples: int = 6, epochs: Any = 4, **options: Any) -> Any:
    return made_with("ps_kd", {"examples": examples, "epochs": epochs}, **options)


def test_ps_kd_by_hand():
    made, before, order = progressive(alpha=0.5), None, torch.tensor([3, 1, 5, 0, 2, 4])
    for epoch in range(4):
        logits, share = rows(epoch), 0.5 * (epoch + 1) / 4
        found = loss(made, logits[order], TARGET[order], indices=order, epoch=epoch)
        one_hot = F.one_hot(TARGET, CLASSES).double()
        label = (1 - share) * one_hot + share * (one_hot if before is None else before)
        expected = -(label * logits.log_softmax(-1)).sum(-1)
        torch.testing.assert_close(found, expected[order], rtol=1e-6, atol=1e-6)
        before = logits.softmax(-1)


def test_ps_kd_is_cross_entropy_in_the_first_epoch_and_for_what_is_new():
    made, logits, at = progressive(), rows(), torch.arange(6)
    for _ in range(2):
        torch.testing.assert_close(loss(made, logits, indices=at, epoch=0), ce(logits))
    late = progressive()
    torch.testing.assert_close(loss(late, logits, indices=at, epoch=3), ce(logits))


def test_ps_kd_of_an_example_that_comes_twice_the_last_is_remembered():
    made, logits = progressive(), rows()
    loss(made, logits, indices=torch.tensor([2, 0, 2, 1, 0, 2]), epoch=0)
    assert made.memory.shape == (6, CLASSES)
    torch.testing.assert_close(made.memory[:3], logits.softmax(-1)[[4, 3, 5]].float())
    assert not made.memory[3:].any()


def test_ps_kd_neither_reads_nor_writes_for_ignored_rows():
    made, logits = progressive(), rows()
    masked = torch.where(torch.arange(6) == 1, -100, TARGET)
    loss(made, logits, masked, indices=torch.tensor([0, 99, 2, 3, 4, 5]), epoch=0)
    assert made.memory.sum(-1).tolist() == pytest.approx([1, 0, 1, 1, 1, 1])
    LabelRegularizedLoss(made).eval()(rows(3), TARGET, indices=torch.arange(6), epoch=1)
    torch.testing.assert_close(made.memory[0], logits[0].softmax(-1).float())


@pytest.mark.parametrize(
    ("provided", "indices", "told"),
    [
        ({"examples": 6}, torch.tensor([0, 1, 6, 3, 4, 5]), "`indices` of 6 training examples, but got 6"),
        ({"examples": 6}, torch.tensor([0, 1, -1, 3, 4, 5]), "`indices` of 6 training examples, but got -1"),
        ({"examples": 6}, torch.arange(5), r"`indices` to be 6 whole numbers.*shape \(5,\)"),
        ({"examples": 6}, torch.arange(6.0), r"`indices` to be 6 whole numbers.*float32"),
        ({"examples": 10**9}, torch.arange(6), r"a table of 1000000000 x 4 numbers, 16\.0 GB; allow_large=True"),
        ({"examples": 0}, torch.arange(6), "`examples` to be a whole number of at least 1, but got 0"),
        ({"epochs": 2.5}, torch.arange(6), r"`epochs` to be a whole number of at least 1, but got 2\.5"),
    ],
)
def test_ps_kd_refuses(provided, indices, told):
    with pytest.raises(UserError, match=told):
        loss(progressive(**provided), rows(), indices=indices, epoch=0)


def test_ps_kd_refuses_a_memory_of_other_examples():
    made, other = progressive(), progressive(examples=8)
    loss(other, rows(), indices=torch.arange(6), epoch=0)
    made.load_state_dict(other.state_dict())
    with pytest.raises(UserError, match="has stored a prediction of 8 x 4, but this training needs one of 6 x 4"):
        loss(made, rows(), indices=torch.arange(6), epoch=1)


# The last mini-batch.


def test_dlb_by_hand():
    model = network()
    made = made_with("dlb", {"model": model}, alpha=0.7)
    features, target = rows(2, 3, 10), torch.arange(10) % CLASSES
    criterion = LabelRegularizedLoss(made)
    first = model(features[:6])
    torch.testing.assert_close(criterion(first, target[:6], inputs=features[:6]), F.cross_entropy(first, target[:6]))
    model.weight.data += 0.3
    now, again = model(features[6:]), model(features[:6])
    expected = F.cross_entropy(torch.cat([now, again]), target[[*range(6, 10), *range(6)]])
    expected = expected + 0.7 * 9 * kl(first.detach(), again, 3).mean()
    found = criterion(now, target[6:], inputs=features[6:])
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, model.weight, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_dlb_with_ignored_rows_class_weights_and_named_inputs():
    model, weight = network(), torch.tensor([1.0, 2.0, 0.5, 3.0]).double()
    features, target = rows(2, 3, 6), TARGET.clone()
    target[1] = -100
    criterion = LabelRegularizedLoss(made_with("dlb", {"model": model}), weight=weight)
    before = model(features).detach()
    criterion(before, target, inputs={"input": features})
    model.weight.data += 0.3
    now, kept = model(features), target != -100
    share = weight[target[kept]] / weight[target[kept]].sum()
    expected = F.cross_entropy(torch.cat([now, now]), torch.cat([target, target]), weight=weight)
    expected = expected + 9 * (share * kl(before, now, 3)[kept]).sum()
    torch.testing.assert_close(criterion(now, target, inputs={"input": features}), expected)
    assert criterion(now, torch.full((6,), -100), inputs={"input": features}) == 0


def test_dlb_with_probability_targets():
    model, features, target = network(), rows(2, 3, 6), rows(4).softmax(-1)
    criterion = LabelRegularizedLoss(made_with("dlb", {"model": model}))
    criterion(model(features), target, inputs=features)
    now = model(features)
    torch.testing.assert_close(criterion(now, target, inputs=features), F.cross_entropy(now, target))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([1, 2], "`inputs` to be a tensor or a mapping of tensors, but got list"),
        ({"input": rows(2, 3), "mask": None}, r"`inputs\['mask'\]` to be a tensor, but got NoneType"),
        (rows(2, 3)[:4], r"one entry per example of the 6 rows of logits, but got shape \(4, 3\)"),
    ],
)
def test_dlb_refuses_inputs_that_it_cannot_keep(inputs, told):
    with pytest.raises(UserError, match=told):
        loss(made_with("dlb", {"model": network()}), rows(), inputs=inputs)


# Label Smoothing++.


def plus(classes: int = CLASSES, decay: float = 0.0, **options: Any) -> Any:
    made: Any = made_with("ls_plus", {"class_counts": torch.ones(classes)}, **options)
    made.provide(optimizer=torch.optim.SGD([{"params": made.learnt(), "weight_decay": decay}], lr=1.0))
    return made


@pytest.mark.parametrize("probabilities", [False, True])
def test_ls_plus_by_hand(probabilities):
    made, logits = plus(alpha=0.3), rows().requires_grad_()
    made.table.data = rows(7, CLASSES - 1, CLASSES).float()
    table = made.table.detach().double().requires_grad_()
    c = torch.zeros(CLASSES, CLASSES, dtype=torch.float64)
    for y in range(CLASSES):
        others = [k for k in range(CLASSES) if k != y]
        c[y, others] = table[y].softmax(-1)
    one_hot = rows(3).softmax(-1) if probabilities else F.one_hot(TARGET, CLASSES).double()
    t, log_p = 0.7 * one_hot + 0.3 * one_hot @ c, logits.log_softmax(-1)
    expected = -0.5 * ((t.detach() * log_p).sum(-1) + (log_p.exp().detach() * t.log()).sum(-1))
    found = loss(made, logits, one_hot if probabilities else TARGET)
    torch.testing.assert_close(found, expected)
    hand = torch.autograd.grad(expected.sum(), (logits, table))
    here = torch.autograd.grad(found.sum(), (logits, made.table))
    torch.testing.assert_close(here[0], hand[0])
    torch.testing.assert_close(here[1], hand[1].float())


def test_ls_plus_begins_as_half_of_label_smoothing():
    logits = rows().requires_grad_()
    (found,) = torch.autograd.grad(loss(plus(alpha=0.2), logits).sum(), logits)
    smoothing = regularizers.create("label_smoothing", epsilon=0.2, convention="fairseq")
    (expected,) = torch.autograd.grad(loss(smoothing, logits).sum() / 2, logits)
    torch.testing.assert_close(found, expected)


def test_ls_plus_learns_its_table_through_the_optimizer():
    made, logits = plus(), rows()
    optimizer = made.provided("optimizer")
    assert made.learnt() == [made.table]
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        value = LabelRegularizedLoss(made)(logits, TARGET)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    assert (made.table != 0).any()


def test_ls_plus_has_learnt_when_its_table_is_the_prediction_of_the_others():
    made, logits = plus(), rows()
    made.table.data[1] = logits[2, [0, 2, 3]].float()
    (gradient,) = torch.autograd.grad(loss(made, logits[2:3], TARGET[2:3]).sum(), made.table)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_ls_plus_refuses():
    with pytest.raises(UserError, match=r"with weight_decay=0, but got 0\.01"):
        plus(decay=0.01)
    fresh = regularizers.create("ls_plus")
    stranger = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UserError, match="needs class_counts before the optimizer"):
        fresh.provide(optimizer=stranger)
    fresh.provide(class_counts=torch.ones(CLASSES))
    with pytest.raises(UserError, match=r"add regularizer\.learnt\(\) to it"):
        fresh.provide(optimizer=stranger)
    with pytest.raises(UserError, match=r"a table of 20000 x 19999 numbers, 1\.6 GB"):
        fresh.provide(class_counts=torch.ones(20_000))
    with pytest.raises(UserError, match="table of 7 x 6, but this training needs one of 4 x 3"):
        loss(plus(7), rows())
    with pytest.raises(UserError, match=r"saved `table` of .* shape \(7, 6\), but this one has \(4, 3\)"):
        plus().load_state_dict(plus(7).state_dict())
    for alpha in (0.0, 1.0, True, math.nan):
        with pytest.raises(UserError, match=r"`alpha` to be a number in \(0, 1\)"):
            regularizers.create("ls_plus", alpha=alpha)
