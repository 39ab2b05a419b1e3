"""The loss under torch.compile: one operator in the graph, with the gradients and refusals of eager mode."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
import torch

import labo
from labo import labo_cross_entropy, linear_labo_cross_entropy
from labo.kernels import operators

PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])
TARGET = torch.tensor([0, 4, -100, 2])
OPTIONS: list[dict[str, Any]] = [
    {},
    {"alpha": 0.0},
    {"beta": 3.0, "prior": PRIOR},
    {"beta": math.inf},
    {"value": "plugin"},
    {"alpha": torch.linspace(0, 1, 4), "beta": torch.linspace(0.5, 4, 4)},
    {"weight": torch.arange(1.0, 6.0)},
    {"impl": "blocked"},
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


class Graphs:
    """A backend that notes which operators of ours a graph holds."""

    def __init__(self) -> None:
        self.operators: list[str] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.operators += [str(n.target) for n in graph.graph.nodes if str(n.target).startswith("labo.")]
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def compiled(function: Any, *inputs: torch.Tensor, **options: Any) -> tuple[torch.Tensor, list[str]]:
    graphs = Graphs()
    return torch.compile(function, fullgraph=True, backend=graphs, **options)(*inputs), graphs.operators


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_operator_with_the_gradient_of_eager_mode(options, reduction, dtype):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()

    def loss(z: torch.Tensor) -> torch.Tensor:
        return labo_cross_entropy(z, TARGET, reduction=reduction, **options)

    found, names = compiled(loss, logits)
    assert names == ["labo.loss.default"]
    expected = loss(logits)
    torch.testing.assert_close(found, expected)
    upstream = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, theirs = (torch.autograd.grad(x, logits, upstream)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_last_layer(reduction, frozen, dtype):
    draw = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(s, generator=draw).to(dtype) for s in ((4, 3), (5, 3), (5,)))
    leaves = [x.requires_grad_() for x in ((hidden,) if frozen else (hidden, weight, bias))]

    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return linear_labo_cross_entropy(hidden, weight, TARGET, linear_bias=bias, reduction=reduction)

    found, names = compiled(loss, hidden, weight, bias)
    assert names == ["labo.linear_loss.default"]
    expected = loss(hidden, weight, bias)
    torch.testing.assert_close(found, expected)
    upstream = torch.rand(expected.shape, generator=draw).to(dtype)
    torch.testing.assert_close(*(torch.autograd.grad(x, leaves, upstream) for x in (found, expected)))


def test_a_schedule_and_another_batch_size_are_no_new_graphs():
    graphs = Graphs()

    @torch.compile(fullgraph=True, backend=graphs, dynamic=True)
    def loss(z: torch.Tensor, y: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return labo_cross_entropy(z, y, alpha=alpha)

    # A number is part of a graph, as torch has it; a tensor is not.
    counts = []
    for rows, strength in ((4, 0.1), (6, 0.2), (8, 0.25)):
        alpha = torch.tensor(strength)
        z, y = torch.randn(rows, 5), torch.arange(rows) % 5
        torch.testing.assert_close(loss(z, y, alpha), labo_cross_entropy(z, y, alpha=alpha))
        counts.append(len(graphs.operators))
    assert counts[0] == counts[-1] > 0


@pytest.mark.parametrize("linear", [True, False])
def test_autocast(linear):
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)

    def loss(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear_labo_cross_entropy(h, w, TARGET) if linear else labo_cross_entropy(h @ w.T, TARGET)

    found, expected = compiled(loss, hidden, weight)[0], loss(hidden, weight)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(x, (hidden, weight)) for x in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-2, atol=1e-3)


def test_learnt_options_and_transforms_stay_with_the_reference():
    logits = torch.randn(4, 5)
    beta = torch.tensor(2.0, requires_grad=True)
    found, names = compiled(lambda z, b: labo_cross_entropy(z, TARGET, beta=b), logits, beta)
    assert not names
    expected = labo_cross_entropy(logits, TARGET, beta=beta)
    torch.testing.assert_close(*(torch.autograd.grad(x, beta)[0] for x in (found, expected)))

    def loss(z: torch.Tensor) -> torch.Tensor:
        return labo_cross_entropy(z, TARGET)

    slopes, names = compiled(torch.func.grad(loss), logits)
    assert not names
    torch.testing.assert_close(slopes, torch.func.grad(loss)(logits))


def test_the_reference_is_traced_as_it_is():
    logits = torch.randn(4, 5, requires_grad=True)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return labo_cross_entropy(z, TARGET, beta=3.0, impl="reference")

    found, names = compiled(loss, logits)
    assert not names
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (found, loss(logits))))


def test_an_implementation_that_cannot_says_so_when_it_runs():
    logits = torch.randn(2, 3, dtype=torch.float64)
    target = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="impl='numba'"):
        compiled(lambda z: labo_cross_entropy(z, target, impl="numba"), logits)


@pytest.mark.parametrize("total", [True, False])
def test_the_operators_are_well_formed(total):
    alpha, beta = torch.tensor([0.1]), torch.tensor([2.0])
    row_weights = torch.tensor([0.3, 0.3, 0.0, 0.4])
    target = TARGET.clamp(min=0)
    options = (target, row_weights, alpha, beta, PRIOR, None, "inner", "auto", total)
    logits, hidden, weight, bias = (torch.randn(s).requires_grad_() for s in ((4, 5), (4, 3), (5, 3), (5,)))
    torch.library.opcheck(operators._loss, (logits, *options, total))
    torch.library.opcheck(operators._linear, (hidden, weight, bias, *options, 0, "float32", [total] * 3))
    needs = [total, False, False]
    torch.library.opcheck(operators._linear, (hidden, weight, None, *options, 2, "input", needs))


def test_the_family_compiles():
    logits = torch.randn(4, 5, requires_grad=True)
    criterion = labo.LABOLoss(alpha=0.2)
    found, names = compiled(criterion, logits, TARGET)
    assert names
    torch.testing.assert_close(found, criterion(logits, TARGET))


@pytest.mark.parametrize("impl", ["auto", *labo.implementations()])
@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
@pytest.mark.parametrize("linear", [True, False])
def test_a_target_that_is_no_class_is_no_write_beside_the_buffer(impl, wrong, linear):
    target = torch.tensor([0, wrong, 2])
    logits, head = torch.randn(3, 5, requires_grad=True), torch.eye(5)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return (
            linear_labo_cross_entropy(z, head, target, impl=impl)
            if linear
            else labo_cross_entropy(z, target, impl=impl)
        )

    try:
        found, _ = compiled(loss, logits)
    except (IndexError, RuntimeError, ValueError):
        return
    assert found.isnan()  # as Triton's kernels, which cannot raise, tell it


def test_the_gradient_from_above_keeps_its_precision():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    target, scale = torch.arange(8) % 5, 1 / 3

    def loss(z: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return labo_cross_entropy(z, target, reduction="sum")

    whole = torch.autograd.grad(loss(logits), logits)[0]
    found = torch.autograd.grad(compiled(loss, logits)[0] * scale, logits)[0]
    assert torch.equal(found, (whole.double() * torch.tensor(scale).double()).bfloat16())


NO_CLASS = "Expected argument `target` to be class indices in .* but got"


@pytest.mark.parametrize(
    "method",
    [
        "none",
        "focal",
        "poly1",
        "label_smoothing[convention=fairseq]",
        "label_smoothing[convention=joeynmt,padding_index=1]",
        "gce",
        "tf_kd_reg",
        "zipf_smoothing",
        "acls",
        "labo",
    ],
)
def test_a_target_that_is_no_class_is_told_by_every_member_in_a_graph(method):
    """Some formulas, such as a one-hot target, would be computed without an error."""
    criterion = labo.LabelRegularizedLoss(labo.regularizers.create(method), ignore_index=255)
    compiled_loss = torch.compile(criterion, fullgraph=True, backend="aot_eager", dynamic=True)
    logits = torch.randn(3, 5, requires_grad=True)
    kept = torch.tensor([0, 255, 2])
    torch.testing.assert_close(compiled_loss(logits, kept), criterion(logits, kept))
    for wrong in (-1, 5):
        target = torch.tensor([0, wrong, 2])
        with pytest.raises(RuntimeError, match=NO_CLASS):
            compiled_loss(logits, target)
        with pytest.raises(ValueError, match=NO_CLASS):
            criterion(logits, target)


@pytest.mark.parametrize("linear", [False, True])
def test_narrow_targets_are_widened_in_a_graph(linear):
    logits, head = torch.randn(3, 256), torch.eye(256)

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if linear:
            return linear_labo_cross_entropy(z, head, y, ignore_index=0)
        return labo_cross_entropy(z, y, ignore_index=0)

    target = torch.tensor([0, 3, 255])
    torch.testing.assert_close(compiled(loss, logits, target.byte())[0], loss(logits, target))


def test_a_target_that_is_no_class_under_a_transform_in_a_graph():
    logits, target = torch.randn(3, 5), torch.tensor([0, 7, 2])
    criterion = labo.LabelRegularizedLoss(labo.regularizers.create("poly1"))
    with pytest.raises(RuntimeError, match=NO_CLASS):
        compiled(torch.func.grad(criterion), logits, target)
    criterion = labo.LabelRegularizedLoss(labo.regularizers.create("labo"))
    whole = torch.compile(torch.func.vmap(criterion), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        whole(logits, target.clamp(max=4)), torch.stack([*map(criterion, logits, target.clamp(max=4))])
    )
    with suppress(RuntimeError, IndexError):  # of the kernel that takes the index
        assert whole(logits, target).isnan().tolist() == [False, True, False]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_logits_may_change_after_a_compiled_loss():
    leaf = torch.randn(4, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(labo_cross_entropy(leaf * 2, TARGET), leaf)
    logits = leaf * 2
    loss, _ = compiled(lambda z: labo_cross_entropy(z, TARGET), logits)
    logits.add_(1)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected)
