"""LABO with a memory, and what it shares with early-learning regularization: by hand, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import labo
from family_cases import TARGET, ce, loss, made_with, rows
from family_ranks import CLASSES
from labo import LabelRegularizedLoss, LABOLoss, regularizers
from labo.errors import UserError
from memory_cases import HALF, ORDER, memory, sharpened, uniform


@pytest.mark.parametrize("aligned", [False, None, True])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "sharpness": 1.5}, {"sharpness": 0.7, "epsilon": 0.0}])
def test_the_loss_and_the_memory_by_hand(options, aligned):
    made, m = memory(decay=0.8, aligned=aligned, **options), uniform()
    alpha, epsilon = options.get("alpha", 0.8), options.get("epsilon", 0.5)
    labels = torch.bincount(TARGET, minlength=CLASSES).double()
    for visit in range(4):
        logits = rows(visit)
        found = loss(made, logits[ORDER], TARGET[ORDER], indices=ORDER)
        target = (1 - epsilon) * F.one_hot(TARGET, CLASSES) + epsilon / CLASSES
        weighted = m if aligned is False or not visit else m * (labels / labels.sum()) / m.mean(0)
        label = (1 - alpha) * target + alpha * sharpened(weighted, options.get("sharpness", 2.0))
        expected = -(label * logits.log_softmax(-1)).sum(-1)
        torch.testing.assert_close(found, expected[ORDER], **HALF)
        m = 0.8 * m + 0.2 * logits.softmax(-1)
        torch.testing.assert_close(made.memory.memory.values[:6].double(), m, **HALF)


@pytest.mark.parametrize("beta", [0.5, 1.0, 8.0, math.inf])
def test_the_gradient_is_p_minus_target_and_optimal_label(beta):
    made, m = memory(beta=beta), uniform()
    for visit in range(3):
        logits = rows(visit).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(made, logits, indices=torch.arange(6)).sum(), logits)
        target = 0.5 * F.one_hot(TARGET, CLASSES) + 0.5 / CLASSES
        q = labo.optimal_labels(logits.detach(), beta=beta, prior=sharpened(m, 2.0))
        torch.testing.assert_close(gradient, logits.softmax(-1) - 0.2 * target - 0.8 * q, **HALF)
        m = 0.8 * m + 0.2 * logits.softmax(-1).detach()


def test_at_a_finite_beta_the_value_is_that_of_the_inner_problem():
    made, logits = memory(beta=4.0, epsilon=0.0), rows()
    loss(made, rows(1), indices=torch.arange(6))
    prior = sharpened(0.8 * uniform() + 0.2 * rows(1).softmax(-1), 2.0)
    expected = labo.labo_cross_entropy(logits, TARGET, alpha=0.8, beta=4.0, prior=prior, reduction="none")
    torch.testing.assert_close(loss(made, logits, indices=torch.arange(6)), expected, **HALF)


def test_the_first_visit_is_label_smoothing():
    found = loss(memory(alpha=0.6, epsilon=0.25), rows(), indices=torch.arange(6))
    torch.testing.assert_close(found, F.cross_entropy(rows(), TARGET, reduction="none", label_smoothing=0.7))


def test_without_strength_and_smoothing_it_is_cross_entropy():
    made = memory(alpha=0.0, epsilon=0.0)
    for visit in range(2):
        torch.testing.assert_close(loss(made, rows(visit), indices=torch.arange(6)), ce(rows(visit)))


def test_early_learning_regularization_by_hand():
    made, m = made_with("elr", {"examples": 6}, strength=2.0, decay=0.6, epsilon=0.2), torch.zeros_like(uniform())
    for visit in range(4):
        logits = rows(visit).requires_grad_()
        found = loss(made, logits[ORDER], TARGET[ORDER], indices=ORDER)
        p = logits.softmax(-1).clamp(1e-4, 1 - 1e-4)
        m = 0.6 * m + 0.4 * (p / p.sum(-1, keepdim=True)).detach()
        smoothed = F.cross_entropy(logits, TARGET, reduction="none", label_smoothing=0.2)
        expected = smoothed + 2 * (1 - (p * m).sum(-1)).log()
        torch.testing.assert_close(found, expected[ORDER], **HALF)
        theirs, mine = (torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (expected, found))
        torch.testing.assert_close(mine, theirs, **HALF)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_operations_give_what_the_reference_gives(dtype):
    torch.manual_seed(0)
    logits, index = 3 * torch.randn(6, CLASSES, dtype=dtype), torch.arange(6)
    direct, reference = memory(), memory()
    one_hot = F.one_hot(TARGET, CLASSES).to(dtype)  # probabilities go the long way
    for visit in range(3):
        z, other = ((logits + visit).detach().requires_grad_() for _ in range(2))
        mine, theirs = loss(direct, z, indices=index), loss(reference, other, one_hot, indices=index)
        torch.testing.assert_close(mine, theirs)
        grads = [torch.autograd.grad(each.sum(), at)[0] for each, at in ((mine, z), (theirs, other))]
        torch.testing.assert_close(*grads)
        torch.testing.assert_close(direct.memory.memory.values, reference.memory.memory.values)


def test_second_derivatives_are_those_of_the_cross_entropy():
    made = memory()
    loss(made, rows(1), indices=torch.arange(6))
    state = made.state_dict()

    def fresh(z: Tensor) -> Tensor:
        again = memory()
        again.load_state_dict(state)
        return loss(again, z, indices=torch.arange(6))

    assert torch.autograd.gradcheck(fresh, rows().requires_grad_())
    assert torch.autograd.gradgradcheck(fresh, rows().requires_grad_())


# What is remembered.


@pytest.mark.parametrize("name", ["labo[prior=memory]", "elr"])
def test_an_example_that_comes_twice_in_a_batch_leaves_its_last_prediction(name):
    made: Any = made_with(name, {"examples": 3})
    index, target = torch.tensor([2, 0, 2, 1, 0, 2]), torch.tensor([1, 3, 1, 0, 3, 1])
    loss(made, rows(), target, indices=index)
    held = made.memory.memory if name != "elr" else made.memory
    p = rows().softmax(-1)[[4, 3, 5]]
    start, decay = (0.25, 0.8) if name != "elr" else (0.0, 0.7)
    torch.testing.assert_close(held.values[:3].double(), decay * start + (1 - decay) * p, **HALF)


def test_ignored_rows_are_neither_read_nor_written():
    made, masked = memory(), torch.where(torch.arange(6) == 1, -100, TARGET)
    logits = rows()
    logits[1] = math.nan
    found = loss(made, logits, masked, indices=torch.tensor([0, 99, 2, 3, 4, 5]))
    assert found[1] == 0
    held = made.memory.memory
    assert torch.equal(held.values[1], torch.full((CLASSES,), 0.25, dtype=torch.float16))
    assert held.labels.tolist() == [0, -1, 1, 3, 2, 0, -1]
    assert not held.values.isnan().any()


def test_masked_classes_have_no_part():
    made, logits = memory(), rows()
    logits[:, 2] = -math.inf
    target = torch.tensor([0, 3, 1, 3, 1, 0])
    m, kept = uniform(), [0, 1, 3]
    for _ in range(2):
        found = loss(made, logits.requires_grad_(), target, indices=torch.arange(6))
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert not gradient[:, 2].any()
        label = 0.2 * (0.5 * F.one_hot(target, CLASSES)[:, kept] + 0.5 / 3) + 0.8 * sharpened(m[:, kept], 2.0)
        torch.testing.assert_close(found, -(label * logits.log_softmax(-1)[:, kept]).sum(-1), **HALF)
        m = 0.8 * m + 0.2 * logits.detach().softmax(-1)


def test_class_weights_weigh_the_whole_loss():
    weight = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    plain = loss(memory(), rows(), indices=torch.arange(6))
    found = LabelRegularizedLoss(memory(), weight=weight)(rows(), TARGET, indices=torch.arange(6))
    torch.testing.assert_close(found, (plain * weight[TARGET]).sum() / weight[TARGET].sum())


def test_targets_of_several_dimensions_are_examples_of_their_own():
    made, flat = memory(12), memory(12)
    logits = rows(count=12).view(2, 6, CLASSES).movedim(-1, 1)
    target, index = torch.stack([TARGET, TARGET.flip(0)]), torch.arange(12).view(2, 6).flip(1)
    for _ in range(2):
        found = loss(made, logits, target, indices=index)
        expected = loss(flat, rows(count=12), target.flatten(), indices=index.flatten())
        torch.testing.assert_close(found.flatten(), expected)


def test_half_precision_logits_are_remembered_in_full():
    made, other = memory(), memory()
    half = rows().to(torch.bfloat16)
    loss(made, half, indices=torch.arange(6))
    loss(other, half.float(), indices=torch.arange(6))
    assert torch.equal(made.memory.memory.values, other.memory.memory.values)


# What is refused.


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sharpness": 0.0}, r"`sharpness` to be a number in \(0, inf\), but got 0\.0"),
        ({"sharpness": -1.0}, r"`sharpness` to be a number in \(0, inf\)"),
        ({"sharpness": math.nan}, r"`sharpness` to be a number in \(0, inf\), but got nan"),
        ({"decay": 1.0}, r"`decay` to be a number in \[0, 1\), but got 1\.0"),
        ({"decay": "much"}, r"`decay` to be a number in \[0, 1\), but got 'much'"),
        ({"epsilon": 1.5}, r"`epsilon` to be a number in \[0, 1\], but got 1\.5"),
        ({"top": 0}, "`top` to be a whole number of at least 1, but got 0"),
        ({"prior": "unigram", "sharpness": 2.0}, 'Option `sharpness` requires prior="memory"'),
        ({"prior": None, "decay": 0.5}, 'Option `decay` requires prior="memory"'),
    ],
)
def test_options_out_of_range(options, told):
    with pytest.raises(UserError, match=told):
        regularizers.create("labo", **{"prior": "memory", **options})


@pytest.mark.parametrize("name", ["labo[prior=memory]", "elr"])
@pytest.mark.parametrize(
    ("examples", "indices", "told"),
    [
        (6, torch.tensor([0, 1, 6, 3, 4, 5]), "of 6 training examples, but got 6: examples cannot be added later"),
        (6, torch.tensor([0, 1, -1, 3, 4, 5]), "`indices` of 6 training examples, but got -1"),
        (6, torch.arange(5), r"`indices` to be 6 whole numbers, one for each target, but got shape \(5,\)"),
        (6, torch.arange(6.0), r"`indices` to be whole numbers, but got torch\.float32"),
        (0, torch.arange(6), "`examples` to be a whole number of at least 1, but got 0"),
        (6.0, torch.arange(6), r"`examples` to be a whole number of at least 1, but got 6\.0"),
        (6, None, "needs indices: pass indices="),
    ],
)
def test_indices_that_do_not_fit(name, examples, indices, told):
    with pytest.raises(UserError, match=told):
        loss(made_with(name, {"examples": examples}), rows(), **({} if indices is None else {"indices": indices}))


@pytest.mark.parametrize("name", ["labo[prior=memory]", "elr"])
def test_a_memory_of_other_data(name):
    made = made_with(name, {"examples": 6})
    loss(made, rows(), indices=torch.arange(6))
    with pytest.raises(
        UserError, match="has stored example 1 with label 3, but now it has label 0: the memory belongs to"
    ):
        loss(made, rows(), torch.tensor([0, 0, 1, 3, 2, 0]), indices=torch.arange(6))
    other = made_with(name, {"examples": 7})
    other.load_state_dict(made.state_dict())
    with pytest.raises(
        UserError, match="has a memory of 6 examples with 4 entries each, but this training has 7 with 4"
    ):
        loss(other, rows(), indices=torch.arange(6))
    with pytest.raises(
        UserError, match="has a memory of 6 examples with 4 entries each, but this training has 6 with 5"
    ):
        loss(made, rows(0, 5), indices=torch.arange(6))


@pytest.mark.parametrize("name", ["labo[prior=memory]", "elr"])
def test_functional_transforms_cannot_remember(name):
    made = made_with(name, {"examples": 6})
    with pytest.raises(UserError, match=r"stores predictions, which transforms of torch\.func do not allow"):
        torch.func.grad(lambda z: loss(made, z, indices=torch.arange(6)).sum())(rows())


def test_a_compiled_loss_remembers_the_same():
    plain, compiled = LABOLoss(prior="memory", examples=6), LABOLoss(prior="memory", examples=6)
    function = torch.compile(compiled, backend="aot_eager")
    for visit in range(3):
        z, other = (rows(visit).float().requires_grad_() for _ in range(2))
        found, expected = function(z, TARGET, indices=ORDER), plain(other, TARGET, indices=ORDER)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(each, at)[0] for each, at in ((found, z), (expected, other))]
        torch.testing.assert_close(*grads)
    state = compiled.state_dict()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(value, state[key])


# The module that stands where nn.CrossEntropyLoss stood.


def test_the_module_is_the_member():
    criterion, made = LABOLoss(prior="memory", examples=6, reduction="none"), memory(aligned=None)
    for visit in range(3):
        found = criterion(rows(visit), TARGET, indices=torch.arange(6))
        torch.testing.assert_close(found, loss(made, rows(visit), indices=torch.arange(6)))
    again = LABOLoss(prior="memory", examples=6, reduction="none")
    again.load_state_dict(criterion.state_dict())
    found = [each(rows(9), TARGET, indices=torch.arange(6)) for each in (criterion, again)]
    assert torch.equal(*found)


def test_the_module_reports_plain_cross_entropy_in_evaluation_and_never_writes():
    criterion = LABOLoss(prior="memory", examples=6)
    criterion(rows(), TARGET, indices=torch.arange(6))
    before = {name: value.clone() for name, value in criterion.state_dict().items()}
    criterion.eval()
    torch.testing.assert_close(criterion(rows(1), TARGET), F.cross_entropy(rows(1), TARGET))
    criterion(rows(1), TARGET, indices=torch.arange(6))
    assert all(torch.equal(value, before[name]) for name, value in criterion.state_dict().items())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prior": "memory"}, "Expected argument `examples`, the number of training examples, with prior="),
        ({"prior": "memory", "examples": 6.5}, "`examples` to be a whole number of at least 1, but got 6.5"),
        ({"prior": "memory", "examples": 6, "impl": "blocked"}, "impl='blocked' does not support prior="),
        ({"prior": "uniform"}, "Unknown prior 'uniform'"),
        ({"examples": 6}, "Expected argument `examples` only with prior="),
        ({"sharpness": 2.0}, "Expected argument `sharpness` only with prior="),
    ],
)
def test_the_module_refuses(options, told):
    with pytest.raises(ValueError, match=told):
        LABOLoss(**options)


def test_the_module_asks_for_indices_with_a_memory_alone():
    with pytest.raises(UserError, match="needs indices: pass indices="):
        LABOLoss(prior="memory", examples=6)(rows(), TARGET)
    with pytest.raises(TypeError, match="Expected no argument `indices` without"):
        LABOLoss()(rows(), TARGET, indices=torch.arange(6))


# Settings on the command line.


def test_options_of_a_memory_are_settings_with_a_memory_alone():
    assert "sharpness" not in regularizers.describe("labo").defaults
    for found in (regularizers.describe("labo[prior=memory]"), regularizers.describe("labo", {"prior": "memory"})):
        assert found.defaults["alpha"] == 0.8
        assert found.defaults["beta"] == math.inf
        assert found.defaults["sharpness"] is None
    tried = regularizers.candidates("labo[prior=memory]")
    assert any(options["alpha"] == 0.3 and options["sharpness"] == 1.0 for options in tried[:3])
    assert all(options["prior"] == "memory" for options in tried)
    assert regularizers.candidates("labo", {"prior": "memory"})[0].items() <= tried[0].items()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("classes", [10, 1_000])
def test_a_step_on_a_gpu_does_not_wait_and_remembers_what_the_cpu_does(classes: int):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 64, classes, generator=generator)
    indices = torch.stack([torch.randperm(200, generator=generator)[:64] for _ in range(3)])
    target = torch.randint(classes, (200,), generator=generator)[indices]
    target = target.masked_fill(indices % 5 == 0, -100)
    remembered = []
    for device in ("cpu", "cuda"):
        regularizer = regularizers.create("labo[prior=memory]")
        regularizer.provide(examples=200)
        criterion = LabelRegularizedLoss(regularizer)
        steps = [(logits[i].to(device), target[i].to(device), indices[i].to(device)) for i in range(3)]
        for number, (z, labels, at) in enumerate(steps):
            z.requires_grad_()
            if number > 0:  # the first makes the memory, and what libraries set up once
                torch.cuda.set_sync_debug_mode("error")
            try:
                criterion(z, labels, indices=at).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert regularizer.prediction_memory is not None
        remembered.append(regularizer.prediction_memory.all_distributions(200, classes).cpu())
    torch.testing.assert_close(remembered[1], remembered[0], rtol=5e-3, atol=1e-4)
