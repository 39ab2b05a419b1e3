"""Members that remember or call networks: their formulas by hand, their special cases, what they remember."""

from __future__ import annotations

import math
import multiprocessing
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from family_ranks import CLASSES, EXAMPLES, PARTS, REMEMBER, Course, data, work
from labo import LabelRegularizedLoss, regularizers
from labo.errors import UserError
from labo.regularizers import passes, teachers

TARGET = torch.tensor([0, 3, 1, 3, 2, 0])


def rows(seed: int = 0, classes: int = CLASSES, count: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, classes, generator=draw, dtype=torch.float64)


def network(seed: int = 1, classes: int = CLASSES) -> nn.Linear:
    made = nn.Linear(3, classes, dtype=torch.float64)
    made.weight.data = rows(seed, 3, classes)
    made.bias.data.zero_()
    return made


def loss(made: regularizers.Regularizer, logits: Tensor, target: Tensor = TARGET, **told: Any) -> Tensor:
    """The losses of the rows."""
    return LabelRegularizedLoss(made, reduction="none")(logits, target, **told)


def ce(logits: Tensor, target: Tensor = TARGET) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none")


def kl(towards: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """By torch's own, summed over classes."""
    q, log_p = (towards / temperature).softmax(-1), (logits / temperature).log_softmax(-1)
    return F.kl_div(log_p, q, reduction="none").sum(-1)


def made_with(name: str, provided: dict[str, Any], **options: Any) -> regularizers.Regularizer:
    made = regularizers.create(name, **options)
    made.provide(**provided)
    return made


# Distillation.

INPUTS = rows(5, 3)


@pytest.mark.parametrize(
    ("name", "options", "share", "temperature", "times"),
    [
        ("distillation", {}, 0.9, 4, 16),
        ("distillation", {"alpha": 0.3, "temperature": 0.5}, 0.3, 0.5, 0.25),
        ("tf_kd_self", {}, 0.95, 20, 400),
        ("tf_kd_self", {"convention": "repo"}, 0.95, 6, 36 * 50 / CLASSES),
        ("tf_kd_self", {"convention": "repo", "multiplier": 10.0, "temperature": 2.0}, 0.95, 2, 40 / CLASSES),
    ],
)
def test_distillation_by_hand(name, options, share, temperature, times):
    made, logits, teacher = made_with(name, {"teacher": network()}, **options), rows(), network()
    expected = (1 - share) * ce(logits) + share * times * kl(teacher(INPUTS).detach(), logits, temperature)
    torch.testing.assert_close(loss(made, logits, inputs=INPUTS), expected)
    torch.testing.assert_close(loss(made, logits, inputs={"input": INPUTS}), expected)


def test_a_teacher_that_says_the_same_adds_nothing():
    teacher = network()
    made = made_with("distillation", {"teacher": teacher})
    logits = teacher(INPUTS)
    torch.testing.assert_close(loss(made, logits, inputs=INPUTS), 0.1 * ce(logits))
    torch.testing.assert_close(
        loss(made_with("distillation", {"teacher": teacher}, alpha=0.0), rows(), inputs=INPUTS), ce(rows())
    )


def test_the_teacher_is_held_still():
    teacher = nn.Sequential(nn.BatchNorm1d(3, dtype=torch.float64), network())
    made = made_with("distillation", {"teacher": teacher})
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss(made, rows().requires_grad_(), inputs=INPUTS).sum().backward()
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not made.state_dict()


def test_masked_classes_are_masked_for_the_teacher():
    made, logits, teacher = made_with("distillation", {"teacher": network()}), rows(), network()
    logits[:, 1] = -math.inf
    seen, target = [0, 2, 3], torch.tensor([0, 3, 0, 3, 2, 0])
    found = loss(made, logits.requires_grad_(), target, inputs=INPUTS)
    expected = 0.1 * ce(logits, target) + 14.4 * kl(teacher(INPUTS)[:, seen].detach(), logits[:, seen], 4)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 2.0, 50.0])
def test_the_divergence_keeps_its_digits_in_float32(temperature, scale):
    z, t = (scale * torch.randn(40, 50, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    truth = temperature**2 * kl(t.double(), z.double(), temperature)
    found = temperature**2 * passes.divergence(z, t, temperature)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-6)
    z = z.double().requires_grad_()
    (gradient,) = torch.autograd.grad(passes.divergence(z, t.double(), temperature).sum(), z)
    expected = ((z / temperature).softmax(-1) - (t.double() / temperature).softmax(-1)) / temperature
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-12)


def test_teachers_that_will_not_do_are_refused(tmp_path):
    made = regularizers.create("distillation")
    with pytest.raises(UserError, match=r"`teacher` to be a network, but got the path 'runs/1'.*teachers\.load"):
        made.provide(teacher="runs/1")
    with pytest.raises(UserError, match="`teacher` to be a network, but got Tensor"):
        made.provide(teacher=torch.zeros(3))
    made.provide(teacher=network(classes=7))
    with pytest.raises(UserError, match="the teacher to have 4 classes, as the logits, but it has 7"):
        loss(made, rows(), inputs=INPUTS)
    made.provide(teacher=network())
    with pytest.raises(UserError, match=r"the teacher to give logits of 6 rows of 4 classes, but got shape \(3, 4\)"):
        loss(made, rows(), inputs=INPUTS[:3])
    with pytest.raises(UserError, match="No run in"):
        teachers.load(tmp_path)


def test_logits_of_every_place():
    """Classes in dimension 1, and a network that has them last."""

    class Places(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last = last

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs if self.last else inputs.movedim(-1, 1)

    places, logits = rows(3, CLASSES, 10).reshape(2, 5, CLASSES), rows(4, CLASSES, 10).reshape(2, 5, CLASSES)
    target = torch.arange(10).reshape(2, 5) % CLASSES
    expected = 0.1 * ce(logits.movedim(-1, 1), target) + 14.4 * kl(places, logits, 4)
    for last in (True, False):
        made = made_with("distillation", {"teacher": Places(last)})
        torch.testing.assert_close(loss(made, logits.movedim(-1, 1), target, inputs=places), expected)
        flat = loss(
            made_with("distillation", {"teacher": Places(True)}), logits.flatten(0, 1), target.flatten(), inputs=places
        )
        torch.testing.assert_close(flat, expected.flatten())


# Class-wise self-distillation.


def test_cs_kd_by_hand():
    model, partners, logits = network(), rows(8, 3), rows()
    made = made_with("cs_kd", {"model": model}, strength=0.7, temperature=3.0)
    expected = ce(logits) + 0.7 * 9 * kl(model(partners).detach(), logits, 3)
    found = loss(made, logits.requires_grad_(), partners=partners)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert model.weight.grad is None
    with pytest.raises(UserError, match="the network on `partners` to give logits of 6 rows"):
        loss(made, logits, partners=partners[:2])


@pytest.mark.parametrize("hold", [True, False])
def test_the_partners_leave_batch_statistics_still(hold):
    norm = nn.BatchNorm1d(3, dtype=torch.float64)
    model = nn.Sequential(norm, network())
    made = made_with("cs_kd", {"model": model}, hold_statistics=hold)
    partners = rows(8, 3)
    found = loss(made, rows(), partners=partners)
    by_batch = (partners - partners.mean(0)) / (partners.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(found, ce(rows()) + 16 * kl(model[1](by_batch).detach(), rows(), 4))
    assert bool((norm.running_mean == 0).all()) is hold
    assert norm.track_running_stats


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
    with pytest.raises(UserError, match="remembers a table of 4 x 4, but this training needs one of 7 x 7"):
        loss(made, rows(0, 7), epoch=0)
    loss(other, rows(0, 7), epoch=0)
    with pytest.raises(UserError, match=r"saved `table` of .* the shape \(7, 7\), but here it has \(4, 4\)"):
        made.load_state_dict(other.state_dict())
    fresh = regularizers.create("online_smoothing")
    fresh.load_state_dict(other.state_dict())
    with pytest.raises(UserError, match="remembers a table of 7 x 7"):
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
    with pytest.raises(UserError, match="remembers a prediction of 8 x 4, but this training needs one of 6 x 4"):
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
        (rows(2, 3)[:4], r"one entry for each of the examples that 6 rows of logits are of, but got shape \(4, 3\)"),
    ],
)
def test_dlb_refuses_inputs_that_it_cannot_keep(inputs, told):
    with pytest.raises(UserError, match=told):
        loss(made_with("dlb", {"model": network()}), rows(), inputs=inputs)


# Label Smoothing++.


def plus(classes: int = CLASSES, decay: float = 0.0, rate: float = 1.0, **options: Any) -> Any:
    made: Any = made_with("ls_plus", {"class_counts": torch.ones(classes)}, **options)
    made.provide(optimizer=torch.optim.SGD([{"params": made.learnt(), "weight_decay": decay}], lr=rate))
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
    made, logits = plus(rate=30.0), rows()
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
    # The best C[y] is the mean p over the other classes, and class 1 has one row.
    others = logits[2].softmax(-1)[[0, 2, 3]]
    for _ in range(1000):
        optimizer.zero_grad()
        LabelRegularizedLoss(made)(logits[2:3], TARGET[2:3]).backward()
        optimizer.step()
    torch.testing.assert_close(made.table[1].softmax(-1).double(), others / others.sum(), rtol=1e-2, atol=1e-3)


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
    with pytest.raises(UserError, match=r"saved `table` of .* the shape \(7, 6\), but here it has \(4, 3\)"):
        plus().load_state_dict(plus(7).state_dict())
    for alpha in (0.0, 1.0, True, math.nan):
        with pytest.raises(UserError, match="`alpha` to be above 0 and below 1"):
            regularizers.create("ls_plus", alpha=alpha)


# Beta smoothing.


def test_beta_smoothing_by_hand():
    model, logits = network(), rows()
    made = made_with("beta_smoothing", {"model": model}, alpha=0.5, concentration=2.0)
    torch.manual_seed(3)
    found = loss(made, logits, inputs=INPUTS, step=0)
    torch.manual_seed(3)
    draws = sorted(math.sqrt(value) for value in torch.rand(6, dtype=torch.float64).tolist())
    confidence = model(INPUTS).softmax(-1)[torch.arange(6), TARGET].tolist()
    for place, row in enumerate(sorted(range(6), key=confidence.__getitem__)):
        b, label = draws[place], torch.full((CLASSES,), (1 - draws[place]) / (CLASSES - 1), dtype=torch.float64)
        label[TARGET[row]] = b
        expected = 0.5 * ce(logits)[row] - 0.5 * (label * logits[row].log_softmax(-1)).sum()
        torch.testing.assert_close(found[row], expected)


def test_beta_smoothing_draws_from_the_distribution():
    made: Any = made_with("beta_smoothing", {"model": nn.Identity()}, alpha=1.0, concentration=3.0)
    logits = torch.zeros(100_000, 2)
    b = 1 - made.strength_of(_rows(logits, torch.zeros(100_000, dtype=torch.int64), inputs=logits, step=0))
    assert b.mean().item() == pytest.approx(3 / 4, abs=3e-3)
    assert (b < 0.5).double().mean().item() == pytest.approx(0.5**3, abs=5e-3)


def test_beta_smoothing_follows_the_network_once_a_step():
    model = network()
    made: Any = made_with("beta_smoothing", {"model": model}, decay=0.6)
    average = None
    for step in range(5):
        model.weight.data = rows(20 + step, 3, CLASSES)
        for _ in range(2):  # gradient accumulation
            loss(made, rows(), inputs=INPUTS, step=step)
        keep = min(0.6, 1 - 1 / (step + 1))
        now = model.weight.detach().clone()
        average = now if average is None else keep * average + (1 - keep) * now
        torch.testing.assert_close(made.past.model.weight.detach(), average)
    assert not made.past.training
    made.train()
    assert not made.past.training


def test_beta_smoothing_without_weight_is_cross_entropy():
    made = made_with("beta_smoothing", {"model": network()}, alpha=0.0)
    torch.testing.assert_close(loss(made, rows(), inputs=INPUTS, step=0), ce(rows()))


# Self-adaptive smoothing.


def test_self_adaptive_smoothing_by_hand():
    model, logits = network(), rows()
    made = made_with("self_adaptive_smoothing", {"model": model}, scale=0.8)
    for _ in range(2):
        torch.testing.assert_close(loss(made, logits, inputs=INPUTS, epoch=4), ce(logits))
    model.weight.data += 1.0
    past = model(INPUTS).softmax(-1).detach()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    strength = 0.8 * (1 - entropy / math.log(CLASSES))
    expected = (1 - strength) * ce(logits) - strength * (past * logits.log_softmax(-1)).sum(-1)
    for _ in range(2):
        found = loss(made, logits.requires_grad_(), inputs=INPUTS, epoch=5)
        torch.testing.assert_close(found, expected)
        model.weight.data += 1.0  # within the epoch the past stays
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    one_hot, share = F.one_hot(TARGET, CLASSES), strength.unsqueeze(-1)
    torch.testing.assert_close(gradient, logits.softmax(-1) - (1 - share) * one_hot - share * past)


def test_self_adaptive_smoothing_leaves_unsure_predictions_alone():
    made = made_with("self_adaptive_smoothing", {"model": network()})
    loss(made, rows(), inputs=INPUTS, epoch=0)
    flat = torch.zeros(6, CLASSES, dtype=torch.float64)
    torch.testing.assert_close(loss(made, flat, inputs=INPUTS, epoch=1), ce(flat))


# What all of them remember.


@pytest.mark.parametrize("stop", [3, 5])
@pytest.mark.parametrize("name", REMEMBER)
def test_an_interrupted_epoch_goes_on_bit_for_bit(name, stop):
    course = Course(name)
    for step in range(stop):
        course.step(step)
    saved = course.state()
    losses = [course.step(step) for step in range(stop, 8)]
    again = Course(name).resume(saved)
    assert [again.step(step) for step in range(stop, 8)] == losses
    assert all(torch.equal(value, again.state()["member"][key]) for key, value in course.state()["member"].items())
    back = course.resume(saved)  # over a state that is further
    assert [back.step(step) for step in range(stop, 8)] == losses


@pytest.mark.parametrize("name", REMEMBER)
def test_evaluation_changes_nothing_that_is_remembered(name):
    course = Course(name)
    course.step(0)
    before = course.state()["member"]
    course.member.eval()
    features, target = data()
    told = {"indices": torch.arange(EXAMPLES), "inputs": features, "epoch": 1, "step": 1}
    given = {need: value for need, value in told.items() if need in course.member.needs}
    LabelRegularizedLoss(course.member).eval()(course.model(features), target, **given)
    after = course.state()["member"]
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, one with four rows of each batch, one with two."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])
    processes = [context.Process(target=work, args=(rank, 2, folder)) for rank in range(2)]
    end = time.monotonic() + 60
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for result in results:
        assert "failed" not in result, result["failed"]
    return results


@pytest.mark.parametrize("name", REMEMBER)
def test_processes_remember_the_same(ranks, name):
    (_, mine), (_, theirs) = (result[name] for result in ranks)
    assert mine.keys() == theirs.keys()
    assert mine
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize("name", ["online_smoothing", "ps_kd", "dlb", "beta_smoothing", "self_adaptive_smoothing"])
def test_processes_remember_what_one_alone_would(ranks, name):
    course = Course(name)
    for step in range(5):
        course.step(step, learn=False)
    for key, value in course.state()["member"].items():
        torch.testing.assert_close(ranks[0][name][1][key], value)


@pytest.mark.parametrize("name", ["online_smoothing", "ps_kd"])
def test_losses_of_processes_are_parts_of_one(ranks, name):
    course = Course(name)
    for step in range(5):
        whole = course.step(step, learn=False)
        sizes = [len(range(6)[part]) for part in PARTS]
        parts = [result[name][0][step] * size / 6 for result, size in zip(ranks, sizes, strict=True)]
        torch.testing.assert_close(sum(parts), whole)


# Partners.


def test_same_class_draws_another_example_of_the_class():
    target = torch.randint(5, (200,), generator=torch.Generator().manual_seed(0))
    target[17] = 5
    partners, at = regularizers.SameClass(target), torch.arange(200)
    drawn = partners.draw(at, epoch=0)
    assert torch.equal(target[drawn], target)
    assert (drawn == at).nonzero().flatten().tolist() == [17]
    few = regularizers.SameClass(torch.tensor([0, 0, 0, 1]))
    found = [few.draw(torch.tensor([0]), epoch).item() for epoch in range(400)]
    assert set(found) == {1, 2}
    assert 150 < found.count(1) < 250


def test_same_class_is_a_function_of_seed_epoch_and_index_alone():
    target = torch.arange(60) % 3
    first, second = regularizers.SameClass(target, seed=1), regularizers.SameClass(target, seed=1)
    whole = first.draw(torch.arange(60), epoch=2)
    second.draw(torch.arange(7), epoch=5)
    assert torch.equal(second.draw(torch.tensor([41, 3, 41]), epoch=2), whole[[41, 3, 41]])
    assert not torch.equal(first.draw(torch.arange(60), epoch=3), whole)
    assert not torch.equal(regularizers.SameClass(target, seed=2).draw(torch.arange(60), epoch=2), whole)


def test_same_class_refuses():
    with pytest.raises(UserError, match=r"`target` to be \(N,\) class indices, but got torch.float32"):
        regularizers.SameClass(torch.zeros(3))
    partners = regularizers.SameClass(torch.tensor([0, 1, 0]))
    with pytest.raises(UserError, match="`indices` of 3 training examples, but got 3"):
        partners.draw(torch.tensor([0, 3]), epoch=0)
    assert partners.draw(torch.tensor([], dtype=torch.int64), epoch=0).tolist() == []


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("distillation", {"alpha": 1.1}, r"`alpha` to be in \[0, 1\]"),
        ("distillation", {"temperature": math.inf}, "`temperature` to be a finite number above 0, but got inf"),
        ("tf_kd_self", {"convention": "code"}, "Unknown convention 'code'"),
        ("tf_kd_self", {"multiplier": -1.0}, "`multiplier` to be a finite number of at least 0"),
        ("cs_kd", {"strength": math.nan}, "`strength` to be a finite number of at least 0, but got nan"),
        ("cs_kd", {"hold_statistics": 1}, "`hold_statistics` to be True or False, but got 1"),
        ("online_smoothing", {"strength": 2}, r"`strength` to be in \[0, 1\]"),
        ("ps_kd", {"alpha": -0.1}, r"`alpha` to be in \[0, 1\]"),
        ("dlb", {"alpha": True}, "`alpha` to be a finite number"),
        ("dlb", {"temperature": 0}, "`temperature` to be a finite number above 0, but got 0"),
        ("beta_smoothing", {"concentration": 0}, "`concentration` to be a finite number above 0"),
        ("beta_smoothing", {"decay": 1.5}, r"`decay` to be in \[0, 1\]"),
        ("self_adaptive_smoothing", {"scale": 3}, r"`scale` to be in \[0, 1\]"),
    ],
)
def test_options_out_of_range_are_named(name, options, told):
    with pytest.raises(ValueError, match=told):
        regularizers.create(name, **options)


def _rows(logits: Tensor, target: Tensor, **told: Any) -> Any:
    from dataclasses import replace

    from labo.reduction import as_rows

    return replace(as_rows(logits, target, None, -100), given=told)
