"""Members that call networks: their formulas by hand, their special cases, what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from family_cases import INPUTS, TARGET, ce, kl, loss, made_with, network, rows, told_rows
from family_ranks import CLASSES
from labo import regularizers
from labo.errors import UserError
from labo.experiment import saved_run
from labo.regularizers import passes

# Distillation.


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
    with pytest.raises(UserError, match=r"`teacher` to be a network, but got the path 'runs/1'.*saved_run\.load"):
        made.provide(teacher="runs/1")
    with pytest.raises(UserError, match="`teacher` to be a network, but got Tensor"):
        made.provide(teacher=torch.zeros(3))
    made.provide(teacher=network(classes=7))
    with pytest.raises(UserError, match="the teacher to have 4 classes, as the logits, but it has 7"):
        loss(made, rows(), inputs=INPUTS)
    made.provide(teacher=network())
    with pytest.raises(
        UserError, match=r"the teacher to return logits for 6 rows of 4 classes, but got shape \(3, 4\)"
    ):
        loss(made, rows(), inputs=INPUTS[:3])
    with pytest.raises(UserError, match="No run in"):
        saved_run.load(tmp_path)


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
    with pytest.raises(UserError, match="the network on `partners` to return logits for 6 rows"):
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
    b = 1 - made.strength_of(told_rows(logits, torch.zeros(100_000, dtype=torch.int64), inputs=logits, step=0))
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


def test_self_adaptive_smoothing_counts_no_masked_class():
    """H(p) is compared with the logarithm of the classes that are left: two of five, equally likely, are unsure."""
    model = network()
    made: Any = made_with("self_adaptive_smoothing", {"model": model})
    masked = torch.full((6, CLASSES), -torch.inf, dtype=torch.float64)
    masked[:, :2] = 1.0
    masked[3:, 1] = -torch.inf  # one class is left: no smoothing
    told = told_rows(masked, torch.zeros(6, dtype=torch.long), inputs=INPUTS, epoch=1)
    torch.testing.assert_close(made.strength_of(told), torch.zeros(6, dtype=torch.float64))
    masked[:3, 1] = 0.0
    p = torch.tensor(1.0, dtype=torch.float64).sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    expected = torch.tensor([1 - entropy / torch.tensor(2.0).double().log()] * 3 + [0.0] * 3, dtype=torch.float64)
    told = told_rows(masked, torch.zeros(6, dtype=torch.long), inputs=INPUTS, epoch=1)
    torch.testing.assert_close(made.strength_of(told), expected)


def test_a_teachers_layout_is_not_guessed():
    """Logits (N, C, L) of a teacher with as many positions as classes could be (N, L, C)."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, CLASSES, CLASSES, generator=draw) for _ in range(2))
    target = torch.zeros(2, CLASSES, dtype=torch.long)
    made = made_with("distillation", {"teacher": nn.Identity()})
    with pytest.raises(
        UserError, match=rf"Expected the teacher to return logits \(rows, {CLASSES}\), one row for each"
    ):
        loss(made, student, target, inputs=teacher)
    rows_of_it = teacher.movedim(1, -1).reshape(-1, CLASSES)
    flat = student.movedim(1, -1).reshape(-1, CLASSES)
    expected = loss(made, flat, target.reshape(-1), inputs=rows_of_it).reshape(2, CLASSES)
    torch.testing.assert_close(loss(made, student, target, inputs=rows_of_it), expected)
