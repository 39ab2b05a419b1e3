"""LABOLoss where nn.CrossEntropyLoss stood: its arguments, its state, and the model around it."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import labo

CLASSES = 5
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0, 1.5])
# Every argument of the original, each with values other than its default.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "weight": (WEIGHT,),
    "ignore_index": (2, -1),
    "reduction": ("none", "sum"),
    "size_average": (True, False),
    "reduce": (True, False),
    "label_smoothing": (0.3,),
}


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=draw, dtype=torch.float64)
    return logits, torch.randint(CLASSES, (shape[0], *shape[2:]), generator=draw)


def same(ours: nn.Module, theirs: nn.Module, logits: Tensor, target: Tensor) -> None:
    found = []
    for criterion in (ours, theirs):
        z = logits.clone().requires_grad_()
        loss = criterion.double()(z, target)
        loss.sum().backward()
        found.append((loss.detach(), z.grad))
    torch.testing.assert_close(found[0], found[1])


def test_the_table_has_every_argument():
    assert set(inspect.signature(nn.CrossEntropyLoss).parameters) == set(ARGUMENTS)


@pytest.mark.filterwarnings("ignore:size_average and reduce args:UserWarning")
@pytest.mark.parametrize("shape", [(6, CLASSES), (3, CLASSES, 2, 4)])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name in ARGUMENTS for value in ARGUMENTS[name]])
def test_each_argument_means_what_it_does_there(shape, name, value):
    logits, target = batch(shape)
    theirs = nn.CrossEntropyLoss(**{name: value})
    if name == "ignore_index" and value < 0:
        target[0] = value
    options: dict[str, Any] = {"alpha": 0.0} | {name: value}
    if name == "label_smoothing":
        with pytest.raises(TypeError, match=r"of strength e is alpha=e, beta=float\('inf'\)"):
            labo.LABOLoss(**options)
        options = {"alpha": value, "beta": math.inf}
    same(labo.LABOLoss(**options), theirs, logits, target)


def test_deprecated_arguments_warn_as_there():
    with pytest.warns(UserWarning, match="please use reduction='sum' instead"):
        assert labo.LABOLoss(size_average=False).reduction == "sum"


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_soft_targets(reduction):
    logits, _ = batch((6, CLASSES))
    soft = torch.rand(6, CLASSES, dtype=torch.float64).softmax(-1)
    for weight in (None, WEIGHT):
        theirs = nn.CrossEntropyLoss(weight, reduction=reduction)
        same(labo.LABOLoss(weight, alpha=0.0, reduction=reduction), theirs, logits, soft)


def test_checkpoints_fit_both_ways():
    cases: list[Any] = [(), (WEIGHT,)]
    for arguments in cases:
        ours, theirs = labo.LABOLoss(*arguments), nn.CrossEntropyLoss(*arguments)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())


def copies(criterion: nn.Module) -> list[nn.Module]:
    file = io.BytesIO()
    torch.save(criterion, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    return [pickle.loads(pickle.dumps(criterion)), copy.deepcopy(criterion), loaded]


def test_pickled_losses_are_the_same_loss():
    logits, target = batch((6, CLASSES))
    criterion = labo.LABOLoss(WEIGHT.double(), alpha=0.4, beta=1.5, prior=torch.full((CLASSES,), 0.2).double())
    for copied in copies(criterion):
        torch.testing.assert_close(copied(logits, target), criterion(logits, target), rtol=0, atol=0)


def test_a_pickled_memory_goes_along():
    logits, target = batch((6, CLASSES))
    criterion = labo.LABOLoss(prior="memory", examples=6)
    for _ in range(3):
        criterion(logits, target, indices=torch.arange(6))
    expected = [criterion(logits, target, indices=torch.arange(6)) for criterion in copies(criterion)]
    forgotten = labo.LABOLoss(prior="memory", examples=6)(logits, target, indices=torch.arange(6))
    own = criterion(logits, target, indices=torch.arange(6))
    for loss in expected:
        torch.testing.assert_close(loss, own)
        assert (loss - forgotten).abs() > 1e-3


class Network(nn.Module):
    def __init__(self, criterion: nn.Module | None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, CLASSES)
        if criterion is not None:
            self.criterion = criterion

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


@pytest.mark.parametrize("options", [{}, {"prior": "memory", "examples": 4}])
def test_exporting_a_model_leaves_its_loss_out(options):
    x, target = torch.randn(4, 3), torch.arange(4)
    model = Network(labo.LABOLoss(**options))
    model.criterion(model(x), target, **({"indices": torch.arange(4)} if options else {})).backward()
    exported, plain = (torch.export.export(each.eval(), (x,)) for each in (model, Network(None)))
    operations = [
        [node.target for node in each.graph.nodes if node.op == "call_function"] for each in (exported, plain)
    ]
    assert operations[0] == operations[1]
    torch.testing.assert_close(exported.module()(x), model(x))


def test_onnx_has_the_model_alone(tmp_path):
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    x = torch.randn(4, 3)
    nodes = []
    for model in (Network(labo.LABOLoss(WEIGHT)), Network(None)):
        torch.onnx.export(model.eval(), (x,), tmp_path / "model.onnx", dynamo=True)
        nodes.append([node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node])
    assert nodes[0] == nodes[1]
