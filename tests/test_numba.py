"""The Numba implementation: in float32 and bfloat16 beside the reference, its threads, and the rows it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import labo
from labo import labo_cross_entropy
from labo.errors import UserError
from labo.kernels import blocked, choose, numba
from labo.kernels.options import Options

needs_numba = pytest.mark.skipif(
    numba.unavailable_reason() is not None, reason=f"no Numba here: {numba.unavailable_reason()}"
)

PRIOR = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4])
OPTIONS: list[dict[str, Any]] = [
    {"alpha": 0.0},
    *({"alpha": alpha, "beta": beta} for alpha in (0.1, 1.0) for beta in (0.3, 1.0, 2.0, 3.0, 4.0, 5.5, math.inf)),
    {"beta": 2.0, "prior": PRIOR},
    {"beta": 3.3, "prior": PRIOR},
    {"beta": math.inf, "prior": torch.tensor([0.5, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1])},
    {"beta": math.inf, "prior": PRIOR},
    {"alpha": torch.linspace(0, 1, 12), "beta": torch.linspace(0.2, 7, 12)},
    {"alpha": torch.tensor(0.4), "beta": torch.linspace(0.2, 7, 12)},
]


def batch(rows: int = 12, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    target = torch.randint(classes, (rows,), generator=generator)
    target[::5] = -100
    return logits.requires_grad_(), target


@needs_numba
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_it_is_the_reference(options, reduction):
    logits, target = batch()
    with torch.no_grad():
        logits[0] = math.nan  # ignored
    wide = logits.detach().double().requires_grad_()
    found = labo_cross_entropy(logits, target, impl="numba", reduction=reduction, **options)
    expected = labo_cross_entropy(wide, target, impl="reference", reduction=reduction, **options)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)
    (ours,) = torch.autograd.grad(found, logits, upstream)
    (theirs,) = torch.autograd.grad(expected, wide, upstream.double())
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-6, atol=1e-6)


@needs_numba
@pytest.mark.parametrize("options", [{"beta": 0.5}, {"beta": 2.0}, {"beta": math.inf}, {"alpha": 0.0}], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_masked_and_infinite_logits_are_as_the_reference_has_them(options, reduction):
    inf = math.inf
    logits = torch.tensor([[1, -inf, 0.5, 3], [-inf, 0, -inf, 2], [-inf] * 4, [0, 1, 2, -inf], [0, 1, 2, 3]])
    strange = torch.tensor([[0, inf, 1, 2], [0, 1, math.nan, 2], [0, 1, -math.nan, 2]])
    logits = torch.cat([logits, strange, torch.tensor([[1e37, -1e37, 0, 1]])]).requires_grad_()
    target = torch.tensor([0, 1, 0, 3, 2, 0, 0, 0, 0])
    found, expected = (
        labo_cross_entropy(logits, target, reduction=reduction, impl=impl, **options) for impl in ("numba", "reference")
    )
    torch.testing.assert_close(found, expected, equal_nan=True)
    ours, theirs = (torch.autograd.grad(loss.sum(), logits)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@needs_numba
@pytest.mark.parametrize("shape", [(252, 507), (1, 131_072), (4096, 3), (33, 1000), (5, 1025)])
@pytest.mark.parametrize("beta", [0.5, 2.0, 3.0, 4.0, math.inf])
@pytest.mark.parametrize("spread", [0.01, 8.0])
def test_no_less_accurate_than_the_reference(shape, beta, spread):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(shape, generator=generator) * spread
    target = torch.randint(shape[1], shape[:1], generator=generator)
    errors = {}
    wide = logits.double().requires_grad_()
    truth = labo_cross_entropy(wide, target, alpha=0.4, beta=beta, reduction="none", impl="reference")
    (slope,) = torch.autograd.grad(truth.sum(), wide)
    for impl in ("reference", "numba"):
        z = logits.clone().requires_grad_()
        found = labo_cross_entropy(z, target, alpha=0.4, beta=beta, reduction="none", impl=impl)
        (gradient,) = torch.autograd.grad(found.sum(), z)
        errors[impl] = ((found.double() - truth).abs(), (gradient.double() - slope).norm(dim=-1))
    assert (errors["numba"][0] <= errors["reference"][0].max() + 1e-6 * truth.abs().clamp(min=1)).all()
    assert errors["numba"][1].max() <= errors["reference"][1].max() + 1e-6 * slope.norm(dim=-1).clamp(min=1).max()


@needs_numba
@pytest.mark.parametrize("options", OPTIONS[:8], ids=str)
def test_bfloat16_is_rounded_once(options):
    logits, target = batch()
    half = logits.detach().bfloat16().requires_grad_()
    wide = half.detach().float().requires_grad_()
    found, expected = (labo_cross_entropy(z, target, impl="numba", reduction="sum", **options) for z in (half, wide))
    assert torch.equal(found, expected.bfloat16())
    ours, theirs = (torch.autograd.grad(loss, z)[0] for loss, z in ((found, half), (expected, wide)))
    assert torch.equal(ours, theirs.bfloat16())


@needs_numba
def test_threads_change_nothing(monkeypatch):
    logits, target = batch(53, 40)
    options = {"alpha": torch.linspace(0, 1, 53), "beta": 2.0, "reduction": "none"}
    one = labo_cross_entropy(logits, target, impl="numba", **options)
    (alone,) = torch.autograd.grad(one.sum(), logits)
    monkeypatch.setattr(numba, "MIN_LOGITS_PER_THREAD", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    several = labo_cross_entropy(logits, target, impl="numba", **options)
    assert torch.equal(one, several)
    assert torch.equal(alone, torch.autograd.grad(several.sum(), logits)[0])


@needs_numba
@pytest.mark.parametrize("size", [1, 10**9])
def test_strided_logits(size, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK_BYTES", size)
    wide = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([[0, 1, 2, 3, 4, -100, 0]]).expand(6, 7)
    before = wide.detach().clone()
    found, expected = (labo_cross_entropy(wide, target, beta=3.0, impl=impl) for impl in ("numba", "reference"))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, wide)[0] for loss in (found, expected)))
    assert torch.equal(wide.detach(), before)


@needs_numba
def test_a_second_backward_is_the_first_again():
    logits, target = batch()
    loss = labo_cross_entropy(logits, target, impl="numba")
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    kept = first.clone()
    first.fill_(math.nan)  # the buffer was given away: whoever has it may write on it
    assert torch.equal(torch.autograd.grad(loss, logits, retain_graph=True)[0], kept)
    slope = torch.autograd.grad(loss, logits, create_graph=True)[0]  # by the reference
    torch.testing.assert_close(slope, kept)
    assert torch.autograd.grad(slope.square().sum(), logits)[0].abs().sum() > 0


@needs_numba
@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer(bias):
    draw = torch.Generator().manual_seed(0)
    leaves = [torch.randn(shape, generator=draw).requires_grad_() for shape in ((9, 4), (11, 4), (11,))]
    hidden, weight, offset = leaves
    target = torch.tensor([0, 1, -100, 3, 4, 5, 6, 7, 10])
    leaves = leaves if bias else leaves[:2]
    found, expected = (
        labo.linear_labo_cross_entropy(hidden, weight, target, linear_bias=offset if bias else None, impl=impl)
        for impl in ("numba", "reference")
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaves) for loss in (found, expected)))


@needs_numba
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": torch.float64}, "takes float32 and bfloat16, but got torch.float64"),
        ({"value": "plugin"}, "and the inner value"),
        ({"alpha": 1.0, "beta": 100.0}, r"takes alpha \* beta up to 8"),
        ({"prior": torch.tensor([0.5, 0.5, 0.0])}, "one prior with mass on every class"),
        ({"target": torch.full((2, 3), 1 / 3)}, "class indices, not probabilities"),
    ],
    ids=str,
)
def test_what_it_cannot_do_names_what_can(options, told):
    logits = torch.zeros(2, 3, dtype=options.pop("dtype", torch.float32))
    options = {"target": torch.tensor([0, 1]), **options}
    with pytest.raises(UserError, match=rf"impl='numba' .*{told}.*; use impl='blocked'"):
        labo_cross_entropy(logits, impl="numba", **options)
    labo_cross_entropy(logits, **options)


def test_without_it_the_blocked_one_is_taken(monkeypatch):
    monkeypatch.setattr(numba, "unavailable_reason", lambda: "the package `numba` is not installed")
    assert "numba" not in labo.implementations()
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    assert choose("auto", (logits,), target, Options(0.1, 2.0)) is blocked.solve
    with pytest.raises(UserError, match="impl='numba' cannot run here: the package `numba` is not installed"):
        labo_cross_entropy(logits, target, impl="numba")


@needs_numba
def test_no_folder_for_a_cache_is_no_obstacle(monkeypatch):
    import numba as compiler

    from labo.kernels import numba_kernels

    compile_ = compiler.njit

    def without(*, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_(**options)

    monkeypatch.setattr(numba_kernels, "njit", without)
    assert numba_kernels._compiled(lambda x: x + 1)(1) == 2


def test_without_its_compiler_the_blocked_one_is_taken(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    numba.unavailable_reason.cache_clear()
    try:
        logits, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
        assert "numba" not in labo.implementations()
        expected = labo_cross_entropy(logits, target, impl="reference")
        torch.testing.assert_close(labo_cross_entropy(logits, target), expected)
        with pytest.raises(UserError, match=r"impl='numba' cannot run here: .*NUMBA_DISABLE_JIT is set"):
            labo_cross_entropy(logits, target, impl="numba")
    finally:
        monkeypatch.undo()
        numba.unavailable_reason.cache_clear()


@needs_numba
@pytest.mark.parametrize("beta", [2.0, 5.5, math.inf])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("classes", [8, 10, 12, 17, 24, 31, 100])
def test_where_the_memory_lies_changes_no_bit(beta, with_prior, classes):
    """A compiled loop sums in another order where what it writes begins less than 256 bytes after what it reads."""
    import numpy as np

    from labo.kernels import numba_kernels as kernels

    rows, size = 3, len(kernels.scratch_of(classes))
    lengths = {"logits": rows * classes, "prior": classes, "out": rows * classes, "scratch": size}
    far = {"logits": 1000, "prior": 3000, "out": 5000, "scratch": 8000}
    memory = np.zeros(10_000, np.float32)
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(0)).numpy()
    prior = torch.rand(classes, generator=torch.Generator().manual_seed(1)).softmax(-1).numpy()
    weights, target = np.full(rows, 0.3, np.float32), np.arange(rows)

    def swept(starts: dict[str, int]) -> bytes:
        lying = {name: memory[start : start + lengths[name]] for name, start in starts.items()}
        lying["logits"][:], lying["prior"][:] = logits.ravel(), prior
        z, out, losses = lying["logits"].reshape(rows, -1), lying["out"].reshape(rows, -1), np.empty(rows, np.float32)
        given = lying["prior"] if with_prior else kernels.NO_PRIOR
        results = (out, losses, np.empty(rows, bool), lying["scratch"], 0.0, kernels.NO_STATISTICS)
        assert kernels.sweep(z, target, weights, kernels.pair(0.3, beta), given, True, *results) == 0
        return out.tobytes() + losses.tobytes()

    expected = swept(far)
    for name in ("logits", "prior", "out"):
        for distance in range(0, 72):
            for start in (far["scratch"] + size + distance, far["scratch"] - lengths[name] - distance):
                assert swept({**far, name: start}) == expected, (name, start - far["scratch"])


@needs_numba
def test_the_gradient_does_not_depend_on_the_heap():
    """Memory of odd sizes comes and goes between the calls, as in a training."""
    logits = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    draw, held, found = torch.Generator().manual_seed(1), [], set()
    for _ in range(300):
        held += [bytearray(int(size)) for size in torch.randint(16, 500, (8,), generator=draw)]
        del held[: max(0, len(held) - 100) : 2]
        z = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(labo_cross_entropy(z, torch.arange(6), beta=5.5, impl="numba"), z)
        found.add(gradient.numpy().tobytes())
    assert len(found) == 1
