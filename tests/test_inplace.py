"""The gradient over the logits' memory, on request, and its scale in one place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import labo
from labo import labo_cross_entropy
from labo.errors import UserError
from labo.kernels import autograd, triton


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(leaf, logits made of it, target), a row ignored."""
    leaf = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    return leaf, leaf * 2, torch.tensor([0, -100, 3, 8, 2, 2])


def test_the_gradient_lies_where_the_logits_were(impl):
    for options in ({}, {"beta": float("inf"), "reduction": "sum"}, {"reduction": "none"}):
        leaf, logits, target = batch()
        given: dict[str, Any] = {"impl": impl, **options}
        (expected,) = torch.autograd.grad(labo_cross_entropy(logits, target, **given).sum(), leaf)
        loss = labo_cross_entropy(logits, target, inplace_backward=True, **given)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        torch.testing.assert_close(grad * 2, expected)
        assert impl == "reference" or grad.data_ptr() == logits.data_ptr()


def test_without_a_gradient_the_logits_stay(impl):
    _, logits, target = batch()
    before = logits.detach().clone()
    with torch.no_grad():
        labo_cross_entropy(logits, target, inplace_backward=True, impl=impl)
    labo_cross_entropy(logits.detach(), target, inplace_backward=True, impl=impl)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_is_refused(dtype, reduction):
    _, logits, target = batch(dtype)
    loss = labo_cross_entropy(logits, target, inplace_backward=True, reduction=reduction, impl="blocked").sum()
    torch.autograd.grad(loss, logits, retain_graph=True)
    with pytest.raises(
        RuntimeError, match=r"single backward pass .* inplace_backward=True .* Use inplace_backward=False"
    ):
        torch.autograd.grad(loss, logits)
    _, logits, target = batch(dtype)
    loss = labo_cross_entropy(logits, target, inplace_backward=True, reduction=reduction, impl="blocked").sum()
    with pytest.raises(RuntimeError, match="not itself differentiated"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_another_user_of_the_logits_is_refused():
    leaf, logits, target = batch()
    for known in (leaf, leaf[:, :]):
        with pytest.raises(UserError, match=r"`input` to come from an operation .* a leaf"):
            labo_cross_entropy(known, target, inplace_backward=True)
    with pytest.raises(UserError, match="an expanded tensor"):
        labo_cross_entropy((leaf[:1] * 2).expand(6, 9), target, inplace_backward=True)
    kept = logits.exp()  # keeps its result for its own backward
    loss = labo_cross_entropy(kept, target, inplace_backward=True, impl="blocked")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif(not triton.interpreted(), reason="on a device it is tested by benchmarks/gpu.py")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_scale_of_1_is_no_pass(dtype):
    grads = torch.randn(70_000, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = grads.clone()
    assert torch.equal(triton.scale_gradient(grads, torch.tensor(1.0)), before)
    scaled = triton.scale_gradient(grads, torch.tensor(0.3))
    assert scaled is grads
    assert torch.equal(scaled, (before.float() * torch.tensor(0.3)).to(dtype))
    assert autograd.scale_gradient(grads, torch.tensor(1.0)) is grads


@pytest.mark.parametrize("linear", [False, True])
def test_logits_may_change_after_the_loss_as_nothing_needs_them(impl, linear):
    """As after `F.cross_entropy`, which keeps no logits either; a second backward pass would need them."""
    if impl == "reference":
        pytest.skip("it keeps what it has computed from")
    leaf, logits, target = batch()
    head = torch.eye(9)

    def loss(z: torch.Tensor) -> torch.Tensor:
        given: dict[str, Any] = {"impl": impl}
        return (
            labo.linear_labo_cross_entropy(z, head, target, **given)
            if linear
            else labo_cross_entropy(z, target, **given)
        )

    (expected,) = torch.autograd.grad(loss(leaf * 2), leaf)
    changed = loss(logits)
    logits.add_(1)
    (found,) = torch.autograd.grad(changed, leaf, retain_graph=True)
    torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(changed, leaf)
