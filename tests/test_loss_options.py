"""Statistics, z-loss, soft-capped logits, row weights and the denominator: against written formulas in float64."""

from __future__ import annotations

import importlib.util
import inspect
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import labo
from labo import labo_cross_entropy, linear_labo_cross_entropy
from labo.errors import UserError
from labo.kernels import options as shared
from labo.kernels import triton as triton_implementation
from labo.kernels.options import Options
from labo.kernels.statistics import COUNT
from labo.kernels.triton_shapes import Shape

KEPT = torch.tensor([True, False, True, True, True, True])
TARGET = torch.tensor([0, -100, 3, 8, 2, 2])
ROW_WEIGHT = torch.tensor([1.0, math.nan, 0.5, 2.0, -1.0, 3.0])
PRIOR = torch.linspace(1, 3, 9, dtype=torch.float64) / 18
CASES: list[dict[str, Any]] = [
    {"beta": 2.0},
    {"beta": 3.0, "z_loss": 1e-2},
    {"beta": 2.0, "z_loss": 1e-2, "softcap": 3.0, "alpha": 0.0},
    {"beta": 1.5, "z_loss": 0.1, "softcap": 5.0, "prior": PRIOR, "alpha": 1.0},
    {"beta": math.inf, "z_loss": 1e-2, "softcap": 5.0, "prior": PRIOR},
    {"beta": math.inf, "z_loss": 1e-2},
    {"beta": 40.0, "softcap": 3.0},
    {"beta": torch.tensor([1.0, 1.0, 2.0, 0.5, 3.0, 2.0]), "alpha": torch.linspace(0, 1, 6), "z_loss": 1e-2},
]


def logits(dtype: torch.dtype = torch.float32) -> Tensor:
    """A row is ignored and holds NaN; a class is masked."""
    z = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)) * 3
    z[1], z[4, 5] = math.nan, -math.inf
    return z.to(dtype)


class Formula:
    """The loss and the statistics of the kept rows, as the pages write them, by autograd in float64."""

    def __init__(
        self, z: Tensor, y: Tensor, *, alpha: Any = 0.1, beta: Any = 2.0, prior: Any = None, z_loss=0.0, softcap=None
    ) -> None:
        if softcap is not None:
            z = torch.where(z == -math.inf, z, softcap * torch.tanh(z / softcap))
        mask = z == -math.inf
        r = torch.where(mask, 0.0, torch.full_like(z, 1.0) if prior is None else prior.double().expand_as(z))
        log_r = (r / r.sum(-1, keepdim=True)).log()
        beta, alpha = (torch.as_tensor(x, dtype=torch.float64).expand(len(z)) for x in (beta, alpha))
        scores = log_r + torch.where(mask, 0.0, z) / beta.unsqueeze(-1)
        q = scores.softmax(-1)
        self.logsumexp = z.logsumexp(-1)
        log_p = z - self.logsumexp.unsqueeze(-1)
        self.nll = -log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)
        # CE(q, p) + beta KL(q || r) at its minimiser, whose derivative in q is 0.
        q = q.detach()
        cross = -(q * torch.where(mask, 0.0, log_p)).sum(-1)
        divergence = (q * torch.where(q > 0, (q / log_r.exp()).log(), 0.0)).sum(-1)
        value = cross + torch.where(torch.isinf(beta), 0.0, torch.where(torch.isinf(beta), 1.0, beta) * divergence)
        self.z_losses = z_loss * self.logsumexp**2
        self.losses = (1 - alpha) * self.nll + alpha * value + self.z_losses
        self.entropy = torch.distributions.Categorical(probs=z.softmax(-1)).entropy()
        self.label_entropy = torch.special.entr(q).sum(-1)
        self.correct = z.gather(-1, y.unsqueeze(-1)).squeeze(-1) == z.max(-1).values


def check(statistics: labo.LossStatistics, expected: Formula, weights: Tensor, kept: Tensor, **close: Any) -> None:
    """Compare statistics with the formula of the kept rows, whose weights in the loss are `weights`."""
    torch.testing.assert_close(statistics.loss.double(), (expected.losses * weights).sum(), **close)
    torch.testing.assert_close(statistics.z_loss.double(), (expected.z_losses * weights).sum(), **close)
    for name in ("nll", "logsumexp", "entropy", "label_entropy"):
        value = getattr(statistics, name)
        assert value[~kept].isnan().all()
        torch.testing.assert_close(value[kept].double(), getattr(expected, name), **close)
    assert torch.equal(statistics.correct[kept], expected.correct)
    assert not statistics.correct[~kept].any()


CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything_at_once_is_the_written_formula(impl, case):
    z, leaf = logits(), logits().double()[KEPT].requires_grad_()
    options: dict[str, Any] = {
        name: x[KEPT] if isinstance(x, Tensor) and len(x) == 6 else x for name, x in case.items()
    }
    expected, weights = Formula(leaf, TARGET[KEPT], **options), ROW_WEIGHT[KEPT].double() / 7
    given: dict[str, Any] = {"row_weight": ROW_WEIGHT, "denominator": 7.0, "impl": impl, **case}
    z.requires_grad_()
    statistics = labo_cross_entropy(z, TARGET, return_statistics=True, differentiable=True, **given)
    check(statistics, expected, weights, KEPT, **CLOSE)
    total = statistics.loss + 0.3 * statistics.nll.nansum() + 2 * statistics.logsumexp.nansum()
    wanted = (expected.losses * weights).sum() + 0.3 * expected.nll.sum() + 2 * expected.logsumexp.sum()
    (found,), (grad,) = torch.autograd.grad(total, z), torch.autograd.grad(wanted, leaf)
    torch.testing.assert_close(found[KEPT].double(), grad, **CLOSE)
    assert (found[~KEPT] == 0).all()
    torch.testing.assert_close(labo_cross_entropy(z, TARGET, **given), statistics.loss, rtol=0, atol=0)


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[4]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_last_layer(impl, case, reduction):
    draw = torch.Generator().manual_seed(1)
    hidden, head, bias = (torch.randn(size, generator=draw) for size in ((6, 4), (9, 4), (9,)))
    hidden[1] = math.nan
    leaves = [x.requires_grad_() for x in (hidden, head, bias)]
    truth = [x.detach().double().requires_grad_() for x in (hidden[KEPT], head, bias)]
    expected = Formula(torch.nn.functional.linear(*truth), TARGET[KEPT], **case)
    given: dict[str, Any] = {"linear_bias": bias, "impl": impl, "chunk_rows": 2, "reduction": reduction, **case}
    statistics = linear_labo_cross_entropy(
        hidden, head, TARGET, return_statistics=True, differentiable=True, row_weight=ROW_WEIGHT.abs(), **given
    )
    weights = ROW_WEIGHT[KEPT].abs().double()
    weights = weights if reduction == "none" else weights / weights.sum()
    check(
        statistics._replace(loss=statistics.loss.sum(), z_loss=statistics.z_loss.sum()),
        expected,
        weights,
        KEPT,
        **CLOSE,
    )
    total = statistics.loss.sum() + statistics.nll.nansum() - 0.5 * statistics.logsumexp.nansum()
    wanted = (expected.losses * weights).sum() + expected.nll.sum() - 0.5 * expected.logsumexp.sum()
    found, grads = torch.autograd.grad(total, leaves), torch.autograd.grad(wanted, truth)
    for ours, theirs in zip((found[0][KEPT], *found[1:]), grads, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(impl, dtype):
    z = logits(dtype).requires_grad_()
    options: dict[str, Any] = {"z_loss": 1e-2, "softcap": 3.0, "impl": impl, "return_statistics": True}
    found = labo_cross_entropy(z, TARGET, **options)
    wide = z.detach().float().requires_grad_()
    expected = labo_cross_entropy(wide, TARGET, **options)
    assert found.loss.dtype == dtype
    assert found.nll.dtype == torch.float32
    for ours, theirs in zip(found[1:6], expected[1:6], strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    (ours,), (theirs,) = torch.autograd.grad(found.loss, z), torch.autograd.grad(expected.loss, wide)
    torch.testing.assert_close(ours, theirs.to(dtype))


@pytest.mark.parametrize(("parts", "shape"), [(0, Shape(0, 2, 8)), (1, Shape(0, 2, 8)), (2, Shape(0, 2, 8))])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("prior", [None, "random"])
def test_long_rows_of_triton(monkeypatch, parts, shape, gradient, prior):
    if not triton_implementation.interpreted():
        pytest.skip("kernels run on CPU tensors with TRITON_INTERPRET=1")
    monkeypatch.setattr(triton_implementation, "parts_of", lambda *_: parts)
    draw = torch.Generator().manual_seed(2)
    z, y, weights = torch.randn(3, 5000, generator=draw) * 4, torch.tensor([4999, 3, 0]), torch.tensor([1.0, 0.0, 2.0])
    z[0, :2048] = -math.inf
    r = None if prior is None else torch.rand(5000, generator=draw, dtype=torch.float64).softmax(-1)
    leaf = z.double()[[0, 2]].requires_grad_()
    expected = Formula(leaf, y[[0, 2]], beta=1.5, prior=r, z_loss=1e-2, softcap=8.0)
    buffer = torch.full((COUNT, 3), math.nan)
    options = Options(0.1, 1.5, r, z_loss=1e-2, softcap=8.0)
    losses, grads = triton_implementation.solve(
        z, y, weights, options, gradient=gradient, statistics=buffer, shape=shape
    )
    torch.testing.assert_close(losses[[0, 2]].double(), expected.losses * weights[[0, 2]], **CLOSE)
    for at, name in enumerate(("nll", "logsumexp", "entropy", "label_entropy")):
        torch.testing.assert_close(buffer[at, [0, 2]].double(), getattr(expected, name), **CLOSE)
        assert buffer[at, 1].isnan()
    if grads is not None:
        (wanted,) = torch.autograd.grad((expected.losses * weights[[0, 2]]).sum(), leaf)
        torch.testing.assert_close(grads[[0, 2]].double(), wanted, **CLOSE)


# Row weights.


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_row_weights_multiply_class_weights(impl, reduction):
    z, weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([1.0, 2.0, 0.5, 3.0])
    y, rows = torch.tensor([1, 3, 0]), torch.tensor([0.25, 2.0, 0.0])
    losses = labo_cross_entropy(z.double(), y, reduction="none")
    both = (weight[y] * rows).double()
    expected = {"mean": (both * losses).sum() / both.sum(), "sum": (both * losses).sum(), "none": both * losses}
    given: dict[str, Any] = {"weight": weight, "row_weight": rows, "reduction": reduction, "impl": impl}
    torch.testing.assert_close(labo_cross_entropy(z, y, **given).double(), expected[reduction], **CLOSE)
    through = linear_labo_cross_entropy(z, torch.eye(4), y, **given)
    torch.testing.assert_close(through.double(), expected[reduction], **CLOSE)


def test_row_weights_of_probabilities_and_of_more_dimensions():
    z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(4))
    rows = torch.tensor([[1.0, 2.0, 0.0], [0.5, 1.0, 1.0]])
    for target in (torch.randint(4, (2, 3)), torch.rand(2, 4, 3).softmax(1)):
        losses = labo_cross_entropy(z, target, reduction="none")
        found = labo_cross_entropy(z, target, row_weight=rows, return_statistics=True)
        torch.testing.assert_close(found.loss, (losses * rows).sum() / rows.sum())
        assert found.nll.shape == rows.shape
        assert torch.equal(found.nll.isnan(), rows == 0)
        plain = torch.nn.functional.cross_entropy(z, target, reduction="none")
        torch.testing.assert_close(found.nll[rows != 0], plain[rows != 0])
        # Where the target is a distribution, its largest entry is the class that must be the largest logit.
        classes = target.argmax(1) if target.dim() == 3 else target
        assert torch.equal(found.correct, (z.argmax(1) == classes) & (rows != 0))


def test_row_weights_and_denominators_have_their_gradient():
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    y, kept = torch.tensor([0, -100, 2, 3]), torch.tensor([True, False, True, True])
    rows = torch.tensor([1.0, 5.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    losses = labo_cross_entropy(z, y, reduction="none").detach()
    (found,) = torch.autograd.grad(labo_cross_entropy(z, y, row_weight=rows, reduction="sum"), rows)
    torch.testing.assert_close(found, losses)  # also at weight 0; ignored rows have none
    (found,) = torch.autograd.grad(labo_cross_entropy(z, y, row_weight=rows), rows)
    mean = (losses * rows.detach())[kept].sum() / 3
    torch.testing.assert_close(found[kept], (losses[kept] - mean) / 3)
    count = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(labo_cross_entropy(z, y, denominator=count), count)
    torch.testing.assert_close(found, -losses.sum() / 16)
    learnt: dict[str, Any] = {"row_weight": rows, "denominator": count}
    for name in learnt:
        with pytest.raises(UserError, match=f"gives no gradient in `{name}`; use impl='reference'"):
            labo_cross_entropy(z, y, impl="blocked", **{name: learnt[name]})


def test_a_denominator_replaces_the_sum_of_the_weights(impl):
    z, y = torch.randn(4, 5, generator=torch.Generator().manual_seed(6)), torch.tensor([0, -100, 2, 3])
    total = labo_cross_entropy(z, y, reduction="sum", impl=impl)
    for count in (12, 12.0, torch.tensor(12), torch.tensor([12.0])):
        torch.testing.assert_close(labo_cross_entropy(z, y, denominator=count, impl=impl), total / 12)
        torch.testing.assert_close(
            linear_labo_cross_entropy(z, torch.eye(5), y, denominator=count, impl=impl), total / 12
        )
    assert labo_cross_entropy(z, y, denominator=0, impl=impl) == 0
    # Batches of different lengths, accumulated, are one batch.
    halves = [labo_cross_entropy(z[at], y[at], denominator=3, impl=impl) for at in (slice(0, 3), slice(3, 4))]
    torch.testing.assert_close(sum(halves), labo_cross_entropy(z, y, impl=impl))


# Corners of the statistics.


def test_no_row_is_kept(impl):
    for z, y in ((torch.randn(0, 5), torch.zeros(0, dtype=torch.long)), (torch.randn(2, 5), torch.tensor([-100] * 2))):
        z = z.requires_grad_()
        found = labo_cross_entropy(z, y, z_loss=1e-2, return_statistics=True, impl=impl)
        assert found.loss == found.z_loss == 0
        assert found.nll.isnan().all()
        assert found.nll.shape == found.correct.shape == y.shape
        assert (torch.autograd.grad(found.loss, z)[0] == 0).all()
        linear = linear_labo_cross_entropy(z, torch.eye(5), y, return_statistics=True, impl=impl)
        assert linear.nll.shape == y.shape
        assert linear.loss == 0


def test_what_has_no_label_has_no_entropy(impl):
    """In turn: the target is masked; no prior is left; all is masked; nothing amiss."""
    out = -math.inf
    z = torch.tensor([[out, 1.0, 2.0], [1.0, 0.5, out], [out, out, out], [1.0, 2.0, 3.0]])
    y, prior = torch.tensor([0, 1, 0, 2]), torch.tensor([0.0, 0.0, 1.0])
    found = labo_cross_entropy(z, y, prior=prior, z_loss=1e-2, return_statistics=True, reduction="none", impl=impl)
    assert found.loss.isinf().tolist() == [True, True, True, False]
    assert found.nll.isinf().tolist() == [True, False, True, False]
    assert found.label_entropy.isnan().tolist() == [False, True, True, False]
    assert found.entropy.isnan().tolist() == [False, False, True, False]
    assert found.logsumexp[2] == out
    assert found.correct.tolist() == [False, False, False, True]


def test_only_the_loss_has_a_gradient_unless_asked():
    z = logits().requires_grad_()
    for impl in ("reference", "blocked"):
        found = labo_cross_entropy(z, TARGET, return_statistics=True, impl=impl)
        assert [value.requires_grad for value in found] == [True] + [False] * 6
        found = labo_cross_entropy(z, TARGET, return_statistics=True, differentiable=True, impl=impl)
        assert [value.requires_grad for value in found] == [True, True, True] + [False] * 4


def test_second_derivatives(impl):
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(7)).requires_grad_()
    y = torch.tensor([0, 2, -100])
    found = []
    for one in (impl, "reference"):
        s = labo_cross_entropy(
            z, y, z_loss=0.1, softcap=3.0, return_statistics=True, differentiable=True,
            impl=one,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(s.loss + (s.nll * s.logsumexp).nansum(), z, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), z)[0])
    torch.testing.assert_close(found[0], found[1])


def test_in_place_and_a_second_backward():
    leaf = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    options: dict[str, Any] = {"z_loss": 1e-2, "softcap": 3.0, "return_statistics": True, "impl": "blocked"}
    expected = labo_cross_entropy(leaf, TARGET, **options)
    found = labo_cross_entropy(leaf * 1, TARGET, inplace_backward=True, **options)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    torch.testing.assert_close(*(torch.autograd.grad(x.loss, leaf)[0] for x in (found, expected)))
    with pytest.raises(UserError, match="inplace_backward=False with differentiable=True"):
        labo_cross_entropy(leaf * 1, TARGET, inplace_backward=True, differentiable=True, **options)
    twice = labo_cross_entropy(leaf, TARGET, differentiable=True, **options)
    first = torch.autograd.grad(twice.loss + twice.nll.nansum(), leaf, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(twice.loss + twice.nll.nansum(), leaf)[0], first)


# Compiled graphs and transforms.


@pytest.mark.parametrize("linear", [False, True])
def test_a_compiled_loss_with_all_options(linear):
    torch._dynamo.reset()
    z = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    options: dict[str, Any] = {
        "z_loss": 1e-2, "softcap": 3.0, "row_weight": ROW_WEIGHT.nan_to_num(1).abs(), "return_statistics": True,
    }  # fmt: skip

    def loss(z: Tensor, differentiable: bool = False) -> labo.LossStatistics:
        given = {**options, "differentiable": differentiable}
        if linear:
            return linear_labo_cross_entropy(z, torch.eye(9), TARGET, **given)
        return labo_cross_entropy(z, TARGET, **given)

    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for differentiable in (False, True):
        found, expected = whole(z, differentiable), loss(z, differentiable)
        assert isinstance(found, labo.LossStatistics)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
        totals = (x.loss + x.nll.nansum() if differentiable else x.loss for x in (found, expected))
        torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in totals))


def test_statistics_under_transforms_are_those_of_the_reference():
    z, y = torch.randn(4, 5, generator=torch.Generator().manual_seed(8)), torch.arange(4)

    def loss(z: Tensor, y: Tensor) -> tuple[Tensor, labo.LossStatistics]:
        found = labo_cross_entropy(z, y, z_loss=1e-2, softcap=3.0, return_statistics=True)
        return found.loss, found

    grads, found = torch.func.vmap(torch.func.grad(loss, has_aux=True))(z, y)
    z.requires_grad_()
    expected = labo_cross_entropy(z, y, z_loss=1e-2, softcap=3.0, reduction="none", return_statistics=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.loss.sum(), z)[0])
    with pytest.raises(UserError, match="impl='blocked' cannot be traced; use impl='reference'"):
        torch.func.grad(lambda z: labo_cross_entropy(z, y, return_statistics=True, impl="blocked").loss)(z)


# Modules, refusals, and one list of the options.


def test_the_modules_have_the_options():
    z = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"z_loss": 1e-2, "softcap": 3.0, "return_statistics": True}
    batch: dict[str, Any] = {"row_weight": ROW_WEIGHT, "denominator": torch.tensor(7)}
    expected = labo_cross_entropy(z, TARGET, **given, **batch)
    for found in (
        labo.LABOLoss(**given)(z, TARGET, **batch),
        labo.LinearLABOLoss(**given)(z, torch.eye(9), TARGET, **batch),
    ):
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_a_memory_takes_row_weights_alone():
    z, y, indices = torch.randn(4, 5), torch.arange(4), torch.arange(4)
    rows = torch.tensor([1.0, 0.0, 2.0, 0.5])
    criterion = labo.LABOLoss(prior="memory", examples=4, reduction="none")
    losses = criterion(z, y, indices=indices)
    criterion = labo.LABOLoss(prior="memory", examples=4)
    torch.testing.assert_close(
        criterion(z, y, indices=indices, row_weight=rows, denominator=2), (losses * rows).sum() / 2
    )
    refused: dict[str, Any] = {"z_loss": 1e-4, "softcap": 3.0, "return_statistics": True}
    for name in refused:
        with pytest.raises(UserError, match=f'no argument `{name}` with prior="memory"'):
            labo.LABOLoss(prior="memory", examples=4, **{name: refused[name]})


@pytest.mark.skipif("numba" not in labo.implementations(), reason="Numba is not installed")
def test_numba_names_who_can_cap():
    with pytest.raises(UserError, match="impl='numba' does not take `softcap`; use impl='blocked'"):
        labo_cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]), softcap=3.0, impl="numba")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"z_loss": -1e-4}, ValueError, r"`z_loss` to be a number in \[0, inf\), but got -0.0001"),
        ({"z_loss": math.nan}, ValueError, "`z_loss` to be a number .* but got nan"),
        ({"z_loss": torch.tensor(1e-4)}, ValueError, "`z_loss` to be a number"),
        ({"softcap": 0.0}, ValueError, r"`softcap` to be a number in \(0, inf\), but got 0.0"),
        ({"softcap": -30}, ValueError, "`softcap`"),
        ({"softcap": math.nan}, ValueError, "`softcap`"),
        ({"softcap": math.inf}, ValueError, "`softcap`"),
        ({"row_weight": [1.0, 1.0]}, TypeError, "`row_weight` to be a tensor, but got list"),
        ({"row_weight": torch.ones(2, dtype=torch.bool)}, TypeError, "`row_weight` to be floating point"),
        ({"row_weight": torch.ones(3)}, ValueError, r"`row_weight` to have a weight for each row, shape \(2,\)"),
        ({"row_weight": torch.ones(())}, ValueError, "`row_weight` to have a weight for each row"),
        (
            {"row_weight": torch.tensor([1.0, -1.0])},
            ValueError,
            "`row_weight` to be >= 0 with reduction='mean'.*-1 to 1",
        ),
        ({"row_weight": torch.tensor([1.0, math.nan])}, ValueError, "`row_weight` to be finite, but got NaN"),
        ({"row_weight": torch.ones(2, device="meta")}, ValueError, "`row_weight` on cpu"),
        ({"denominator": -1}, ValueError, r"`denominator` to be a number in \[0, inf\), but got -1"),
        ({"denominator": torch.tensor(math.nan)}, ValueError, "`denominator` to be finite and >= 0, but got NaN"),
        ({"denominator": torch.ones(2)}, ValueError, "`denominator` to be a scalar"),
        ({"denominator": 2, "reduction": "sum"}, ValueError, "`denominator` only with reduction='mean'"),
        ({"differentiable": True}, ValueError, "`differentiable` only with return_statistics=True"),
    ],
    ids=str,
)
def test_bad_options_are_one_sentence(options, error, message):
    z, y = torch.zeros(2, 3), torch.tensor([0, 2])
    with pytest.raises(error, match=message):
        labo_cross_entropy(z, y, **options)
    with pytest.raises(error, match=message):
        linear_labo_cross_entropy(z, torch.eye(3), y, **options)


def test_every_form_has_the_same_options_and_says_what_they_mean():
    names = set(shared.ARGUMENTS)
    assert names == {field.name for field in fields(shared.LossOptions)}
    assert names == {*shared.LossArguments.__annotations__, "return_statistics"}
    for form in (labo_cross_entropy, linear_labo_cross_entropy):
        assert names <= set(inspect.signature(form).parameters)
    for module in (labo.LABOLoss, labo.LinearLABOLoss):
        assert names - set(shared.OF_BATCH) <= set(inspect.signature(module).parameters)
        assert set(shared.OF_BATCH) <= set(inspect.signature(module.forward).parameters)
    split = (labo.vocab_parallel_labo_cross_entropy, labo.vocab_parallel_linear_labo_cross_entropy)
    for form, lacking in zip(split, ({"impl"}, {"impl", "differentiable"}), strict=True):
        assert names - set(inspect.signature(form).parameters) == lacking
    for form in (labo_cross_entropy, linear_labo_cross_entropy, labo.LABOLoss, labo.LinearLABOLoss, *split):
        for name in names & set(inspect.signature(form).parameters):
            assert f"        {name}: " in (form.__doc__ or "")


def test_the_tables_of_the_page_are_those_of_the_code():
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("loss_pages", root / "benchmarks" / "loss_pages.py")
    assert spec is not None
    assert spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    text = (root / "docs" / "losses.md").read_text(encoding="utf-8")
    assert pages.filled(text) == text, "run python benchmarks/loss_pages.py docs/losses.md"
    assert "| `softcap` | yes | yes | → `blocked` | yes | yes | yes |" in text
