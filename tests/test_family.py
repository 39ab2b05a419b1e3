"""Members of the family against numbers worked by hand or a few lines of plain tensors, never the code under test."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labo import LabelRegularizedLoss, labo_cross_entropy, regularizers
from labo.errors import UserError
from labo.reduction import as_rows


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def random_batch(classes: int = 5, rows: int = 6) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(rows, classes, generator=draw, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=draw)


def random_target(logits: Tensor) -> Tensor:
    """Probabilities of the shape of the logits."""
    return torch.randn(logits.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64).softmax(-1)


def losses(
    name: str, logits: Tensor, target: Tensor, *, counts: Tensor | None = None, told: Any = None, **options: Any
) -> Tensor:
    """The loss of each row; `counts` are provided, `told` is what the batch is told of, `weight` an option too."""
    weight = options.pop("weight", None)
    made = regularizers.create(name, **options)
    if counts is not None:
        made.provide(class_counts=counts)
    return LabelRegularizedLoss(made, weight=weight, reduction="none")(logits, target, **(told or {}))


def gradient(name: str, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    logits = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(losses(name, logits, target, **options).sum(), logits)
    return found


def cross_entropies(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none")


def one_hot(target: Tensor, classes: int = 5) -> Tensor:
    return F.one_hot(target, classes).double()


def same(found: Tensor, expected: Tensor, **tolerance: Any) -> None:
    torch.testing.assert_close(found, expected, **tolerance)


# What holds for all of them.

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("generalized_entropy", {}),
    ("generalized_entropy", {"skew": 0.0}),
    ("generalized_entropy", {"skew": 1.0}),
    ("generalized_entropy", {"skew": 0.8}),
    ("tf_kd_reg", {"alpha": 0.4, "temperature": 0.3, "multiplier": 2.0}),
    ("zipf_smoothing", {"strength": 1.0}),
    ("zipf_smoothing", {"strength": 1.0, "gold_ranked": True}),
    ("zipf_smoothing", {"strength": 1.0, "ranking": "dense"}),
    ("maxsup", {"strength": 0.3}),
    ("margin_smoothing", {"margin": 0.5}),
    ("acls", {"margin": 0.5}),
    ("masked_smoothing", {"epsilon": 0.3}),
    ("focal", {}),
    ("poly1", {}),
    ("bootstrapping", {"kind": "soft"}),
    ("bootstrapping", {"kind": "hard"}),
]


def dense_logits(rows: int, classes: int) -> Tensor:
    return torch.randn(rows, 7, classes, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_a_masked_class_is_as_if_it_were_not_there(name, options, soft):
    logits, target = random_batch()
    target = random_target(logits) if soft else target
    more: dict[str, Any] = {"counts": torch.tensor([3, 0, 1, 2, 4])} if name == "masked_smoothing" else {}
    wide = dict(more, counts=torch.tensor([3, 0, 9, 1, 2, 4])) if more else {}
    if options.get("ranking") == "dense":
        places = dense_logits(6, 5)
        more["told"] = {"dense_logits": places}
        wide["told"] = {"dense_logits": torch.cat([places[..., :2], places[..., :1] - 99, places[..., 2:]], -1)}
    masked = torch.cat([logits[:, :2], logits.new_full((6, 1), -math.inf), logits[:, 2:]], -1).requires_grad_()
    if soft:
        wide_target = torch.cat([target[:, :2], target.new_zeros(6, 1), target[:, 2:]], -1)
    else:
        wide_target = target + (target >= 2)
    found = losses(name, masked, wide_target, **options, **wide)
    same(found, losses(name, logits, target, **options, **more))
    (slopes,) = torch.autograd.grad(found.sum(), masked)
    assert slopes.isfinite().all()
    assert not slopes[:, 2].any()


# The teacher of tf_kd_reg is made of the target as it comes, so its weights are not those of another target.
WEIGHABLE = [(name, options) for name, options in SETTINGS if name != "tf_kd_reg" and "ranking" not in options]


@pytest.mark.parametrize(("name", "options"), WEIGHABLE, ids=str)
def test_class_weights_weigh_the_classes_of_probabilities(name, options):
    logits, weight = random_batch()[0], torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    target = random_target(logits)
    counts = torch.ones(5) if name == "masked_smoothing" else None
    # A weighted target is so many times the distribution that it is proportional to.
    times = (target * weight).sum(-1)
    expected = times * losses(name, logits, target * weight / times.unsqueeze(-1), counts=counts, **options)
    same(losses(name, logits, target, counts=counts, weight=weight, **options), expected)


# Generalized entropy.


@pytest.mark.parametrize("skew", [0.1, 0.5, 0.6, 0.97])
def test_generalized_entropy_is_the_jensen_gap_of_the_entropy(skew):
    logits, target = random_batch()
    p = logits.softmax(-1)
    between = skew * p + (1 - skew) / 5
    gap = -(between * between.log()).sum(-1) - skew * -(p * p.log()).sum(-1) - (1 - skew) * math.log(5)
    expected = cross_entropies(logits, target) + 0.7 * gap / (skew * (1 - skew))
    same(losses("generalized_entropy", logits, target, skew=skew, strength=0.7), expected)


def test_generalized_entropy_at_skew_0_is_the_confidence_penalty():
    logits, target = random_batch()
    expected = losses("confidence_penalty", logits, target, strength=0.7) + 0.7 * math.log(5)
    same(losses("generalized_entropy", logits, target, skew=0.0, strength=0.7), expected)
    p = logits.softmax(-1)
    same(expected, cross_entropies(logits, target) + 0.7 * (p * (5 * p).log()).sum(-1))


def test_generalized_entropy_at_skew_1_is_label_smoothing():
    logits, target = random_batch()
    smoothed = F.cross_entropy(logits, target, label_smoothing=0.7 / 1.7, reduction="none")
    same(losses("generalized_entropy", logits, target, skew=1.0, strength=0.7), 1.7 * smoothed - 0.7 * math.log(5))


@pytest.mark.parametrize(("skew", "limit"), [(1e-6, 0.0), (1 - 1e-6, 1.0)])
def test_generalized_entropy_comes_to_its_limits_in_float32(skew, limit):
    logits, target = random_batch()
    found = losses("generalized_entropy", logits.float(), target, skew=skew)
    same(found.double(), losses("generalized_entropy", logits, target, skew=limit), rtol=1e-4, atol=1e-5)
    slopes = gradient("generalized_entropy", logits.float(), target, skew=skew)
    same(slopes.double(), gradient("generalized_entropy", logits, target, skew=limit), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("skew", [0.0, 0.3, 0.9, 1.0])
def test_generalized_entropy_of_a_sure_prediction_is_finite(skew):
    logits = torch.tensor([[500.0, 0.0, -500.0]])
    assert losses("generalized_entropy", logits, torch.tensor([0]), skew=skew).isfinite().all()
    assert gradient("generalized_entropy", logits, torch.tensor([0]), skew=skew).isfinite().all()


# Teacher-free regularization.


def test_the_teacher_designed_by_hand_is_nearly_uniform():
    logits, target = random_batch(classes=100)
    made = regularizers.create("tf_kd_reg")
    teacher = made.labels(as_rows(logits, target, None, -100))
    assert teacher is not None
    gold = math.exp(0.99 / 20) / (math.exp(0.99 / 20) + 99 * math.exp(0.01 / 99 / 20))
    assert round(gold, 4) == 0.0105
    same(teacher[torch.arange(6), target], torch.full((6,), gold, dtype=torch.float64))
    same(teacher.sum(-1), torch.ones(6, dtype=torch.float64))


def test_tf_kd_reg_by_hand():
    logits, target = random_batch()
    designed = torch.where(one_hot(target) == 1, 0.99, 0.01 / 4)
    teacher = (designed / 0.5).softmax(-1)
    divergence = (teacher * (teacher.log() - logits.log_softmax(-1))).sum(-1)
    expected = 0.7 * cross_entropies(logits, target) + 0.3 * 2 * divergence
    same(losses("tf_kd_reg", logits, target, alpha=0.3, temperature=0.5, multiplier=2.0), expected)
    # As the authors' code has it, with PyTorch's default reduction over the classes.
    averaged = F.kl_div(logits.log_softmax(-1), teacher, reduction="none").mean(-1)
    found = losses("tf_kd_reg", logits, target, alpha=0.3, temperature=0.5, multiplier=100.0, convention="class_mean")
    same(found, 0.7 * cross_entropies(logits, target) + 0.3 * 100 * averaged)
    slopes = gradient("tf_kd_reg", logits, target, alpha=0.3, temperature=0.5)
    same(slopes, logits.softmax(-1) - 0.7 * one_hot(target) - 0.3 * teacher)


def test_tf_kd_reg_is_the_published_setting_for_100_classes():
    logits, target = random_batch(classes=100)
    published = losses("tf_kd_reg", logits, target, alpha=0.1, multiplier=100.0, convention="class_mean")
    same(losses("tf_kd_reg", logits, target), published)


def test_tf_kd_reg_mixes_its_teachers_as_the_target_mixes_classes():
    logits = table([2.0, 0.0, -1.0])
    teacher = (table([0.5 * 0.99 + 0.5 * 0.005, 0.5 * 0.99 + 0.5 * 0.005, 0.005]) / 0.2).softmax(-1)
    divergence = (teacher * (teacher.log() - logits.log_softmax(-1))).sum(-1)
    target = table([0.5, 0.5, 0.0])
    expected = 0.6 * cross_entropies(logits, target) + 0.4 * divergence
    same(losses("tf_kd_reg", logits, target, alpha=0.4, temperature=0.2), expected)


# Zipf smoothing.


def zipf_by_hand(logits: Tensor, target: Tensor, wrong: list[int], shares: list[float], strength: float) -> Tensor:
    """The loss of one row whose `wrong` classes get `shares`, not yet normalised."""
    labels = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    q = logits[0, wrong].log_softmax(-1)
    return cross_entropies(logits, target) + strength * (labels * (labels.log() - q)).sum()


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, [1.0, 1 / 2, 1 / 4, 1 / 2]),  # classes 0, 2, 3, 4 score 3, 1, 0, 1: the two equal ones share rank 2
        ({"gold_ranked": True}, [1.0, 1 / 3, 1 / 5, 1 / 3]),
    ],
)
def test_zipf_ranks_the_wrong_logits(options, shares):
    logits, target = table([3.0, 2.0, 1.0, 0.0, 1.0]), torch.tensor([1])
    expected = zipf_by_hand(logits, target, [0, 2, 3, 4], shares, 0.4)
    same(losses("zipf_smoothing", logits, target, strength=0.4, **options), expected)


def test_zipf_ranks_by_the_votes_of_the_feature_map():
    logits, target = table([3.0, 2.0, 1.0, 0.0, 1.0]), torch.tensor([1])
    first = [3, 3, 4, 1, 3, 4, 1, 1, 1]  # votes: class 3 has three, 4 two, 0 and 2 none; the gold class has four
    places = F.one_hot(torch.tensor([first]), 5).float()
    places[0, 2] = torch.tensor([0.0, 0.0, 0.0, -1.0, 0.5])
    told = {"dense_logits": places}
    expected = zipf_by_hand(logits, target, [0, 2, 3, 4], [1 / 3, 1 / 3, 1.0, 1 / 2], 0.4)
    same(losses("zipf_smoothing", logits, target, strength=0.4, ranking="dense", told=told), expected)
    expected = zipf_by_hand(logits, target, [0, 2, 3, 4], [1 / 4, 1 / 4, 1 / 2, 1 / 3], 0.4)
    found = losses("zipf_smoothing", logits, target, strength=0.4, ranking="dense", gold_ranked=True, told=told)
    same(found, expected)


def test_a_place_with_equal_logits_votes_for_the_first_class():
    logits, target = table([3.0, 2.0, 1.0, 0.0, 1.0]), torch.tensor([1])
    told = {"dense_logits": torch.zeros(1, 2, 5)}
    expected = zipf_by_hand(logits, target, [0, 2, 3, 4], [1.0, 1 / 2, 1 / 2, 1 / 2], 0.1)
    same(losses("zipf_smoothing", logits, target, ranking="dense", told=told), expected)


def test_zipf_ranks_are_constant_and_the_gold_logit_is_left_alone():
    logits, target = table([3.0, 2.0, 1.0, 0.0]), torch.tensor([1])
    q = logits[0, [0, 2, 3]].softmax(-1)
    pull = torch.zeros(1, 4, dtype=torch.float64)
    pull[0, [0, 2, 3]] = q - table([6 / 11, 3 / 11, 2 / 11])[0]
    expected = logits.softmax(-1) - one_hot(target, 4) + 0.4 * pull
    same(gradient("zipf_smoothing", logits, target, strength=0.4), expected)
    places = dense_logits(1, 4).requires_grad_()
    found = losses(
        "zipf_smoothing", logits.requires_grad_(), target, ranking="dense", told={"dense_logits": places}
    ).sum()
    assert torch.autograd.grad(found, places, allow_unused=True) == (None,)


def test_zipf_with_probabilities_ranks_what_the_target_gives_nothing():
    logits, target = table([3.0, 2.0, 1.0, 0.0]), table([0.3, 0.7, 0.0, 0.0])
    expected = zipf_by_hand(logits, target, [2, 3], [1.0, 1 / 2], 0.4)
    same(losses("zipf_smoothing", logits, target, strength=0.4), expected)
    everywhere = random_target(logits)
    same(losses("zipf_smoothing", logits, everywhere, strength=0.4), cross_entropies(logits, everywhere))


def test_zipf_refuses_dense_logits_of_another_shape():
    logits, target = random_batch()
    with pytest.raises(ValueError, match=r"`dense_logits` to have shape \(6, positions, 5\), but got \(6, 5\)"):
        losses("zipf_smoothing", logits, target, ranking="dense", told={"dense_logits": logits})


# Penalties on the largest logit.


def test_maxsup_where_the_gold_class_leads_is_label_smoothing():
    logits, _ = random_batch()
    gold = logits.argmax(-1)
    found = losses("maxsup", logits, gold, strength=0.3)
    same(found, F.cross_entropy(logits, gold, label_smoothing=0.3, reduction="none"))
    same(found, cross_entropies(logits, gold) + 0.3 * (logits.gather(-1, gold[:, None])[:, 0] - logits.mean(-1)))


def test_maxsup_where_the_gold_class_does_not_lead():
    logits, target = table([1.0, 4.0, 1.0]), torch.tensor([0])
    same(losses("maxsup", logits, target, strength=0.5), cross_entropies(logits, target) + 0.5 * (4 - 2))
    pull = table([-1 / 3, 2 / 3, -1 / 3])
    expected = logits.softmax(-1) - one_hot(target, 3) + 0.5 * pull
    same(gradient("maxsup", logits, target, strength=0.5), expected)
    soft = random_target(logits)
    same(losses("maxsup", logits, soft, strength=0.5), cross_entropies(logits, soft) + 1)


@pytest.mark.parametrize(("progress", "strength"), [(0.0, 0.1), (0.25, 0.125), (torch.tensor(1.0), 0.2)])
def test_maxsup_grows_over_training(progress, strength):
    logits, target = random_batch()
    found = losses("maxsup", logits, target, told={"progress": progress})
    same(found, losses("maxsup", logits, target, strength=strength))


def test_maxsup_needs_the_progress_only_if_it_grows():
    assert regularizers.create("maxsup").needs == ("progress",)
    assert regularizers.create("maxsup", strength=0).needs == ()
    with pytest.raises(ValueError, match=r"`progress` to be in \[0, 1\], but got 1.5"):
        losses("maxsup", *random_batch(), told={"progress": 1.5})


def test_margin_smoothing_by_hand():
    logits, target = table([0.0, 5.0, 3.0]), torch.tensor([2])
    # Below the largest by 5, 0 and 2: with a margin of 1.5, 3.5 and 0.5 are too far.
    expected = cross_entropies(logits, target) + 0.3 * (3.5 + 0.5) / 3
    same(losses("margin_smoothing", logits, target, strength=0.3, margin=1.5), expected)
    pull = table([-1 / 3, 2 / 3, -1 / 3])
    slopes = gradient("margin_smoothing", logits, target, strength=0.3, margin=1.5)
    same(slopes, logits.softmax(-1) - one_hot(target, 3) + 0.3 * pull)
    same(losses("margin_smoothing", logits, target, margin=5.0), cross_entropies(logits, target))


def test_margin_smoothing_without_a_margin_is_maxsup():
    logits, target = random_batch()
    found = losses("margin_smoothing", logits, target, strength=0.3, margin=0)
    same(found, losses("maxsup", logits, target, strength=0.3))


def test_acls_by_hand():
    logits, target = table([0.0, 5.0, 3.0]), torch.tensor([2])
    # The predicted class is 3 above the margin of 2; below it by 5 and 2, of which 3 and 0 are too far.
    penalty = 1.5 * 3**2 + 0.4 * (3**2 + 0) / 2
    options: dict[str, Any] = {"strength": 0.3, "predicted_strength": 1.5, "others_strength": 0.4, "margin": 2.0}
    same(losses("acls", logits, target, **options), cross_entropies(logits, target) + 0.3 * penalty)
    # The maximum has a gradient in its own term alone.
    pull = table([-0.4 * 2 * 3 / 2, 1.5 * 2 * 3, 0.0])
    same(gradient("acls", logits, target, **options), logits.softmax(-1) - one_hot(target, 3) + 0.3 * pull)
    soft = random_target(logits)
    same(losses("acls", logits, soft, **options), cross_entropies(logits, soft) + 0.3 * penalty)


def test_acls_by_default_and_with_a_shared_maximum():
    logits, target = table([12.0, 12.0, -1.0]), torch.tensor([0])
    penalty = 1.0 * (2**2 + 2**2) + 0.1 * 3**2 / 2
    same(losses("acls", logits, target), cross_entropies(logits, target) + 0.1 * penalty)


# Smoothing over the classes that occur.


def test_masked_smoothing_by_hand():
    logits, target = random_batch()
    counts = torch.tensor([7, 0, 1, 0, 2])
    smoothed = 0.7 * one_hot(target) + 0.3 * table([1.0, 0.0, 1.0, 0.0, 1.0]) / 3
    found = losses("masked_smoothing", logits, target, counts=counts, epsilon=0.3)
    same(found, -(smoothed * logits.log_softmax(-1)).sum(-1))
    soft = random_target(logits)
    smoothed = 0.7 * soft + 0.3 * table([1.0, 0.0, 1.0, 0.0, 1.0]) / 3
    found = losses("masked_smoothing", logits, soft, counts=counts, epsilon=0.3)
    same(found, -(smoothed * logits.log_softmax(-1)).sum(-1))


def test_masked_smoothing_is_label_smoothing_where_all_classes_occur():
    logits, target = random_batch()
    found = losses("masked_smoothing", logits, target, counts=torch.tensor([7, 1, 1, 30, 2]), epsilon=0.3)
    same(found, F.cross_entropy(logits, target, label_smoothing=0.3, reduction="none"))


# The cross-entropy bent.


def test_focal_by_hand():
    logits = table([0.6, 0.3, 0.1]).log()
    same(losses("focal", logits, torch.tensor([1])), table([-(0.7**2) * math.log(0.3)])[0])
    soft = table([0.5, 0.2, 0.3])
    expected = -(0.5 * 0.4**3 * math.log(0.6) + 0.2 * 0.7**3 * math.log(0.3) + 0.3 * 0.9**3 * math.log(0.1))
    same(losses("focal", logits, soft, gamma=3), table([expected])[0])


def test_focal_without_gamma_is_cross_entropy():
    logits, target = random_batch()
    same(losses("focal", logits, target, gamma=0), cross_entropies(logits, target))


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
def test_focal_of_a_certain_prediction_has_no_gradient_and_no_nan(gamma):
    logits = torch.tensor([[200.0, 0.0, 0.0]])
    assert not losses("focal", logits, torch.tensor([0]), gamma=gamma).any()
    assert not gradient("focal", logits, torch.tensor([0]), gamma=gamma).any()


def test_poly1_by_hand():
    logits = table([0.6, 0.3, 0.1]).log()
    same(losses("poly1", logits, torch.tensor([1])), table([-math.log(0.3) + 2 * 0.7])[0])
    soft = table([0.5, 0.2, 0.3])
    missed = 0.5 * 0.4 + 0.2 * 0.7 + 0.3 * 0.9
    expected = cross_entropies(logits, soft) - 0.5 * missed
    same(losses("poly1", logits, soft, strength=-0.5), expected)


# The model's own say.


def test_soft_bootstrapping_by_hand_and_through_its_label():
    logits, target = random_batch()
    p = logits.softmax(-1)
    own = -(p * p.log()).sum(-1)
    same(losses("bootstrapping", logits, target), 0.95 * cross_entropies(logits, target) + 0.05 * own)
    # dH/dz_k = -p_k (log p_k + H)
    expected = 0.7 * (p - one_hot(target)) - 0.3 * p * (p.log() + own.unsqueeze(-1))
    same(gradient("bootstrapping", logits, target, alpha=0.3), expected)


def test_soft_bootstrapping_with_a_constant_label_would_do_nothing():
    logits, target = random_batch()
    stopped = logits.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(labo_cross_entropy(stopped, target, alpha=0.3, beta=1.0, reduction="sum"), stopped)
    plain = 0.7 * (logits.softmax(-1) - one_hot(target))
    same(slopes, plain)
    assert not torch.allclose(gradient("bootstrapping", logits, target, alpha=0.3), plain, atol=1e-3)


def test_hard_bootstrapping_is_labo_at_beta_to_0():
    logits, target = random_batch()
    logits[0, :2] = 9.0  # two classes that share the maximum
    found = losses("bootstrapping", logits, target, kind="hard")
    same(found, labo_cross_entropy(logits, target, alpha=0.2, beta=1e-9, reduction="none"), rtol=1e-7, atol=1e-7)
    predicted = one_hot(logits.argmax(-1))
    predicted[0] = table([0.5, 0.5, 0.0, 0.0, 0.0])
    smoothed = 0.8 * one_hot(target) + 0.2 * predicted
    same(found, -(smoothed * logits.log_softmax(-1)).sum(-1))
    same(gradient("bootstrapping", logits, target, kind="hard"), logits.softmax(-1) - smoothed)


# What is refused.


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("generalized_entropy", {"skew": 1.1}, r"`skew` to be in \[0, 1\], but got 1.1"),
        ("generalized_entropy", {"strength": math.inf}, r"`strength` to be a number in \[0, inf\), but got inf"),
        ("tf_kd_reg", {"alpha": -0.1}, "`alpha`"),
        ("tf_kd_reg", {"temperature": 0}, "`temperature` to be above 0"),
        ("tf_kd_reg", {"multiplier": -1}, "`multiplier`"),
        ("tf_kd_reg", {"convention": "mean"}, "Unknown convention 'mean'"),
        ("zipf_smoothing", {"strength": True}, "`strength`"),
        ("zipf_smoothing", {"ranking": "votes"}, "Unknown ranking 'votes'"),
        ("zipf_smoothing", {"gold_ranked": 1}, "`gold_ranked` to be True or False, but got 1"),
        ("maxsup", {"strength": "cosine"}, "`strength` to be a number or 'linear', but got 'cosine'"),
        ("maxsup", {"strength": -0.1}, "`strength`"),
        ("margin_smoothing", {"margin": -1}, "`margin`"),
        ("margin_smoothing", {"strength": math.nan}, "`strength`"),
        ("acls", {"predicted_strength": -1}, "`predicted_strength`"),
        ("acls", {"others_strength": None}, "`others_strength`"),
        ("masked_smoothing", {"epsilon": 2}, "`epsilon`"),
        ("focal", {"gamma": -1}, "`gamma`"),
        ("poly1", {"strength": -1.5}, r"`strength` to be a number in \[-1, inf\), but got -1.5"),
        ("bootstrapping", {"kind": "firm"}, "Unknown kind 'firm'"),
        ("bootstrapping", {"alpha": 1.5}, "`alpha`"),
    ],
)
def test_options_out_of_range_are_named(name, options, told):
    with pytest.raises(ValueError, match=told):
        regularizers.create(name, **options)


def test_masked_smoothing_needs_counts_of_these_classes():
    logits, target = random_batch()
    with pytest.raises(UserError, match="'masked_smoothing' needs class_counts: call"):
        losses("masked_smoothing", logits, target)
    with pytest.raises(ValueError, match="5 classes"):
        losses("masked_smoothing", logits, target, counts=torch.ones(3))
    with pytest.raises(ValueError, match="none negative and not all 0"):
        losses("masked_smoothing", logits, target, counts=torch.zeros(5))
