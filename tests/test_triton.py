"""The Triton kernels against 60-digit arithmetic and the reference; on a CPU with TRITON_INTERPRET=1."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import truth
from labo.kernels import reference
from labo.kernels import triton as implementation
from labo.kernels.options import Options
from labo.kernels.triton import interpreted, unavailable_reason
from labo.kernels.triton_shapes import Shape, parts_of

BETAS = (1e-3, 0.1, 0.5, 1.0, 2.0, 30.0, 1e4, 1e6, math.inf)
DEVICE = "cuda" if torch.cuda.is_available() and not interpreted() else "cpu"


@pytest.fixture(scope="module")
def solve():
    """`labo.kernels.triton.solve` on CPU tensors, with weights of 1 and the gradient; skips where it cannot run."""
    if reason := unavailable_reason():
        pytest.skip(reason)

    def call(logits, target, row_weights=None, *, alpha, beta, prior=None, gradient=True, shape=None):
        row_weights = torch.ones(len(logits)) if row_weights is None else row_weights
        given: Any = (v.to(DEVICE) if isinstance(v, torch.Tensor) else v for v in (alpha, beta, prior))
        inputs = (tensor.to(DEVICE) for tensor in (logits, target, row_weights))
        losses, grad = implementation.solve(*inputs, Options(*given), gradient=gradient, shape=shape)
        return losses.cpu(), None if grad is None else grad.cpu()

    return call


def by_reference(z, y, alpha, beta, prior=None):
    z = z.detach().clone().requires_grad_()
    losses = reference.row_losses(z, y, alpha=alpha, beta=beta, prior=prior)
    (grad,) = torch.autograd.grad(losses.sum(), z)
    return losses.detach(), grad


def priors(kind, z, generator):
    """A prior over the classes of `z`; "excludes the best" that of the first row."""
    if kind is None:
        return None
    prior = torch.rand(z.shape[-1], generator=generator, dtype=torch.float64) + 1e-3
    if kind == "peaked":
        prior = prior**12
    if kind == "excludes the best" and len(prior) > 1:
        prior[z[0].argmax()] = 0
    return prior / prior.sum()


def close_to_truth(found, z, y, alpha, beta, prior=None):
    losses, grads = found
    true_losses, true_grads = truth.rows(z, y, alpha, beta, prior)
    infinite = torch.isinf(true_losses)
    assert torch.equal(losses.double()[infinite], true_losses[infinite])
    error = ((losses.double() - true_losses).abs() / true_losses.abs().clamp(min=1))[~infinite]
    assert (error <= 1e-5).all(), (alpha, beta, error)
    off = (grads.double() - true_grads).norm(dim=-1) / true_grads.norm(dim=-1).clamp(min=1)
    assert (off <= 1e-5).all(), (alpha, beta, off)


@given(
    st.integers(1, 60),
    st.sampled_from(BETAS),
    st.sampled_from((0.0, 0.1, 0.8, 1.0)),
    st.sampled_from((0.1, 1.0, 30.0, 100.0)),
    st.sampled_from((None, "random", "peaked", "excludes the best")),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_accurate_up_to_logits_of_100(solve, classes, beta, alpha, scale, prior_kind, masks, seed):
    generator = torch.Generator().manual_seed(seed)
    z = (torch.rand(3, classes, generator=generator) * 2 - 1) * scale
    prior = priors(prior_kind, z, generator)
    y = torch.randint(classes, (3,), generator=generator)
    if masks:
        # The last row keeps its target alone.
        z = z.masked_fill(torch.rand(z.shape, generator=generator) < 0.4, -math.inf)
        z[2] = -math.inf
        z[torch.arange(3), y] = 1.0
    if masks and prior is not None:
        prior[y] += 0.01  # else no mass may be left: that has a test of its own
        prior /= prior.sum()
    close_to_truth(solve(z, y, alpha=alpha, beta=beta, prior=prior), z, y, alpha, beta, prior)


@pytest.mark.parametrize("shape", [(8, 507), (1, 131072), (64, 3), (2, 5000)])
@pytest.mark.parametrize("prior_kind", [None, "random", "peaked"])
def test_errs_no_more_than_the_reference(solve, shape, prior_kind):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=generator) * 4
    y = torch.randint(shape[1], shape[:1], generator=generator)
    prior = priors(prior_kind, z, generator)
    for beta in (0.1, 2.0, 1e6, math.inf) if shape[1] < 100_000 else (2.0, 1e6):
        true_losses, true_grads = by_reference(z.double(), y, 0.3, beta, prior)
        their_losses, their_grads = by_reference(z, y, 0.3, beta, prior)
        losses, grads = solve(z, y, alpha=0.3, beta=beta, prior=prior)
        allowed = (their_losses - true_losses).abs() + 1e-6 * true_losses.abs().clamp(min=1)
        assert ((losses - true_losses).abs() <= allowed).all(), beta
        off, their_off = (grads - true_grads).abs().amax(-1), (their_grads - true_grads).abs().amax(-1)
        assert (off <= their_off + 1e-6).all(), beta


def rows_that_break_naive_sums():
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(90, generator=generator)
    rising = (torch.rand(2500, generator=generator) * 6).sort().values
    far = torch.zeros(2500)
    far[2300] = -1e4
    late = torch.zeros(2500)
    late[2400] = 80.0
    masked_late = rising.clone()
    masked_late[2048:] = -math.inf
    lowest = torch.where(noise > 0, noise, torch.finfo(torch.float32).min)
    return {
        "equal": torch.full((90,), 7.0),
        "offset": noise + 1e4,
        "offset below": noise - 1e4,
        "wide": noise * 1e4,
        "rising": rising,
        "falling": rising.flip(0),
        "one far below": far,
        "one far above, in the last block": late,
        "first block masked": masked_late.flip(0),
        "last block masked": masked_late,
        "lowest float as mask": lowest,
    }


@pytest.mark.parametrize("name", rows_that_break_naive_sums())
def test_rows_that_break_naive_sums(solve, name):
    z = rows_that_break_naive_sums()[name].unsqueeze(0)
    y = z.argmax(-1)
    for beta in (1e-3, 2.0, 1e4):
        close_to_truth(solve(z, y, alpha=1.0, beta=beta), z, y, 1.0, beta)


@pytest.mark.parametrize("beta", BETAS)
def test_prior_that_excludes_the_largest_logit(solve, beta):
    z, prior = torch.tensor([[1000.0, 0.0, 0.5]]), torch.tensor([0.0, 0.25, 0.75])
    y = torch.tensor([0])
    close_to_truth(solve(z, y, alpha=0.5, beta=beta, prior=prior), z, y, 0.5, beta, prior)


@pytest.mark.parametrize("tiny", [1e-10, 1e-30, 1e-42])
def test_best_class_of_almost_no_prior(solve, tiny):
    # q* weighs the first two alike, whose priors and exponentials are each other's inverse: neither may underflow.
    z = torch.tensor([[0.0, -math.log(tiny), -2.0]])
    prior, y = torch.tensor([0.5, tiny, 0.5], dtype=torch.float64), torch.tensor([2])
    prior = prior / prior.sum()
    close_to_truth(solve(z, y, alpha=0.7, beta=1.0, prior=prior), z, y, 0.7, 1.0, prior.float().double())


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("prior", [None, (0.2, 0.3, 0.5, 0.0)])
def test_masked_logits(solve, beta, prior):
    z = torch.tensor([[1.0, -math.inf, 0.5, 3.0], [-math.inf, 0.0, -math.inf, 2.0]])
    prior = None if prior is None else torch.tensor(prior, dtype=torch.float64)
    y = torch.tensor([0, 1])
    found = solve(z, y, alpha=0.4, beta=beta, prior=prior)
    close_to_truth(found, z, y, 0.4, beta, prior)
    assert (found[1][z == -math.inf] == 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("beta", [2.0, math.inf])
def test_infinite_losses_are_those_of_the_reference(solve, alpha, beta):
    # In turn: target masked; all masked; no prior mass left; both; nothing amiss.
    out = -math.inf
    z = torch.tensor([[out, 1.0, 2.0], [out, out, out], [1.0, 0.5, out], [out, 0.5, out], [1.0, 2.0, 3.0]])
    y, prior = torch.tensor([0, 1, 0, 2, 1]), torch.tensor([0.0, 0.0, 1.0])
    for r in (prior, None):
        losses, grads = solve(z, y, alpha=torch.full((5,), alpha), beta=beta, prior=r)
        expected, expected_grads = by_reference(z, y, torch.full((5,), alpha), beta, r)
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-6, atol=1e-7)


def test_nan_and_infinity_in_a_counted_row_give_nan(solve):
    z = torch.tensor([[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [math.nan, math.nan, math.nan], [0.0, 1.0, 2.0]])
    losses, grads = solve(z, torch.zeros(4, dtype=torch.long), alpha=0.3, beta=2.0)
    assert losses.isnan().tolist() == [True, True, True, False]
    assert grads.isnan().any(-1).tolist() == [True, True, True, False]


def test_alpha_and_beta_of_each_row(solve):
    z = torch.randn(6, 40, generator=torch.Generator().manual_seed(4)) * 5
    y = torch.arange(6)
    alpha = torch.tensor([0.0, 1.0, 0.3, 0.3, 0.3, 0.3])
    beta = torch.tensor([2.0, 0.5, math.inf, 1e6, 1e-3, 1.0])
    losses, grads = solve(z, y, alpha=alpha, beta=beta)
    for i in range(6):
        row = slice(i, i + 1)
        found = losses[row], grads[row]
        close_to_truth(found, z[row], y[row], alpha[i].item(), beta[i].item())
        alone = solve(z[row], y[row], alpha=alpha[i].item(), beta=beta[i].item())
        torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-6)


def test_options_of_any_layout(solve):
    z, y = torch.randn(3, 5, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 1, 2])
    expected = solve(z, y, alpha=torch.full((3,), 0.25), beta=torch.full((3,), 4.0))
    # Numbers have a kernel of their own, where p is a power of q.
    torch.testing.assert_close(solve(z, y, alpha=0.25, beta=4.0), expected, rtol=1e-6, atol=1e-6)
    for options in (
        {"alpha": torch.tensor(0.25), "beta": torch.tensor(4.0, dtype=torch.float64)},
        {"alpha": torch.tensor([0.25]).expand(3), "beta": torch.tensor([4.0, 0.0] * 3)[::2]},
    ):
        torch.testing.assert_close(solve(z, y, **options), expected, rtol=0, atol=0)


def test_row_weights_multiply_and_rows_of_weight_0_are_not_read(solve):
    generator = torch.Generator().manual_seed(6)
    z, y = torch.randn(5, 30, generator=generator), torch.tensor([3, 0, 2, 0, 1])
    row_weights = torch.tensor([0.5, 0.0, 2.0, 0.0, 1e-3])
    z[1], z[3, 4] = math.nan, math.inf
    losses, grads = solve(z, y, row_weights, alpha=0.3, beta=2.0)
    kept = row_weights != 0
    expected = solve(z[kept], y[kept], alpha=0.3, beta=2.0)
    torch.testing.assert_close(losses[kept], expected[0] * row_weights[kept], rtol=0, atol=0)
    torch.testing.assert_close(grads[kept], expected[1] * row_weights[kept].unsqueeze(-1), rtol=0, atol=0)
    assert (losses[~kept] == 0).all()
    assert (grads[~kept] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", [0.5, 2.0, math.inf])
def test_half_precision_rounds_once(solve, dtype, beta):
    z = (torch.randn(4, 3000, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    y, row_weights = torch.arange(4), torch.tensor([1.0, 0.25, 1 / 3, 0.0])
    losses, grads = solve(z, y, row_weights, alpha=0.2, beta=beta)
    wide_losses, wide_grads = solve(z.float(), y, row_weights, alpha=0.2, beta=beta)
    assert losses.dtype == torch.float32
    assert grads.dtype == dtype
    torch.testing.assert_close(losses, wide_losses, rtol=0, atol=0)
    torch.testing.assert_close(grads, wide_grads.to(dtype), rtol=0, atol=0)


def test_logits_of_any_strides_are_read_and_never_written(solve):
    base = torch.randn(9, 14, generator=torch.Generator().manual_seed(7))
    y = torch.tensor([0, 3, 2])
    for view in (base.T[2:5, 1:], base[3:6, 4:], base[::3, ::2], base[:1].expand(3, 14)):
        before = base.clone()
        found = solve(view, y, alpha=0.3, beta=2.0)
        torch.testing.assert_close(found, solve(view.contiguous(), y, alpha=0.3, beta=2.0), rtol=0, atol=0)
        assert torch.equal(base, before)


@pytest.mark.parametrize("classes", [1, 2, 3, 127, 128, 129, 507, 2048, 2049, 5000])
def test_tails(solve, classes):
    generator = torch.Generator().manual_seed(classes)
    z = torch.randn(3, classes, generator=generator) * 3
    y = torch.tensor([0, classes - 1, classes // 2])
    for prior in (None, priors("random", z, generator)):
        losses, grads = solve(z, y, alpha=0.3, beta=3.0, prior=prior)
        expected, expected_grads = by_reference(z.double(), y, 0.3, 3.0, prior)
        torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(grads.double(), expected_grads, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("beta", [2.0, 1e5, math.inf])
@pytest.mark.parametrize("prior_kind", [None, "random", "excludes the best"])
def test_parts_of_a_row_combine_to_the_whole(solve, monkeypatch, beta, prior_kind):
    generator = torch.Generator().manual_seed(8)
    z = torch.randn(4, 5000, generator=generator) * 4
    z[0, :2048] = -math.inf  # a whole part is masked
    z[3] = math.nan
    y, row_weights = torch.tensor([2048, 1, 4999, 0]), torch.tensor([1.0, 0.5, 2.0, 0.0])
    prior = priors(prior_kind, z[1:], generator)
    found = {}
    for tiles in (0, 1, 2):
        monkeypatch.setattr(implementation, "parts_of", lambda rows, classes, tile, tiles=tiles: tiles)
        found[tiles] = solve(z, y, row_weights, alpha=0.3, beta=beta, prior=prior, shape=Shape(0, 2, 8))
    for tiles in (1, 2):
        torch.testing.assert_close(found[tiles], found[0], rtol=1e-6, atol=1e-6)


def test_few_long_rows_alone_are_cut_into_whole_tiles():
    for rows, classes in ((1, 131072), (8, 50_257), (200, 131072)):
        tiles = parts_of(rows, classes, 2048)
        assert 0 < tiles * 2048 < classes
    for rows, classes in ((4096, 3), (1, 507), (1, 3000), (4096, 131072)):
        assert parts_of(rows, classes, 2048) == 0


def test_without_gradient_and_without_rows(solve):
    z, y = torch.randn(3, 7, generator=torch.Generator().manual_seed(9)), torch.tensor([0, 1, 6])
    losses, grads = solve(z, y, alpha=0.3, beta=2.0, gradient=False)
    assert grads is None
    torch.testing.assert_close(losses, solve(z, y, alpha=0.3, beta=2.0)[0], rtol=0, atol=0)
    losses, grads = solve(z[:0], y[:0], alpha=0.3, beta=2.0)
    assert losses.shape == (0,)
    assert grads.shape == (0, 7)


def test_refuses_what_it_cannot_do(solve, monkeypatch):
    z, y = torch.zeros(1, 3), torch.tensor([0])
    with pytest.raises(TypeError, match=r"`logits` of dtype float32, bfloat16 or float16, but got torch\.float64"):
        solve(z.double(), y, alpha=0.1, beta=2.0)
    monkeypatch.setattr(implementation, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="`logits` on a CUDA device, but got cpu"):
        implementation.solve(z, y, torch.ones(1), Options(0.1, 2.0), gradient=True)


def test_says_why_a_machine_cannot_run_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert unavailable_reason() == "the package `triton` is not installed"
    with pytest.raises(ValueError, match="the package `triton` is not installed"):
        implementation.solve(torch.zeros(1, 3), torch.tensor([0]), torch.ones(1), Options(0.1, 2.0), gradient=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "no CUDA device" in str(unavailable_reason())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert unavailable_reason() is None
