"""Generalized and symmetric cross-entropy, the losses made for wrong labels, against plain tensors in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labo import LabelRegularizedLoss, regularizers
from labo.errors import UserError

CLASSES = 5
TARGET = torch.tensor([0, 3, 1, 4, 2, 3])
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("gce", {}),
    ("gce", {"q": 0.0}),
    ("gce", {"q": 0.0, "epsilon": 0.4}),
    ("gce", {"q": 1e-30, "epsilon": 0.4}),
    ("gce", {"q": 1e-8}),
    ("gce", {"q": 0.3, "epsilon": 0.4}),
    ("gce", {"q": 1.0, "epsilon": 1.0}),
    ("sce", {}),
    ("sce", {"forward_strength": 6.0, "reverse_strength": 0.1, "epsilon": 0.4}),
    ("sce", {"epsilon": 0.1, "log_zero": -2.0}),
    ("sce", {"epsilon": 1.0, "forward_strength": 0.0}),
]
settings = pytest.mark.parametrize(("name", "options"), SETTINGS, ids=str)


def random_logits() -> Tensor:
    return 2 * torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def random_target() -> Tensor:
    """Probabilities, some of them 0."""
    target = torch.rand(6, CLASSES, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    target[:, 1] = 0
    return target / target.sum(-1, keepdim=True)


def losses(name: str, logits: Tensor, target: Tensor = TARGET, weight: Tensor | None = None, **options: Any) -> Tensor:
    made = regularizers.create(name, **options)
    return LabelRegularizedLoss(made, weight=weight, reduction="none")(logits, target)


def gradient(name: str, logits: Tensor, target: Tensor = TARGET, **options: Any) -> Tensor:
    logits = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(losses(name, logits, target, **options).sum(), logits)
    return found


def one_hot(target: Tensor = TARGET) -> Tensor:
    return F.one_hot(target, CLASSES).double()


def same(found: Tensor, expected: Tensor, **tolerance: Any) -> None:
    torch.testing.assert_close(found, expected, **tolerance)


# The published formulas, by hand.


def test_gce_by_hand():
    logits = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    expected = torch.tensor([(1 - 0.3**0.7) / 0.7], dtype=torch.float64)
    same(losses("gce", logits, torch.tensor([1])), expected)
    same(losses("gce", random_logits()), (1 - random_logits().softmax(-1)[range(6), TARGET] ** 0.7) / 0.7)


@pytest.mark.parametrize("q", [0.3, 0.7, 1])
@pytest.mark.parametrize("epsilon", [0, 0.4, 1])
@pytest.mark.parametrize("target", [TARGET, random_target()], ids=["indices", "probabilities"])
def test_gce_of_smoothed_targets_by_hand(q, epsilon, target):
    p = random_logits().softmax(-1)
    t = target if target.dim() == 2 else one_hot(target)
    t = (1 - epsilon) * t + epsilon / CLASSES
    same(losses("gce", random_logits(), target, q=q, epsilon=epsilon), (t * (1 - p**q) / q).sum(-1))


def test_sce_by_hand():
    logits = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    expected = torch.tensor([-0.1 * math.log(0.3) + 4 * (1 - 0.3)], dtype=torch.float64)
    same(losses("sce", logits, torch.tensor([1])), expected)
    # As the authors' code has it: labels clamped at 1e-4.
    p, clamped = random_logits().softmax(-1), one_hot().clamp(min=1e-4)
    expected = 6.0 * F.cross_entropy(random_logits(), TARGET, reduction="none") - 0.2 * (p * clamped.log()).sum(-1)
    found = losses("sce", random_logits(), forward_strength=6.0, reverse_strength=0.2, log_zero=math.log(1e-4))
    same(found, expected)


@pytest.mark.parametrize("log_zero", [-9.0, -4.0, -1.0, -2000.0])
@pytest.mark.parametrize("epsilon", [0, 0.05, 0.4, 1])
@pytest.mark.parametrize("target", [TARGET, random_target()], ids=["indices", "probabilities"])
def test_sce_of_smoothed_targets_by_hand(log_zero, epsilon, target):
    p = random_logits().softmax(-1)
    t = target if target.dim() == 2 else one_hot(target)
    t = (1 - epsilon) * t + epsilon / CLASSES
    reverse = -(p * t.log().clamp(min=log_zero)).sum(-1)
    expected = 0.3 * -(t * p.log()).sum(-1) + 2 * reverse
    options = {"forward_strength": 0.3, "reverse_strength": 2, "log_zero": log_zero, "epsilon": epsilon}
    same(losses("sce", random_logits(), target, **options), expected)


# Their limits.


@pytest.mark.parametrize("q", [0, 0.0, 1e-300, 1e-40, 1e-24, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gce_at_q_to_0_is_cross_entropy(q, dtype):
    logits = random_logits().to(dtype)
    expected = F.cross_entropy(logits, TARGET, reduction="none")
    same(losses("gce", logits, q=q), expected, rtol=1e-6 if dtype == torch.float32 else 1e-10, atol=0)
    same(gradient("gce", logits, q=q), logits.softmax(-1) - one_hot().to(dtype), rtol=1e-5, atol=1e-6)
    smoothed = F.cross_entropy(logits, TARGET, reduction="none", label_smoothing=0.4)
    same(losses("gce", logits, q=q, epsilon=0.4), smoothed, rtol=1e-6, atol=0)


@pytest.mark.parametrize("q", [1e-3, 1e-5, 1e-7])
def test_gce_of_a_small_q_loses_no_digits_in_float32(q):
    logits = random_logits().float()
    same(losses("gce", logits, q=q).double(), losses("gce", logits.double(), q=q), rtol=1e-6, atol=0)
    same(gradient("gce", logits, q=q).double(), gradient("gce", logits.double(), q=q), rtol=1e-5, atol=1e-6)


def test_gce_at_q_1_and_the_reverse_term_of_sce_are_the_mean_absolute_error():
    missed = 1 - random_logits().softmax(-1)[range(6), TARGET]
    same(losses("gce", random_logits(), q=1), missed)
    same(missed, (random_logits().softmax(-1) - one_hot()).abs().sum(-1) / 2)
    same(losses("sce", random_logits(), forward_strength=0, log_zero=-3.0), 3 * missed)


def test_sce_without_the_reverse_term_is_label_smoothing():
    expected = F.cross_entropy(random_logits(), TARGET, label_smoothing=0.4, reduction="none")
    found = losses("sce", random_logits(), forward_strength=1, reverse_strength=0, epsilon=0.4)
    same(found, expected)


# Their gradients.


@settings
@pytest.mark.parametrize("target", [TARGET, random_target()], ids=["indices", "probabilities"])
def test_gradients_of_both_orders(name, options, target):
    logits = random_logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: losses(name, z, target, WEIGHT, **options), logits)
    assert torch.autograd.gradgradcheck(lambda z: losses(name, z, target, WEIGHT, **options), logits)


def test_the_gradient_of_gce_is_that_of_the_cross_entropy_times_a_power():
    p = random_logits().softmax(-1)
    expected = p[range(6), TARGET].unsqueeze(-1) ** 0.7 * (p - one_hot())
    same(gradient("gce", random_logits()), expected)


def test_gce_is_least_at_a_power_of_the_smoothed_target():
    t = 0.6 * one_hot() + 0.4 / CLASSES
    logits = t.log() / (1 - 0.7)
    zero = torch.zeros_like(logits)
    same(gradient("gce", logits, epsilon=0.4), zero)
    assert gradient("gce", t.log(), epsilon=0.4).abs().max() > 0.01


@settings
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_have_a_finite_loss_and_gradient(name, options, dtype):
    logits = torch.tensor([[800.0, 0.0, -800.0], [0.0, 800.0, -800.0], [-1e4, 0.0, 1e4]], dtype=dtype)
    target = torch.tensor([0, 0, 0])
    assert losses(name, logits, target, **options).isfinite().all()
    assert gradient(name, logits, target, **options).isfinite().all()


# Masks and weights.


@settings
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_a_masked_class_is_as_if_it_were_not_there(name, options, soft):
    logits = random_logits()
    target = random_target() if soft else TARGET
    masked = torch.cat([logits[:, :2], logits.new_full((6, 1), -math.inf), logits[:, 2:]], -1).requires_grad_()
    wide = torch.cat([target[:, :2], target.new_zeros(6, 1), target[:, 2:]], -1) if soft else target + (target >= 2)
    found = losses(name, masked, wide, **options)
    same(found, losses(name, logits, target, **options))
    (slopes,) = torch.autograd.grad(found.sum(), masked, create_graph=True)
    same(slopes[:, [0, 1, 3, 4, 5]], gradient(name, logits, target, **options))
    assert not slopes[:, 2].any()
    (curvature,) = torch.autograd.grad((slopes * torch.arange(6)).sum(), masked)
    assert curvature.isfinite().all()


@settings
def test_a_row_with_its_gold_class_or_all_classes_masked_has_no_nan(name, options):
    logits = random_logits()
    logits[0, TARGET[0]] = -math.inf
    logits[1] = -math.inf
    found, slopes = losses(name, logits, **options), gradient(name, logits, **options)
    assert not found.isnan().any()
    assert slopes.isfinite().all()
    assert not slopes[1].any()
    if name == "gce" and options == {}:
        same(found[:2], torch.full((2,), 1 / 0.7, dtype=torch.float64))


@settings
def test_ignored_rows_are_filtered_rows(name, options):
    logits, target = random_logits(), TARGET.clone()
    target[1::2] = -100
    logits[1] = math.nan
    criterion = LabelRegularizedLoss(regularizers.create(name, **options), weight=WEIGHT)
    same(criterion(logits, target), criterion(logits[::2], target[::2]))


@settings
def test_class_weights_weigh_examples_of_a_class_index(name, options):
    found = losses(name, random_logits(), weight=WEIGHT, **options)
    same(found, WEIGHT[TARGET] * losses(name, random_logits(), **options))


@settings
def test_class_weights_weigh_the_classes_of_probabilities(name, options):
    weighted = random_target() * WEIGHT
    times = weighted.sum(-1)
    expected = times * losses(name, random_logits(), weighted / times.unsqueeze(-1), **options)
    same(losses(name, random_logits(), random_target(), weight=WEIGHT, **options), expected)


@settings
def test_a_target_whose_classes_weigh_nothing_has_no_loss(name, options):
    target = torch.zeros(6, CLASSES, dtype=torch.float64)
    target[:, 0] = 1
    logits = random_logits()
    weight = torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64)
    assert not losses(name, logits, target, weight=weight, **options).any()


# What is refused.


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.7", "high", None, True, torch.tensor(0.5)])
@pytest.mark.parametrize(("name", "option"), [("gce", "q"), ("gce", "epsilon"), ("sce", "epsilon")])
def test_shares_out_of_range_are_named(name, option, value):
    with pytest.raises(UserError) as error:
        regularizers.create(name, **{option: value})
    assert str(error.value) == f"Expected argument `{option}` to be a number in [0, 1], but got {value!r}."


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", None, True])
@pytest.mark.parametrize("option", ["forward_strength", "reverse_strength"])
def test_strengths_out_of_range_are_named(option, value):
    with pytest.raises(UserError) as error:
        regularizers.create("sce", **{option: value})
    assert str(error.value) == f"Expected argument `{option}` to be a number in [0, inf), but got {value!r}."


@pytest.mark.parametrize("value", [0, 0.0, 4.0, -math.inf, math.nan, "-4", None, True])
def test_what_cannot_stand_for_the_log_of_0_is_named(value):
    with pytest.raises(UserError) as error:
        regularizers.create("sce", log_zero=value)
    assert str(error.value) == f"Expected argument `log_zero` to be a number in (-inf, 0), but got {value!r}."


@pytest.mark.parametrize("name", ["gce", "sce"])
def test_the_published_setting_is_tried_first_and_smoothing_soon(name):
    candidates = regularizers.candidates(name)
    assert len(candidates) == 5
    assert regularizers.create(name, **candidates[0]).options() == regularizers.create(name).options()
    assert any(options.get("epsilon") for options in candidates[:4])
