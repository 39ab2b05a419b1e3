"""Every input that can require a gradient gets the right one, or is refused in one sentence; forward mode likewise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import labo
from labo import LabelRegularizedLoss, kernels, linear_labo_cross_entropy, reduction
from labo.errors import UserError
from labo.kernels import operators
from labo.kernels.options import Options
from test_regularizers import CLASSES, batch, every, member, told

LOGITS, INDICES = batch()
DRAW = torch.Generator().manual_seed(4)
TARGET = torch.randn(6, CLASSES, generator=DRAW, dtype=torch.float64).softmax(-1)
WEIGHT = torch.rand(CLASSES, generator=DRAW, dtype=torch.float64) + 0.5
PRIOR = torch.rand(CLASSES, generator=DRAW, dtype=torch.float64).softmax(-1)
HEAD = torch.eye(CLASSES, dtype=torch.float64)

# The inputs of the loss beside the logits: (the argument, its value, a direction along which it may move).
Case = tuple[str, Tensor, Tensor]
CASES: list[Case] = [
    ("target", TARGET, torch.randn(6, CLASSES, generator=DRAW, dtype=torch.float64)),
    ("weight", WEIGHT, torch.randn(CLASSES, generator=DRAW, dtype=torch.float64)),
    ("prior", PRIOR, torch.randn(CLASSES, generator=DRAW, dtype=torch.float64)),
    ("alpha", torch.tensor(0.3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)),
    ("alpha", torch.linspace(0.1, 0.9, 6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)),
    ("beta", torch.tensor(3.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)),
    ("beta", torch.linspace(0.5, 5, 6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)),
]
CASES = [
    (name, value, step - step.mean(-1, keepdim=True) if name in ("target", "prior") else step)
    for name, value, step in CASES
]
each_input = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{tuple(case[1].shape)}")


def loss(case: Case, impl: str, linear: bool, reduced: str = "mean") -> Callable[[Tensor], Tensor]:
    """The loss as a function of one input."""

    def function(value: Tensor) -> Tensor:
        given: dict[str, Any] = {"target": INDICES, "alpha": 0.3, "impl": impl, "reduction": reduced, case[0]: value}
        if linear:
            return linear_labo_cross_entropy(LOGITS, HEAD, given.pop("target"), **given).sum()
        return labo.labo_cross_entropy(LOGITS, given.pop("target"), **given).sum()

    return function


def slope(function: Callable[[Tensor], Tensor], case: Case) -> Tensor:
    """The derivative along the direction, from two values of the function."""
    _, value, step = case
    return (function(value + 1e-6 * step) - function(value - 1e-6 * step)) / 2e-6


@each_input
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_every_input_gets_its_gradient(case, linear, reduction):
    function, leaf = loss(case, "auto", linear, reduction), case[1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close((gradient * case[2]).sum(), slope(function, case), atol=1e-8, rtol=1e-6)


@each_input
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", [name for name in labo.implementations() if name != "reference"])
def test_what_has_no_gradient_there_says_so(case, linear, name):
    leaf = case[1].clone().requires_grad_()
    with pytest.raises(UserError, match=f"impl='{name}' gives no gradient in `{case[0]}`; use impl='reference'"):
        loss(case, name, linear)(leaf)
    with torch.no_grad():
        assert loss(case, "auto", linear)(leaf).isfinite()


@each_input
@pytest.mark.parametrize("linear", [False, True])
def test_compiled_graphs_give_the_gradient_too(case, linear):
    torch._dynamo.reset()
    function, leaf = loss(case, "auto", linear), case[1].clone().requires_grad_()
    compiled = torch.compile(function, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(leaf), leaf)
    torch.testing.assert_close((gradient * case[2]).sum(), slope(function, case), atol=1e-8, rtol=1e-6)


@each_input
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("transform", [False, True])
def test_forward_mode(case, linear, transform):
    function = loss(case, "auto", linear)
    if transform:
        tangent = torch.func.jvp(function, (case[1],), (case[2],))[1]
    else:
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(case[1], case[2]))).tangent
    torch.testing.assert_close(tangent, slope(function, case), atol=1e-8, rtol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_mode_is_the_gradient_and_of_its_dtype(name, options, dtype):
    """What is constant for the gradient is constant in forward mode."""
    logits, target = batch(dtype)
    step = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).to(dtype)

    def function(z: Tensor) -> Tensor:
        torch.manual_seed(0)
        made = made_before.pop()
        return LabelRegularizedLoss(made)(z, target, **told(made))

    made_before = [member(name, options) for _ in range(3)]
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(logits, step))).tangent
    torch.testing.assert_close(tangent, (gradient * step).sum())
    if not told(made_before[0]):  # transforms do not allow what is remembered of a batch
        tangent = torch.func.jvp(function, (logits,), (step,))[1]
        torch.testing.assert_close(tangent, (gradient * step).sum())


@every
@pytest.mark.parametrize("argument", ["target", "weight"])
def test_the_family(name, options, argument):
    case = next(case for case in CASES if case[0] == argument)

    def function(value: Tensor) -> Tensor:
        torch.manual_seed(0)
        made = member(name, options)
        weight = value if argument == "weight" else None
        return LabelRegularizedLoss(made, weight=weight)(LOGITS, INDICES if weight is not None else value, **told(made))

    leaf = case[1].clone().requires_grad_()
    if argument == "target" and (name == "ls_plus" or options.get("convention") == "joeynmt"):
        with pytest.raises(ValueError, match=r"`target` not to require grad|Expected class index targets"):
            function(leaf)
        return
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close((gradient * case[2]).sum(), slope(function, case), atol=1e-8, rtol=1e-6)


def test_labels_made_from_a_table_of_targets_have_a_gradient_in_the_target():
    made = member("online_smoothing", {})
    criterion, leaf = LabelRegularizedLoss(made), TARGET.clone().requires_grad_()
    criterion(LOGITS, LOGITS.argmax(-1), epoch=0)  # so that the rows of the table differ
    criterion(LOGITS, INDICES, epoch=1)
    made.eval()
    (gradient,) = torch.autograd.grad(criterion(LOGITS, leaf, epoch=1), leaf)
    case = CASES[0]
    expected = slope(lambda value: criterion(LOGITS, value, epoch=1), case)
    torch.testing.assert_close((gradient * case[2]).sum(), expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("argument", ["target", "weight"])
def test_a_memory_computes_them_and_from_hidden_states_says_that_it_cannot(argument):
    case = next(case for case in CASES if case[0] == argument)
    leaf = case[1].clone().requires_grad_()
    made = member("labo", {"prior": "memory"})
    criterion = LabelRegularizedLoss(made, weight=leaf if argument == "weight" else None)
    target = leaf if argument == "target" else INDICES
    with pytest.raises(UserError, match=rf"gives no gradient in `{argument}`: compute the logits \(linear=False\)"):
        criterion.linear(LOGITS, HEAD, target, **told(made))
    assert torch.autograd.grad(criterion(LOGITS, target, **told(made)), leaf)[0].any()


def test_a_denominator_that_requires_a_gradient_gets_one():
    criterion = LabelRegularizedLoss(member("labo", {}))
    count = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    mean = criterion.mean_over(LOGITS, INDICES, count)
    (gradient,) = torch.autograd.grad(mean, count)
    torch.testing.assert_close(gradient, -mean.detach() / 4)


def test_the_list_is_the_signature_of_the_implementations():
    """All tensors that reach an implementation beside the logits are looked at, whatever options it may get."""
    options = Options(*(torch.ones(()) for _ in range(4)), value="inner")
    rows = reduction.as_rows(LOGITS, INDICES, WEIGHT, -100)
    sources = {name: torch.ones(()) for name in reduction.weight_sources(rows, None)}
    schema = operators._loss._opoverload._schema.arguments
    tensors = {argument.name for argument in schema if "Tensor" in str(argument.type)} - {"logits", "row_weights"}
    assert set(kernels._constants(INDICES, options, sources)) == tensors | set(sources)


@pytest.mark.parametrize("linear", [False, True])
def test_a_function_of_the_loss_is_differentiated_twice(impl, linear):
    """The gradient from above depends on the logits, too; it is a constant of the loss's own backward pass."""
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    head, target = torch.eye(4).requires_grad_(), torch.tensor([0, 2, 1])

    def derivatives(impl: str) -> tuple[torch.Tensor, ...]:
        if linear:
            loss = labo.linear_labo_cross_entropy(z, head, target, impl=impl)
        else:
            loss = labo.labo_cross_entropy(z @ head.T, target, impl=impl)
        (grad,) = torch.autograd.grad(loss**2, z, create_graph=True)
        return grad, *torch.autograd.grad(grad.square().sum(), (z, head))

    torch.testing.assert_close(derivatives(impl), derivatives("reference"))
