"""The blocked implementation: its buffers, its second backward, its blocks, and what it leaves to the reference."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import labo
from labo import labo_cross_entropy
from labo.kernels import blocked


def batch(rows: int = 12, classes: int = 7, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (rows,), generator=generator)
    target[::5] = -100
    return logits.to(dtype).requires_grad_(), target


OPTIONS: list[dict[str, Any]] = [
    {"beta": 2.0},
    {"beta": 4.0, "reduction": "sum"},
    {"beta": 0.7, "alpha": 1.0},
    {"beta": math.inf, "reduction": "none"},
    {"alpha": 0.0},
    {"beta": 100.0, "alpha": 0.9},
    {"beta": 2.0, "prior": torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4], dtype=torch.float64)},
    {"beta": math.inf, "prior": torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4], dtype=torch.float64)},
    {"beta": math.inf, "prior": torch.tensor([0.5, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)},
    {"beta": 2.0, "prior": torch.tensor([0.5, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)},
    {"beta": 2.0, "prior": torch.tensor([1e-60, 0.4, 0.1, 0.1, 0.1, 0.1, 0.2], dtype=torch.float64)},
    {"beta": 2.0, "value": "plugin"},
]
every = pytest.mark.parametrize("options", OPTIONS, ids=str)


@pytest.fixture(params=[10**9, 7 * 8 * 5, 1, None], ids=["one block", "five rows", "a row", "at once"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sizes of blocks, the last one not full among them, and small batches at once."""
    if request.param is not None:
        monkeypatch.setattr(blocked, "BLOCK_BYTES", request.param)
        monkeypatch.setattr(blocked, "SMALL", 0)


@pytest.mark.usefixtures("blocks")
@every
@pytest.mark.parametrize("ignored", [True, False])
def test_it_is_the_reference(options, ignored):
    logits, target = batch()
    target = target if ignored else target.clamp(min=0)
    found, expected = (labo_cross_entropy(logits, target, impl=impl, **options) for impl in ("blocked", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(found.shape, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(loss, logits, upstream)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@every
def test_derivatives(options):
    logits, target = batch(6)
    function = partial(labo_cross_entropy, target=target, impl="blocked", **options)
    if options.get("value") != "plugin":  # whose label is constant: no derivative of its value is its gradient
        assert torch.autograd.gradcheck(function, logits)
        assert torch.autograd.gradgradcheck(function, logits)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_is_the_first_again(reduction):
    logits, target = batch()
    loss = labo_cross_entropy(logits, target, impl="blocked", reduction=reduction)
    upstream = torch.full_like(loss, 3.0)
    first = torch.autograd.grad(loss, logits, upstream, retain_graph=True)[0]
    kept = first.clone()
    first.fill_(math.nan)  # the buffer was given away: whoever has it may write on it
    second = torch.autograd.grad(loss, logits, upstream, retain_graph=True)[0]
    torch.testing.assert_close(second, kept)
    (loss * upstream).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, kept)


def test_the_callers_logits_are_not_written_over():
    logits, target = batch()
    with torch.no_grad():
        logits[0] = math.nan  # ignored
        logits[1, 2] = -math.inf
    before = logits.detach().clone()
    labo_cross_entropy(logits, target, impl="blocked").backward()
    assert torch.equal(logits.detach().nan_to_num(), before.nan_to_num())


def test_changed_logits_are_told_at_a_second_backward():
    logits, target = batch()
    scaled = logits * 1
    loss = labo_cross_entropy(scaled, target, impl="blocked")
    scaled.add_(1)
    loss.backward(retain_graph=True)  # nothing needs them: the gradient is there
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_is_made_that_is_not_needed(monkeypatch):
    logits, target = batch()
    asked = []
    solve = blocked.solve
    monkeypatch.setattr(blocked, "solve", lambda *a, gradient: asked.append(gradient) or solve(*a, gradient=gradient))
    labo_cross_entropy(logits.detach(), target)
    with torch.no_grad():
        labo_cross_entropy(logits, target)
    assert asked == [False, False]
    labo_cross_entropy(logits, target).backward()
    assert asked == [False, False, True]


@pytest.mark.parametrize("name", ["alpha", "beta", "prior"])
def test_learnt_options_go_to_the_reference_or_are_refused(name):
    logits, target = batch()
    option = torch.full((7,), 1 / 7, dtype=torch.float64) if name == "prior" else torch.tensor(0.5, dtype=torch.float64)
    option.requires_grad_()
    options: dict[str, Any] = {name: option}
    labo_cross_entropy(logits, target, **options).backward()
    assert option.grad is not None
    with pytest.raises(ValueError, match=f"gives no gradient in `{name}`; use impl='reference'"):
        labo_cross_entropy(logits, target, impl="blocked", **options)


def test_transforms_go_to_the_reference_or_are_refused():
    logits, target = batch()
    found = torch.func.grad(lambda z: labo_cross_entropy(z, target))(logits.detach())
    expected = torch.autograd.grad(labo_cross_entropy(logits, target, impl="blocked"), logits)[0]
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="cannot be traced; use impl='reference'"):
        torch.func.grad(lambda z: labo_cross_entropy(z, target, impl="blocked"))(logits.detach())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits.detach(), torch.ones_like(logits))
        assert torch.autograd.forward_ad.unpack_dual(labo_cross_entropy(dual, target)).tangent is not None
        with pytest.raises(ValueError, match="no forward-mode derivative"):
            labo_cross_entropy(dual, target, impl="blocked")


@pytest.mark.parametrize("shape", [(252, 507), (1, 131_072), (4096, 3), (33, 1000)])
@pytest.mark.parametrize("beta", [0.5, 2.0, 3.0, 4.0, math.inf])
@pytest.mark.parametrize("small", [True, False])
def test_no_less_accurate_than_the_reference(shape, beta, small, monkeypatch):
    monkeypatch.setattr(blocked, "SMALL", 2**18 if small else 0)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(shape, generator=generator) * 8
    target = torch.randint(shape[1], shape[:1], generator=generator)
    errors = {}
    wide = logits.double().requires_grad_()
    truth = labo_cross_entropy(wide, target, alpha=0.4, beta=beta, reduction="none", impl="reference")
    (slope,) = torch.autograd.grad(truth.sum(), wide)
    for impl in ("reference", "blocked"):
        z = logits.clone().requires_grad_()
        found = labo_cross_entropy(z, target, alpha=0.4, beta=beta, reduction="none", impl=impl)
        (gradient,) = torch.autograd.grad(found.sum(), z)
        errors[impl] = ((found.double() - truth).abs(), (gradient.double() - slope).norm(dim=-1))
    assert (errors["blocked"][0] <= errors["reference"][0].max() + 1e-6 * truth.abs().clamp(min=1)).all()
    assert errors["blocked"][1].max() <= errors["reference"][1].max() + 1e-6 * slope.norm(dim=-1).clamp(min=1).max()


@pytest.mark.parametrize("name", ["none", "label_smoothing", "unigram_smoothing", "labo"])
def test_every_special_case_has_the_kernel(name, monkeypatch):
    logits, target = batch()
    made = labo.regularizers.create(name)
    made.provide(**{need: torch.arange(1, 8) for need in made.missing})
    criterion = labo.LabelRegularizedLoss(made)
    expected = labo.LabelRegularizedLoss(made, reduction="none")(logits.detach(), target)[target >= 0].mean()
    called = []
    solve = blocked.solve
    monkeypatch.setattr(blocked, "solve", lambda *a, **k: called.append(1) or solve(*a, **k))
    torch.testing.assert_close(criterion(logits, target), expected)
    assert called


@pytest.mark.parametrize("options", [{"beta": 0.5}, {"beta": 2.0}, {"beta": 1e4}, {"beta": math.inf}, {"alpha": 0.0}])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_masked_classes_are_as_the_reference_has_them(options, reduction):
    inf = math.inf
    logits = torch.tensor([[1, -inf, 0.5, 3], [-inf, 0, -inf, 2], [-inf] * 4, [0, 1, 2, -inf], [0, 1, 2, 3]])
    logits, target = logits.double().requires_grad_(), torch.tensor([0, 1, 0, 3, 2])
    found, expected = (
        labo_cross_entropy(logits, target, reduction=reduction, impl=impl, **options)
        for impl in ("blocked", "reference")
    )
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(loss.sum(), logits)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_smoothing_is_pytorchs():
    logits, target = batch(dtype=torch.float32)
    expected = F.cross_entropy(logits, target, label_smoothing=0.3)
    torch.testing.assert_close(labo_cross_entropy(logits, target, alpha=0.3, beta=math.inf, impl="blocked"), expected)


@pytest.mark.parametrize("impl", ["blocked", "reference"])
def test_a_loss_scale_saves_small_gradients_of_float16(impl):
    # Their own size, a 16,384th of what is scaled, is below what float16 holds.
    draw = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(4096, 50, generator=draw)).half()
    target = torch.randint(50, (4096,), generator=draw)
    wide = logits.double().requires_grad_()
    (truth,) = torch.autograd.grad(labo_cross_entropy(wide, target, impl="reference") * 16384, wide)
    logits.requires_grad_()
    (found,) = torch.autograd.grad(labo_cross_entropy(logits, target, impl=impl) * 16384, logits)
    torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=2e-6)
    hidden, weight = logits.detach().requires_grad_(), torch.eye(50).half()
    (found,) = torch.autograd.grad(labo.linear_labo_cross_entropy(hidden, weight, target, impl=impl) * 16384, hidden)
    torch.testing.assert_close(found.double(), truth, rtol=2e-3, atol=2e-6)
