"""Sparse labels beside the numerical solver, their value and gradient, and what they are refused for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("entmax")

from labo import LabelRegularizedLoss, inner, regularizers, sparse
from labo.errors import UserError

NAMES = tuple(sparse.EXPONENTS)
each = pytest.mark.parametrize("name", NAMES)


def divergence(name: str) -> Any:
    """D(q || r) of sum(q ** a) / (a (a - 1)) by its definition, phi(q) - phi(r) - <phi'(r), q - r>."""
    if name == "sparsemax":
        return lambda q, r: 0.5 * (q * q - r * r - 2 * r * (q - r)).sum(-1)
    return lambda q, r: (4 / 3 * (q * q.sqrt() - r * r.sqrt()) - 2 * r.sqrt() * (q - r)).sum(-1)


def problem(rows: int = 5, classes: int = 6, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """(logits, a prior for each row) in float64."""
    draw = torch.Generator().manual_seed(1)
    z = spread * torch.randn(rows, classes, generator=draw, dtype=torch.float64)
    return z, torch.rand(rows, classes, generator=draw, dtype=torch.float64).add(0.05).div_(1).softmax(-1)


def labels(z: Tensor, beta: float, prior: Tensor | None, name: str) -> Tensor:
    return sparse.labels_of_rows(z, inner.over_rows("beta", beta, z), prior, name)


def value(z: Tensor, beta: Any, prior: Tensor | None, name: str, **options: Any) -> Tensor:
    return sparse.value_of_rows(z, inner.over_rows("beta", beta, z), prior, name, **options)


@each
@pytest.mark.parametrize("kind", ["uniform", "each example"])
def test_the_closed_form_is_what_the_solver_finds(name, kind):
    z, priors = problem(rows=3, classes=4)
    prior, beta = None if kind == "uniform" else priors, 6.0 if name == "sparsemax" else 3.0
    expected = inner.solve(z, beta=beta, prior=prior, divergence=divergence(name), tolerance=1e-6)
    found = labels(z, beta, prior, name)
    assert bool((found == 0).any())
    assert (found - expected).abs().max() < 1e-4
    r = torch.full_like(z, 1 / 4) if prior is None else prior
    cost = -(expected * z.log_softmax(-1)).sum(-1) + beta * divergence(name)(expected, r)
    torch.testing.assert_close(value(z, beta, prior, name), cost, atol=1e-4, rtol=0)


@each
@pytest.mark.parametrize("beta", [0.3, 2.0, 30.0])
@pytest.mark.parametrize("kind", ["uniform", "one", "each example"])
def test_the_closed_form_meets_the_conditions_of_the_optimum(name, beta, kind):
    """Where q > 0 the derivatives of CE(q, p) + beta * D(q || r) are equal, and elsewhere no smaller (KKT)."""
    z, priors = problem()
    prior = {"uniform": None, "one": priors[0], "each example": priors}[kind]
    q = labels(z, beta, prior, name)
    r = torch.full_like(z, 1 / 6) if prior is None else prior.expand_as(z)
    difference = q - r if name == "sparsemax" else 2 * (q.sqrt() - r.sqrt())
    slopes = -z.log_softmax(-1) + beta * difference
    lowest = slopes.amin(-1, keepdim=True)
    torch.testing.assert_close(torch.where(q > 0, slopes, lowest), lowest.expand_as(q), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(q.sum(-1), torch.ones(5).double())
    assert bool((q >= 0).all())


@each
def test_the_value_is_the_least_and_its_gradient_is_p_minus_the_label(name):
    z, prior = problem()
    z.requires_grad_()
    beta = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, beta: value(z, beta, prior, name), (z, beta))
    (grad,) = torch.autograd.grad(value(z, beta, prior, name).sum(), z)
    torch.testing.assert_close(grad, z.softmax(-1) - labels(z, 3.0, prior, name))
    (plugin,) = torch.autograd.grad(value(z, beta, prior, name, plugin=True).sum(), z)
    torch.testing.assert_close(plugin, grad)
    q = labels(z, 3.0, prior, name)
    for other in (prior, z.softmax(-1).detach(), torch.full_like(q, 1 / 6), 0.99 * q + 0.01 / 6):
        cost = -(other * z.log_softmax(-1)).sum(-1) + beta * divergence(name)(other, prior)
        assert bool((cost >= value(z, beta, prior, name)).all())


@each
def test_limits_shifts_and_masks(name):
    z, prior = problem()
    torch.testing.assert_close(labels(z, math.inf, prior, name), prior)
    torch.testing.assert_close(labels(z, 1e9, prior, name), prior, atol=1e-6, rtol=0)
    torch.testing.assert_close(labels(z, 2.0, prior, name), labels(z + 7, 2.0, prior, name))
    torch.testing.assert_close(value(z, 2.0, prior, name), value(z + 7, 2.0, prior, name))
    assert torch.equal(labels(z, 1e-3, prior, name).argmax(-1), z.argmax(-1))
    masked = z.clone()
    masked[:, 2] = -math.inf
    kept = [0, 1, 3, 4, 5]
    found = labels(masked, 2.0, prior, name)
    assert bool((found[:, 2] == 0).all())
    short = prior[:, kept] / prior[:, kept].sum(-1, keepdim=True)
    torch.testing.assert_close(found[:, kept], labels(z[:, kept], 2.0, short, name))
    torch.testing.assert_close(value(masked, 2.0, prior, name), value(z[:, kept], 2.0, short, name))
    assert bool(value(torch.full_like(z, -math.inf), 2.0, prior, name).isinf().all())


@each
def test_the_member_mixes_its_label_with_the_target(name):
    z, _ = problem()
    target = torch.tensor([0, 5, 2, -100, 1])
    z = z.requires_grad_()
    prior = torch.tensor([0.3, 0.2, 0.2, 0.1, 0.1, 0.1], dtype=torch.float64)
    member = regularizers.create(f"labo[labels={name}]", alpha=0.4, beta=2.0, prior=prior.tolist())
    loss = LabelRegularizedLoss(member, reduction="sum")(z, target)
    (grad,) = torch.autograd.grad(loss, z)
    one_hot = torch.nn.functional.one_hot(target.clamp(min=0), 6)
    expected = z.softmax(-1) - 0.6 * one_hot - 0.4 * labels(z, 2.0, prior, name)
    expected[3] = 0
    torch.testing.assert_close(grad, expected)
    assert member.options()["labels"] == name
    again = regularizers.create("labo", **member.options())
    torch.testing.assert_close(LabelRegularizedLoss(again, reduction="sum")(z, target), loss)


@each
def test_with_a_memory_each_example_has_its_prior(name):
    z, _ = problem()
    options = {"prior": "memory", "labels": name, "alpha": 0.5, "beta": 2.0, "sharpness": 1.0, "epsilon": 0.0}
    member = regularizers.create("labo", **options, decay=0.5)
    member.provide(examples=5)
    loss, indices, target = LabelRegularizedLoss(member, reduction="sum"), torch.arange(5), torch.arange(5)
    loss(z, target, indices=indices)
    memory = 0.5 / 6 + 0.5 * z.softmax(-1)  # in half precision
    memory = memory / memory.mean(0)  # the labels are all different
    memory = memory / memory.sum(-1, keepdim=True)
    z = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(z, target, indices=indices), z)
    expected = z.softmax(-1) - 0.5 * torch.eye(6, dtype=torch.float64)[target] - 0.5 * labels(z, 2.0, memory, name)
    torch.testing.assert_close(grad, expected, atol=2e-3, rtol=0)


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(UserError, match="Unknown kind of label 'sparse'; the nearest is 'sparsemax'"):
        regularizers.create("labo", labels="sparse")
    with pytest.raises(UserError, match='does not apply with prior="channel", whose labels are fixed'):
        regularizers.create("labo", labels="entmax", prior="channel")
    with pytest.raises(UserError, match="has no gradient in the prior"):
        regularizers.create("labo", labels="entmax", prior=torch.full((4,), 0.25, requires_grad=True))
    loss = LabelRegularizedLoss(regularizers.create("labo[labels=sparsemax]"))
    with pytest.raises(UserError, match="needs the full logits, so its loss cannot be computed from hidden states"):
        loss.linear(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))
    monkeypatch.setattr(sparse, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="Labels 'entmax' need the package entmax: pip install entmax"):
        regularizers.create("labo", labels="entmax")


def test_softmax_is_the_default_and_is_not_recorded():
    assert "labels" not in regularizers.describe("labo").defaults
    assert "labels" not in regularizers.create("labo", labels="softmax").options()
    assert regularizers.describe("labo[labels=sparsemax]").defaults["labels"] == "sparsemax"
