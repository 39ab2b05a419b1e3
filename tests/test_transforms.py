"""Differentiation of any order, torch.func, torch.compile and autocast."""

from __future__ import annotations

import math

import pytest
import torch

import labo
from labo import labo_cross_entropy


@pytest.fixture
def leaves():
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    alpha, beta = (torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(2))
    prior = torch.rand(5, generator=generator, dtype=torch.float64)
    return tuple(t.requires_grad_() for t in (z, alpha * 0.8 + 0.1, beta * 30 + 0.3, prior))


def rows(z, alpha, beta, prior):
    y = torch.tensor([0, 4, -100, 2])
    return labo_cross_entropy(z, y, alpha=alpha, beta=beta, prior=prior / prior.sum(), reduction="none")


def test_first_and_second_derivatives(leaves):
    assert torch.autograd.gradcheck(rows, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(rows, leaves)


def test_derivatives_with_a_masked_class_and_infinite_beta(leaves):
    z, alpha, beta, prior = (t.detach().clone() for t in leaves)
    mask = torch.zeros_like(z)
    mask[1, 2] = -math.inf
    beta[0] = math.inf
    tensors = (z.requires_grad_(), alpha.requires_grad_(), prior.requires_grad_())
    assert torch.autograd.gradcheck(lambda z, a, r: rows(z + mask, a, beta, r), tensors)
    assert torch.autograd.gradgradcheck(lambda z, a, r: rows(z + mask, a, beta, r), tensors)


def test_functional_transforms(leaves):
    z, alpha, beta, prior = (t.detach() for t in leaves)
    expected = torch.autograd.functional.hessian(lambda x: rows(x, alpha, beta, prior).sum(), z)
    torch.testing.assert_close(torch.func.hessian(lambda x: rows(x, alpha, beta, prior).sum())(z), expected)

    def one(x, y, a, b):
        return labo_cross_entropy(x, y, alpha=a, beta=b)

    y = torch.tensor([0, 4, 1, 2])
    per_example = torch.func.vmap(torch.func.grad(one))(z, y, alpha, beta)
    for i in range(4):
        torch.testing.assert_close(per_example[i], torch.func.grad(one)(z[i], y[i], alpha[i], beta[i]))


def test_linear_form_under_transforms():
    h, w, y = torch.randn(6, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 4, -100])

    def loss(w):
        return labo.linear_labo_cross_entropy(h, w, y)

    leaf = w.clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    torch.testing.assert_close(torch.func.grad(loss)(w), expected)


def test_autocast_gives_a_float32_loss_as_torch_does():
    z, y = torch.randn(4, 5, dtype=torch.bfloat16, requires_grad=True), torch.tensor([0, 4, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = labo_cross_entropy(z, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, labo_cross_entropy(z.float(), y))
    assert torch.autograd.grad(loss, z)[0].dtype == torch.bfloat16
