"""The loss against multi-precision truth, by the tolerances that docs/math.md states."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import labo
import truth

BETAS = (1e-3, 0.1, 0.5, 1.0, 2.0, 4.0, 30.0, 1e3, 1e4, 1e6, math.inf)


def ours(z, y, alpha, beta, prior=None, **options):
    z = z.clone().requires_grad_()
    losses = labo.labo_cross_entropy(z, y, alpha=alpha, beta=beta, prior=prior, reduction="none", **options)
    (grad,) = torch.autograd.grad(losses.sum(), z)
    return losses.detach(), grad


def assert_close_to_truth(z, y, alpha, beta, prior=None, **options):
    losses, grads = ours(z, y, alpha, beta, prior, **options)
    true_losses, true_grads = truth.rows(z, y, alpha, beta, prior)
    error = (losses.double() - true_losses).abs() / true_losses.abs().clamp(min=1)
    assert error.max() <= 1e-5, (beta, alpha, error)
    off = (grads.double() - true_grads).norm(dim=-1) / true_grads.norm(dim=-1).clamp(min=1)
    assert off.max() <= 1e-5, (beta, alpha, off)


@given(
    st.integers(2, 60),
    st.sampled_from(BETAS),
    st.sampled_from((0.0, 0.1, 0.8, 1.0)),
    st.sampled_from((0.1, 1.0, 30.0, 100.0)),
    st.sampled_from((None, "random", "peaked", "excludes the best")),
    st.integers(0, 10_000),
)
def test_accurate_up_to_logits_of_100(classes, beta, alpha, scale, prior_kind, seed):
    generator = torch.Generator().manual_seed(seed)
    z = ((torch.rand(3, classes, generator=generator) * 2 - 1) * scale).float()
    y = torch.randint(classes, (3,), generator=generator)
    prior = None
    if prior_kind:
        prior = torch.rand(classes, generator=generator, dtype=torch.float64) + 1e-3
        if prior_kind == "peaked":
            prior = prior**12
        if prior_kind == "excludes the best":
            prior[z[0].argmax()] = 0
        prior = prior / prior.sum()
    assert_close_to_truth(z, y, alpha, beta, prior, impl="reference")


@given(st.sampled_from(BETAS), st.sampled_from((1e3, 1e4)), st.integers(2, 40), st.integers(0, 10_000))
def test_beyond_100_no_worse_than_twice_torch(beta, scale, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** (torch.rand((), generator=generator) * 4).item()
    z = ((torch.rand(4, classes, generator=generator) * 2 - 1) * min(spread, scale)).float()
    z = z + scale * torch.sign(torch.randn((), generator=generator))  # an offset on top
    y = torch.randint(classes, (4,), generator=generator)
    for alpha in (0.1, 1.0):
        losses, grads = ours(z, y, alpha, beta)
        true_losses, true_grads = truth.rows(z, y, alpha, beta)
        smoothed_truth = truth.rows(z, y, alpha, math.inf)[0]
        torch_error = (F.cross_entropy(z, y, label_smoothing=alpha, reduction="none").double() - smoothed_truth).abs()
        allowed = torch.maximum(1e-5 * true_losses.abs().clamp(min=1), 2 * torch_error)
        assert ((losses.double() - true_losses).abs() <= allowed).all(), (alpha, beta)
        assert (grads.double() - true_grads).norm(dim=-1).max() <= 1e-5 * max(1, true_grads.norm(dim=-1).max())


@pytest.mark.parametrize("beta", [2.0, pytest.param(1e4, marks=pytest.mark.slow), 1e6])
def test_accurate_with_fifty_thousand_classes(impl, beta):
    z = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0)) * 3
    assert_close_to_truth(z, torch.tensor([7]), 0.3, beta, impl=impl)


def test_one_far_class_among_many_does_not_cancel(impl):
    # lse of the scaled logits is near 0 although their range is wide: the plain form loses all digits here.
    z = torch.zeros(1, 20_000)
    z[0, 5] = -1e4
    assert_close_to_truth(z, torch.tensor([0]), 1.0, 1e4, impl=impl)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("prior", [None, (0.2, 0.3, 0.5, 0.0)])
def test_masked_logits(impl, beta, prior):
    z = torch.tensor([[1.0, -math.inf, 0.5, 3.0], [-math.inf, 0.0, -math.inf, 2.0]])
    prior = None if prior is None else torch.tensor(prior, dtype=torch.float64)
    assert_close_to_truth(z, torch.tensor([0, 1]), 0.4, beta, prior, impl=impl)


def test_prior_that_excludes_the_largest_logit(impl):
    z, prior = torch.tensor([[1000.0, 0.0, 0.0]]), torch.tensor([0.0, 0.5, 0.5])
    assert_close_to_truth(z, torch.tensor([0]), 0.5, 1.0, prior, impl=impl)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", [0.5, 2.0, math.inf])
def test_half_precision_accumulates_in_float32_and_rounds_once(impl, dtype, beta):
    z = (torch.randn(6, 3000, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    y = torch.arange(6)
    wide = ours(z.float(), y, 0.2, beta, impl=impl)
    half = ours(z, y, 0.2, beta, impl=impl)
    assert half[0].dtype == half[1].dtype == dtype
    torch.testing.assert_close(half[0], wide[0].to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(half[1], wide[1].to(dtype), rtol=0, atol=0)


@given(st.sampled_from((0.5, 2.0, 50.0, 1e4, 1e6)), st.integers(0, 1000))
def test_gradient_in_beta_is_the_divergence_and_never_negative(beta, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1, 9, generator=generator) * 5
    b = torch.tensor(beta, requires_grad=True)
    (slope,) = torch.autograd.grad(labo.inner_value(z, beta=b).sum(), b)
    row = z[0].double().tolist()
    q = truth.labels(row, beta, None)
    expected = float(truth.mp.fsum(v * truth.mp.log(v * 9) for v in q if v > 0))
    assert slope >= 0
    assert slope.item() == pytest.approx(expected, rel=1e-4, abs=1e-30)
