"""The fused last layer: the loss and gradients of the product, without the product."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import labo
from labo import labo_cross_entropy, linear_labo_cross_entropy
from labo.kernels import blocked, linear, reference
from labo.kernels.options import Options

CLASSES, WIDTH = 9, 5


def layer(rows: int = 14, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """(hidden, weight, bias, target), a fifth of the rows ignored."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((rows, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    tensors = [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    target = torch.randint(CLASSES, (rows,), generator=draw)
    target[::5] = -100
    return (*tensors, target)


@pytest.fixture(params=[10**9, 3 * 8 * CLASSES, 1], ids=["one chunk", "three rows", "a row"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sizes of chunks."""
    monkeypatch.setattr(linear, "CHUNK_BYTES", request.param)


OPTIONS: list[dict[str, Any]] = [
    {"beta": 2.0},
    {"beta": math.inf, "reduction": "sum"},
    {"beta": 0.5, "alpha": 0.9, "reduction": "none"},
    {"alpha": 0.0},
    {"weight": torch.rand(CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))},
    {"alpha": torch.linspace(0, 1, 14, dtype=torch.float64), "beta": torch.linspace(0.5, 20, 14, dtype=torch.float64)},
]


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("options", OPTIONS, ids=[str(i) for i in range(len(OPTIONS))])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_loss_of_the_product(options, with_bias):
    hidden, weight, bias, target = layer()
    leaves = (hidden, weight, bias) if with_bias else (hidden, weight)
    product = hidden @ weight.T + (bias if with_bias else 0)
    expected = labo_cross_entropy(product, target, impl="reference", **options)
    head_bias = bias if with_bias else None
    found = linear_labo_cross_entropy(hidden, weight, target, linear_bias=head_bias, impl="blocked", **options)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(found.shape, dtype=torch.float64)
    theirs = torch.autograd.grad(expected, leaves, upstream)
    for retain in (True, True, False):  # the second and the third time the gradients are made again
        ours = torch.autograd.grad(found, leaves, upstream, retain_graph=retain)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives(reduction):
    hidden, weight, bias, target = layer(4)

    def function(*leaves: torch.Tensor) -> torch.Tensor:
        h, w, b = leaves
        return linear_labo_cross_entropy(h, w, target, linear_bias=b, alpha=0.4, reduction=reduction, impl="blocked")

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))
    assert torch.autograd.gradgradcheck(function, (hidden, weight, bias))


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_nothing_computed(frozen, monkeypatch):
    tensors = dict(zip(("hidden", "weight", "bias", "target"), layer(), strict=True))
    tensors[frozen] = tensors[frozen].detach()
    seen: list[list[bool]] = []
    add = linear._Gradients.add

    def watched(self: Any, *arguments: Any) -> None:
        seen.append([value is not None for value in (self.hidden, self.weight, self.bias)])
        add(self, *arguments)

    monkeypatch.setattr(linear._Gradients, "add", watched)
    hidden, weight, bias, target = tensors.values()
    linear_labo_cross_entropy(hidden, weight, target, linear_bias=bias).backward()
    assert seen == [[name != frozen for name in ("hidden", "weight", "bias")]]
    assert tensors[frozen].grad is None


def test_the_gradient_is_not_made_where_nothing_needs_it(monkeypatch):
    hidden, weight, bias, target = layer()
    asked = []
    solve = blocked.solve
    monkeypatch.setattr(blocked, "solve", lambda *a, **k: asked.append(k["gradient"]) or solve(*a, **k))
    with torch.no_grad():
        linear_labo_cross_entropy(hidden, weight, target, linear_bias=bias)
    assert asked == [False]


def test_a_tied_weight_gets_both_gradients():
    _, weight, _, target = layer()
    index = torch.arange(14) % CLASSES

    def tied(impl: str) -> torch.Tensor:
        return linear_labo_cross_entropy(weight[index], weight, target, impl=impl)

    ours, theirs = (torch.autograd.grad(tied(impl), weight)[0] for impl in ("blocked", "reference"))
    torch.testing.assert_close(ours, theirs)


def test_ignored_rows_are_dropped_before_the_product(monkeypatch):
    hidden, weight, _, target = layer()
    with torch.no_grad():
        hidden[::5] = math.nan
    rows = []
    solve = blocked.solve
    monkeypatch.setattr(blocked, "solve", lambda logits, *a, **k: rows.append(len(logits)) or solve(logits, *a, **k))
    linear_labo_cross_entropy(hidden, weight, target).backward()
    assert rows == [11]
    assert hidden.grad is not None
    assert not hidden.grad[::5].any()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_nothing_kept_and_nothing_at_all():
    hidden, weight, _, _ = layer()
    for h, target in ((hidden, torch.full((14,), -100)), (hidden[:0], torch.empty(0, dtype=torch.long))):
        loss = linear_labo_cross_entropy(h, weight, target)
        assert loss.item() == 0
        assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (hidden, weight)))


def test_probability_targets():
    hidden, weight, bias, _ = layer()
    target = torch.rand(14, CLASSES, dtype=torch.float64).softmax(-1)
    for reduction in ("mean", "none"):
        options: dict[str, Any] = {"alpha": 0.3, "reduction": reduction}
        found = linear_labo_cross_entropy(hidden, weight, target, linear_bias=bias, impl="blocked", **options)
        torch.testing.assert_close(found, labo_cross_entropy(hidden @ weight.T + bias, target, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_gradient_of_the_weight_is_summed_in_float32(dtype):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(4096, 8, generator=draw).to(dtype)
    weight = torch.randn(16, 8, generator=draw).to(dtype).requires_grad_()
    target = torch.randint(16, (4096,), generator=draw)
    options: dict[str, Any] = {"alpha": 0.2, "reduction": "sum"}
    truth = torch.autograd.grad(labo_cross_entropy(hidden.double() @ weight.double().T, target, **options), weight)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "CHUNK_BYTES", 16 * 16 * dtype.itemsize)  # 256 chunks
        found = torch.autograd.grad(linear_labo_cross_entropy(hidden, weight, target, **options), weight)[0]
    assert found.dtype == dtype
    scale = truth.double().abs().max()
    assert (found.double() - truth.double()).abs().max() <= (2e-2 if dtype == torch.bfloat16 else 1e-5) * scale


def test_autocast_runs_the_layer_as_autocast_would():
    hidden, weight, bias, target = layer(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (
            linear_labo_cross_entropy(hidden, weight, target, linear_bias=bias, impl=impl)
            for impl in ("blocked", "reference")
        )
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    found.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_the_module_is_the_function():
    hidden, weight, bias, target = layer()
    found = labo.LinearLABOLoss(alpha=0.3, beta=3.0)(hidden, weight, target, bias)
    torch.testing.assert_close(found, labo_cross_entropy(hidden @ weight.T + bias, target, alpha=0.3, beta=3.0))


def test_second_derivatives_do_not_see_what_an_ignored_row_holds():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator).requires_grad_()
    target = torch.tensor([0, -100, 2, 1])
    found = []
    for held in (math.nan, 0.0):
        hidden[1] = held
        (slope,) = torch.autograd.grad(linear_labo_cross_entropy(hidden, weight, target), weight, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), weight)[0])
    assert found[1].abs().sum() > 0
    assert torch.equal(*found)


class Counted(TorchDispatchMode):
    """Counts operations by name, and the bytes that copies and products write."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.written = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.counts[name] += 1
        if name in ("mm", "addmm", "addmm_", "copy_", "clone", "add_", "where") and isinstance(result, torch.Tensor):
            self.written += result.numel() * result.element_size()
        return result


@pytest.mark.parametrize("rows", [14, 5, 3])
@pytest.mark.parametrize("with_bias", [True, False])
def test_as_on_a_device_it_waits_for_nothing_and_copies_nothing(rows, with_bias, monkeypatch):
    hidden, weight, bias, target = layer(dtype=torch.float32)
    row_weights = (target >= 0).float() / 14
    with torch.no_grad():
        hidden[::5] = math.nan  # rows of weight 0 hold anything
    expected = linear_labo_cross_entropy(hidden, weight, target, linear_bias=bias if with_bias else None)
    head = linear.Head(weight.detach(), bias.detach() if with_bias else None)
    wanted = (True, True, with_bias)
    given = (hidden.detach(), head, target.clamp(min=0), row_weights, Options(0.1, 2.0), wanted, linear.Chunks(rows))

    def solve(logits, *_, out, **__):  # what a kernel does, in no operation of PyTorch
        return row_weights.new_zeros(len(logits)), out

    monkeypatch.setattr(linear, "_on_cpu", lambda tensor: False)
    with Counted() as mode:
        linear.solve_linear(solve, *given)
    chunks = -(-14 // rows)
    assert mode.counts["mm"] + mode.counts["addmm"] + mode.counts["addmm_"] == 3 * chunks
    assert mode.counts["addmm_"] == chunks - 1
    assert not {"nonzero", "_local_scalar_dense", "index", "index_put_", "item"} & mode.counts.keys()
    logits, clean, layer_bytes = 14 * CLASSES * 4, 14 * WIDTH * 4, chunks * CLASSES * WIDTH * 4
    losses, bias_sums = 14 * 4, chunks * CLASSES * 4 if with_bias else 0
    assert mode.written == logits + 2 * clean + layer_bytes + losses + bias_sums
    losses, grads = linear.solve_linear(reference.solve, *given)
    torch.testing.assert_close(losses.sum() * 14 / 11, expected)
    (theirs,) = torch.autograd.grad(expected, weight)
    assert grads[0] is not None
    assert grads[1] is not None
    torch.testing.assert_close(grads[1] * 14 / 11, theirs)
    assert not grads[0][::5].any()


@pytest.mark.parametrize("chunk_rows", [None, 1, 4, 100])
@pytest.mark.parametrize("accumulate", ["float32", "input"])
@pytest.mark.parametrize("impl", ["blocked", "reference"])
def test_chunks_by_option(chunk_rows, accumulate, impl):
    hidden, weight, bias, target = layer(dtype=torch.bfloat16)
    leaves = (hidden, weight, bias)
    expected = linear_labo_cross_entropy(hidden.double(), weight.double(), target, linear_bias=bias.double())
    found = linear_labo_cross_entropy(
        hidden, weight, target, linear_bias=bias, chunk_rows=chunk_rows, accumulate=accumulate, impl=impl
    )
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)
    theirs = torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), theirs, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_rows": 0}, "`chunk_rows` to be a whole number of at least 1, but got 0"),
        ({"chunk_rows": 2.5}, "`chunk_rows` to be a whole number of at least 1, but got 2.5"),
        ({"accumulate": "float16"}, "Unknown accumulate 'float16'"),
    ],
)
def test_bad_chunks_get_one_sentence(options: dict[str, Any], message: str):
    hidden, weight, _, target = layer()
    with pytest.raises(ValueError, match=message):
        linear_labo_cross_entropy(hidden, weight, target, **options)


def test_chunks_by_default_fit_the_caches_or_the_free_memory(monkeypatch):
    rows_of = linear.Chunks().rows_of
    assert rows_of(torch.zeros(1, 3), 1000) == 2**25 // 4000
    assert rows_of(torch.zeros(1, 3), 2**30) == 1
    gib = 2**30
    for name, size in (("mem_get_info", (3 * gib, 80 * gib)), ("memory_reserved", 2 * gib), ("memory_allocated", gib)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    hidden: Any = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 2)
    assert rows_of(hidden, 2**18) == 2048  # 1 GiB of logits
    assert rows_of(hidden, 2**20) == 512  # a quarter of 4 GiB, in rows of 2 MiB
    assert rows_of(hidden, 2**31) == 1
    assert linear.Chunks(7).rows_of(hidden, 2**20) == 7


def test_the_module_takes_the_options_of_chunks():
    criterion = labo.LinearLABOLoss(chunk_rows=2, accumulate="input")
    hidden, weight, target = torch.randn(5, 3), torch.randn(4, 3, requires_grad=True), torch.arange(5) % 4
    loss = criterion(hidden, weight, target)
    loss.backward()
    assert loss.item() == pytest.approx(labo.linear_labo_cross_entropy(hidden, weight, target).item(), rel=1e-6)
    with pytest.raises(ValueError, match="`chunk_rows` to be a whole number of at least 1, but got 0"):
        labo.LinearLABOLoss(chunk_rows=0)
    with pytest.raises(ValueError, match="accumulate"):
        labo.LinearLABOLoss(accumulate="bfloat16")
    with pytest.raises(TypeError, match="`label_smoothing`"):
        labo.LinearLABOLoss(label_smoothing=0.1)
