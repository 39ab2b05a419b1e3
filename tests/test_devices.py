"""The losses under a default device that is not the logits': every tensor is made where its inputs are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import labo
from labo import IndexedDataset, LabelRegularizedLoss, regularizers
from labo.regularizers import SameClass
from test_regularizers import batch, every, member, told

# Functions that make a tensor on the default device unless they are told another.
MAKERS = {"arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint"}
MAKERS |= {"randn", "randperm", "tensor", "zeros"}
ROOMS = ["*.py", "kernels/*.py", "regularizers/*.py", "outer/*.py"]
SOURCE = Path(labo.__file__).parent


@contextmanager
def foreign_default() -> Iterator[None]:
    """The meta device is to a CPU what a GPU is: a tensor of it mixed with one of the CPU is an error."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


def made(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PRIOR = made(1, 5).softmax(-1)
CASES: list[dict[str, Any]] = [
    {},
    {"alpha": 0.0},
    {"beta": 3.3, "prior": PRIOR},
    {"beta": float("inf"), "reduction": "none"},
    {"value": "plugin"},
    {"alpha": torch.linspace(0, 1, 6), "beta": 2.0, "reduction": "sum"},
    {"alpha": 0.5, "beta": torch.linspace(0.5, 100, 6)},
    {"weight": torch.arange(1.0, 6.0)},
]


@pytest.mark.parametrize("options", CASES, ids=[str(i) for i in range(len(CASES))])
@pytest.mark.parametrize("rows", [6, 6000])  # 6 rows are solved at once, 6,000 in blocks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_losses(impl, options, rows, dtype):
    per_row = any(isinstance(value, Tensor) and len(value) == 6 for value in options.values())
    if rows > 6 and (impl == "triton" or per_row):
        pytest.skip("nothing depends on the number of rows, or the options are for 6")
    logits, target = made(0, rows, 5).to(dtype).requires_grad_(), torch.arange(rows) % 5
    target[1] = -100
    hidden, head = made(2, rows, 3).to(dtype).requires_grad_(), made(3, 5, 3).to(dtype).requires_grad_()

    def losses() -> list[Tensor]:
        loss = labo.labo_cross_entropy(logits, target, impl=impl, **options)
        linear = labo.linear_labo_cross_entropy(hidden, head, target, impl=impl, **options)
        return [*gradients(loss, logits), *gradients(linear, hidden, head)]

    expected = losses()
    with foreign_default():
        found = losses()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_compiled_graphs():
    logits, target = made(0, 6, 5).requires_grad_(), torch.arange(6) % 5
    expected = gradients(labo.labo_cross_entropy(logits, target), logits)
    torch._dynamo.reset()
    with foreign_default():
        compiled = torch.compile(labo.labo_cross_entropy, backend="aot_eager", fullgraph=True)
        found = gradients(compiled(logits, target), logits)
    torch.testing.assert_close(found, expected)


@every
def test_the_family(name, options):
    logits, target = batch()
    logits.requires_grad_()
    given = told(member(name, options))

    def steps(regularizer: regularizers.Regularizer) -> list[Tensor]:
        torch.manual_seed(0)
        criterion = LabelRegularizedLoss(regularizer)
        losses = [criterion(logits, target, **given) for _ in range(2)]
        found = [tensor for loss in losses for tensor in gradients(loss, logits)]
        state = regularizer.state_dict()
        regularizer.load_state_dict(state)
        return [*found, *state.values()]

    expected, other = steps(member(name, options)), member(name, options)
    with foreign_default():
        found = steps(other)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["unigram_smoothing", "ls_plus", "labo[prior=unigram]"])
def test_counts_of_plain_numbers(name):
    with foreign_default():
        made = regularizers.create(name)
        made.provide(class_counts=[1, 2, 3, 4, 5])
        found = made.state_dict()
    assert {tensor.device.type for tensor in found.values()} == {"cpu"}


def test_what_serves_the_family():
    data = [{"x": torch.zeros(2), "labels": index % 3} for index in range(6)]
    target = torch.tensor([0, 1, 2, 0, 1, 2])

    def served() -> list[Tensor]:
        indexed = IndexedDataset(data)
        examples = indexed.__getitems__([1, 2])
        partners = SameClass(target).draw(target.new_tensor([0, 1]), epoch=1)
        q = labo.optimal_labels(PRIOR, beta=2.0)
        return [indexed.targets(), partners, q, labo.inner_value(PRIOR, beta=2.0), examples[0]["x"]]

    expected = served()
    with foreign_default():
        found = served()
    torch.testing.assert_close(found, expected)


def test_no_tensor_is_made_on_the_default_device():
    found = []
    for path in sorted({path for room in ROOMS for path in SOURCE.glob(room)}):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            function = node.func if isinstance(node, ast.Call) else None
            if not isinstance(function, ast.Attribute) or ast.unparse(function.value) != "torch":
                continue
            assert isinstance(node, ast.Call)
            if function.attr in MAKERS and not any(keyword.arg == "device" for keyword in node.keywords):
                found.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert not found
