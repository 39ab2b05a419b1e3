"""Shapes, reductions, masks, weights and corners, beside torch's own cross-entropy where the two must agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import labo
from labo import labo_cross_entropy

INF = math.inf


def batch(*shape, classes=7, ignored=True, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(shape[0], classes, *shape[1:], generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(classes, shape, generator=generator)
    if ignored:
        y[torch.rand(shape, generator=generator) < 0.2] = -100
    return z.requires_grad_(), y


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_infinite_beta_is_label_smoothing(impl, shape, reduction, alpha):
    z, y = batch(*shape)
    mine = labo_cross_entropy(z, y, alpha=alpha, beta=INF, reduction=reduction, impl=impl)
    theirs = F.cross_entropy(z, y, label_smoothing=alpha, reduction=reduction)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), z)[0] for loss in (mine, theirs)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_alpha_zero_is_weighted_cross_entropy(impl, reduction):
    z, y = batch(4, 3)
    weight = torch.rand(7, dtype=torch.float64)
    mine = labo_cross_entropy(z, y, alpha=0, weight=weight, reduction=reduction, impl=impl)
    torch.testing.assert_close(mine, F.cross_entropy(z, y, weight=weight, reduction=reduction))


def test_class_weight_multiplies_the_whole_example(impl):
    z, y = batch(6, ignored=False)
    weight = torch.rand(7, dtype=torch.float64)
    plain = labo_cross_entropy(z, y, alpha=0.3, reduction="none", impl=impl)
    expected = (plain * weight[y]).sum() / weight[y].sum()
    torch.testing.assert_close(labo_cross_entropy(z, y, alpha=0.3, weight=weight, impl=impl), expected)


def test_unbatched(impl):
    z, y = torch.randn(5), torch.tensor(2)
    mine = labo_cross_entropy(z, y, alpha=0.2, beta=3.0, impl=impl)
    torch.testing.assert_close(mine, labo_cross_entropy(z[None], y[None], alpha=0.2, beta=3.0, impl=impl))
    assert labo_cross_entropy(z, y, reduction="none", impl=impl).shape == ()


def test_unit_beta_with_uniform_prior_scales_the_gradient_of_cross_entropy(impl):
    z, y = batch(5)
    mine = torch.autograd.grad(labo_cross_entropy(z, y, alpha=0.3, beta=1.0, impl=impl), z)[0]
    torch.testing.assert_close(mine, 0.7 * torch.autograd.grad(F.cross_entropy(z, y), z)[0])


@pytest.mark.parametrize("beta", [0.3, 2.0, INF])
def test_a_masked_batch_equals_the_filtered_batch_whatever_it_holds(impl, beta):
    z, y = batch(30)
    y[0] = -100
    spoiled = z.detach().clone()
    spoiled[y == -100] = math.nan
    spoiled[0] = INF
    spoiled.requires_grad_()
    mine = labo_cross_entropy(spoiled, y, alpha=0.2, beta=beta, impl=impl)
    filtered = labo_cross_entropy(z[y >= 0], y[y >= 0], alpha=0.2, beta=beta, impl=impl)
    torch.testing.assert_close(mine, filtered)
    grad = torch.autograd.grad(mine, spoiled)[0]
    assert (grad[y == -100] == 0).all()
    torch.testing.assert_close(grad[y >= 0], torch.autograd.grad(filtered, z)[0][y >= 0])


@pytest.mark.parametrize("case", ["empty", "all ignored", "no weight"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_kept_gives_zero_connected_to_the_graph(impl, case, reduction):
    z = torch.randn(0 if case == "empty" else 3, 4, requires_grad=True)
    y = torch.full(z.shape[:1], -100 if case == "all ignored" else 1)
    weight = torch.zeros(4) if case == "no weight" else None
    loss = labo_cross_entropy(z, y, weight=weight, reduction=reduction, impl=impl)
    assert loss == 0
    assert (torch.autograd.grad(loss, z)[0] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_probability_targets(impl, reduction, weighted):
    z, _ = batch(4, 3)
    t = torch.randn(4, 7, 3, dtype=torch.float64).softmax(1)
    weight = torch.rand(7, dtype=torch.float64) if weighted else None
    plain = labo_cross_entropy(z, t, alpha=0, weight=weight, reduction=reduction, impl=impl)
    torch.testing.assert_close(plain, F.cross_entropy(z, t, weight=weight, reduction=reduction))
    mine = labo_cross_entropy(z, t, alpha=0.3, beta=2.0, weight=weight, reduction="none", impl=impl)
    mass = (t if weight is None else t * weight[None, :, None]).sum(1)
    data = F.cross_entropy(z, t, weight=weight, reduction="none")
    torch.testing.assert_close(mine, 0.7 * data + 0.3 * labo.inner_value(z, beta=2.0, dim=1) * mass)


def test_alpha_and_beta_per_row(impl):
    z, y = batch(4, 3)
    alpha, beta = torch.rand(4, 1, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64) * 5 + 0.1
    beta[0, 0] = INF
    mine = labo_cross_entropy(z, y, alpha=alpha, beta=beta, reduction="none", impl=impl)
    for i in range(4):
        for j in range(3):
            one = labo_cross_entropy(z[i, :, j], y[i, j], alpha=alpha[i, 0].item(), beta=beta[i, j].item(), impl=impl)
            torch.testing.assert_close(mine[i, j], one)


def test_masked_target_as_torch_has_it(impl):
    z = torch.tensor([[-INF, 0.0, 1.0]], requires_grad=True)
    loss = labo_cross_entropy(z, torch.tensor([0]), alpha=0.1, impl=impl)
    assert loss == INF
    grad = torch.autograd.grad(loss, z)[0]
    assert grad[0, 0].item() == pytest.approx(-0.9)
    assert grad.isfinite().all()
    one = labo_cross_entropy(z, torch.tensor([0]), alpha=1.0, impl=impl)
    assert one.isfinite()
    assert torch.autograd.grad(one, z)[0].isfinite().all()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_infeasible_prior_is_infinite_unless_left_out(impl, as_tensor):
    z, y, prior = torch.tensor([[-INF, 0.0, 1.0]]), torch.tensor([1]), torch.tensor([1.0, 0.0, 0.0])
    assert labo_cross_entropy(z, y, alpha=0.1, prior=prior, impl=impl) == INF
    zero = torch.zeros(1) if as_tensor else 0.0
    torch.testing.assert_close(labo_cross_entropy(z, y, alpha=zero, prior=prior, impl=impl), F.cross_entropy(z, y))


@pytest.mark.parametrize("beta", [0.5, 2.0, INF])
def test_plugin_value(impl, beta):
    z, y = batch(5, ignored=False)
    prior = torch.rand(7, dtype=torch.float64)
    prior /= prior.sum()
    inner, plugin = (
        labo_cross_entropy(z, y, alpha=0.4, beta=beta, prior=prior, reduction="none", value=v, impl=impl)
        for v in ("inner", "plugin")
    )
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), z)[0] for loss in (inner, plugin)))
    q = labo.optimal_labels(z, beta=beta, prior=prior)
    divergence = 0 if math.isinf(beta) else beta * (q * (q / prior).log()).sum(-1)
    torch.testing.assert_close(plugin, inner - 0.4 * divergence)


def test_the_value_is_the_least_of_the_inner_objective():
    z = torch.randn(50, 6, dtype=torch.float64)
    prior = torch.rand(6, dtype=torch.float64)
    prior /= prior.sum()
    q = torch.randn(50, 6, dtype=torch.float64).softmax(-1)
    log_p = z.log_softmax(-1)
    for beta in (0.2, 1.0, 5.0):
        objective = -(q * log_p).sum(-1) + beta * (q * (q / prior).log()).sum(-1)
        assert (objective >= labo.inner_value(z, beta=beta, prior=prior)).all()


def test_shift_invariance_and_rows_of_the_gradient_sum_to_zero(impl):
    z, y = batch(5)
    loss = labo_cross_entropy(z, y, alpha=0.3, beta=3.0, impl=impl)
    torch.testing.assert_close(loss, labo_cross_entropy(z + 100, y, alpha=0.3, beta=3.0, impl=impl))
    assert torch.autograd.grad(loss, z)[0].sum(-1).abs().max() < 1e-15


def test_noncontiguous_logits_are_left_as_they_are(impl):
    z = torch.randn(7, 10).t()
    before, y = z.clone(), torch.arange(10) % 7
    labo_cross_entropy(z.requires_grad_(), y, impl=impl).backward()
    torch.testing.assert_close(z.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(
        z.grad, torch.func.grad(lambda x: labo_cross_entropy(x, y, impl="reference"))(before.contiguous())
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
def test_linear_form_equals_the_loss_of_the_product(impl, monkeypatch, bias, probabilities):
    monkeypatch.setattr("labo.last_layer.CHUNK_ELEMENTS", 30)
    h = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    w, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((9, 5), (9,)))
    y = torch.randint(9, (3, 4))
    y[0, 1] = -100
    t = torch.randn(3, 4, 9, dtype=torch.float64).softmax(-1)
    beta, prior = torch.rand(3, 1, dtype=torch.float64) + 1, t[0, 0]
    options = {"alpha": 0.3, "beta": beta, "prior": prior, "impl": impl}
    target, flat = (t, t.flatten(0, 1)) if probabilities else (y, y.flatten())
    chunked = labo.linear_labo_cross_entropy(h, w, target, linear_bias=b if bias else None, **options)
    options["beta"] = beta.expand(3, 4).flatten()
    whole = labo_cross_entropy(F.linear(h, w, b if bias else None).flatten(0, 1), flat, **options)
    torch.testing.assert_close(chunked, whole)
    leaves = (h, w, b) if bias else (h, w)
    for mine, theirs in zip(*(torch.autograd.grad(loss, leaves) for loss in (chunked, whole)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_linear_form_drops_ignored_rows_that_hold_nan(impl):
    h = torch.randn(3, 4)
    h[1] = math.nan
    w = torch.randn(5, 4, requires_grad=True)
    loss = labo.linear_labo_cross_entropy(h.requires_grad_(), w, torch.tensor([1, -100, 2]), impl=impl)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (h, w)))


def test_labels_of_your_own():
    z, y = batch(4, 3)
    q = torch.randn_like(z).softmax(1).requires_grad_()
    mine = labo.label_regularized_cross_entropy(z, y, q, alpha=0.3, reduction="none")
    expected = 0.7 * F.cross_entropy(z, y, reduction="none") + 0.3 * F.cross_entropy(z, q.detach(), reduction="none")
    torch.testing.assert_close(mine, torch.where(y == -100, 0, expected))
    assert torch.autograd.grad(mine.sum(), q, allow_unused=True)[0] is None


def test_beta_and_prior_stay_in_the_graph_where_alpha_is_zero():
    beta = torch.tensor(2.0, requires_grad=True)
    prior = torch.full((4,), 0.25, requires_grad=True)
    loss = labo_cross_entropy(torch.randn(2, 4), torch.tensor([0, 3]), alpha=0.0, beta=beta, prior=prior)
    for slope in torch.autograd.grad(loss, (beta, prior)):
        assert torch.equal(slope, torch.zeros_like(slope))


def test_an_empty_batch_with_a_strength_for_each_row(impl):
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = labo_cross_entropy(
        logits, torch.zeros(0, dtype=torch.long), alpha=torch.zeros(0), beta=torch.ones(0), impl=impl
    )
    assert loss == 0
    assert torch.autograd.grad(loss, logits)[0].shape == (0, 5)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("prior", [None, torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])])
def test_the_smallest_betas_are_hard_labels(impl, as_tensor, prior):
    logits = 30 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    target = torch.arange(6) % 5
    hard = torch.nn.functional.one_hot(logits.argmax(-1), 5).float()
    expected = labo.label_regularized_cross_entropy(logits, target, hard, alpha=0.5)
    (slope,) = torch.autograd.grad(expected, logits)
    for beta in (1e-30, 1e-37, 1e-39, 1e-300):
        given = torch.tensor(beta).clamp(min=1e-45) if as_tensor else beta
        found = labo_cross_entropy(logits, target, alpha=0.5, beta=given, prior=prior, impl=impl)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, logits)[0], slope)
        torch.testing.assert_close(labo.optimal_labels(logits, beta=given, prior=prior), hard)
        best = -torch.log_softmax(logits, -1).amax(-1)
        torch.testing.assert_close(labo.inner_value(logits, beta=given, prior=prior), best)


def test_the_slope_in_beta_of_a_belief_far_from_the_prior():
    logits = torch.tensor([400.0, 0.0, 0.0], dtype=torch.float64)
    prior = torch.tensor([1e-37, 0.5, 0.5], dtype=torch.float64)
    slopes = []
    for dtype in (torch.float64, torch.float32):
        beta = torch.tensor(2.0, dtype=dtype, requires_grad=True)
        value = labo.inner_value(logits.to(dtype), beta=beta, prior=prior.to(dtype))
        slopes.append(torch.autograd.grad(value, beta)[0].double())
    # q* is all but one-hot, so KL(q* || prior) is -log 1e-37
    assert slopes[0].item() == pytest.approx(37 * math.log(10), rel=1e-6)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-5, atol=0)
