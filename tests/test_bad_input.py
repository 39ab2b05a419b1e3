"""One clear sentence for every argument that does not fit, naming it."""

from __future__ import annotations

import math

import pytest
import torch

import labo

Z, Y = torch.zeros(2, 3), torch.tensor([0, 2])
NAN = math.nan


@pytest.mark.parametrize(
    ("options", "error", "names"),
    [
        ({"alpha": -0.1}, ValueError, "alpha"),
        ({"alpha": 1.1}, ValueError, "alpha"),
        ({"alpha": NAN}, ValueError, "alpha"),
        ({"alpha": torch.tensor([0.5, NAN])}, ValueError, "alpha"),
        ({"alpha": "0.1"}, TypeError, "alpha"),
        ({"alpha": torch.zeros(3)}, ValueError, "alpha"),
        ({"beta": 0.0}, ValueError, "beta"),
        ({"beta": -1.0}, ValueError, "beta"),
        ({"beta": NAN}, ValueError, "beta"),
        ({"beta": torch.tensor([1.0, 0.0])}, ValueError, "beta"),
        ({"beta": torch.ones(5)}, ValueError, "beta"),
        ({"prior": torch.tensor([0.5, 0.7, -0.2])}, ValueError, "prior"),
        ({"prior": torch.tensor([0.5, 0.5])}, ValueError, "prior"),
        ({"prior": torch.tensor([0.5, 0.5, 0.5])}, ValueError, "prior"),
        ({"prior": torch.tensor([NAN, 0.5, 0.5])}, ValueError, "prior"),
        ({"prior": torch.tensor([1, 0, 0])}, TypeError, "prior"),
        ({"weight": torch.ones(2)}, ValueError, "weight"),
        ({"reduction": "average"}, ValueError, "reduction"),
        ({"value": "outer"}, ValueError, "value"),
        ({"impl": "refrence"}, ValueError, "reference"),
        ({"value": "plugin", "beta": torch.tensor(2.0, requires_grad=True)}, ValueError, "beta"),
    ],
)
def test_options(options, error, names):
    with pytest.raises(error, match=names):
        labo.labo_cross_entropy(Z, Y, **options)


@pytest.mark.parametrize(
    ("input", "target", "error", "names"),
    [
        (Z, torch.tensor([0, 3]), ValueError, r"`target`.*\[0, 3\).*3"),
        (Z, torch.tensor([0, -1]), ValueError, "`target`.*-1"),
        (Z, torch.tensor([0.0, 1.0]), TypeError, "`target`.*integer class indices"),
        (Z, torch.tensor([0, 1, 2]), ValueError, "`target`"),
        (Z, torch.zeros(2, 3), ValueError, "`target`.*sum to 1"),
        (Z, torch.zeros(2, 3, dtype=torch.long), ValueError, "`target`"),
        (Z, torch.tensor([True, False]), TypeError, "`target`"),
        (Z.long(), Y, TypeError, "`input`.*floating point"),
        (torch.tensor(1.0), torch.tensor(0), ValueError, "`input`"),
    ],
)
def test_logits_and_targets(input, target, error, names):
    with pytest.raises(error, match=names):
        labo.labo_cross_entropy(input, target)


def test_linear_shapes():
    with pytest.raises(ValueError, match="`linear_weight`"):
        labo.linear_labo_cross_entropy(torch.zeros(2, 4), torch.zeros(3, 5), Y)
    with pytest.raises(ValueError, match="`linear_bias`"):
        labo.linear_labo_cross_entropy(torch.zeros(2, 4), torch.zeros(3, 4), Y, linear_bias=torch.zeros(4))


def test_label_smoothing_is_refused_with_a_word_on_beta():
    with pytest.raises(TypeError, match=r"label_smoothing.*beta"):
        labo.LABOLoss(label_smoothing=0.1)
    with pytest.raises(ValueError, match="alpha"):
        labo.LABOLoss(alpha=2.0)


def test_labels_of_your_own_are_checked():
    with pytest.raises(ValueError, match="`labels`"):
        labo.label_regularized_cross_entropy(Z, Y, torch.zeros(2, 4), alpha=0.1)
    with pytest.raises(ValueError, match=r"`labels`.*sum to 1"):
        labo.label_regularized_cross_entropy(Z, Y, torch.zeros(2, 3), alpha=0.1)


def test_a_prior_does_not_widen_the_result():
    prior = torch.full((5, 3), 1 / 3)
    for solved in (labo.optimal_labels, labo.inner_value):
        with pytest.raises(ValueError, match="argument `prior` to broadcast over the rows"):
            solved(torch.zeros(3), beta=2.0, prior=prior)
    assert labo.optimal_labels(torch.zeros(5, 3), beta=2.0, prior=prior).shape == (5, 3)


@pytest.mark.parametrize("impl", ["auto", *labo.implementations()])
def test_a_prior_on_another_device_is_told_by_every_implementation(impl):
    prior = torch.full((5,), 0.2, device="meta")
    with pytest.raises(ValueError, match="argument `prior` on cpu"):
        labo.labo_cross_entropy(torch.zeros(2, 5), torch.tensor([0, 1]), prior=prior, impl=impl)
