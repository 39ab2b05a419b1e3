"""What members remember: resumed in the middle of an epoch, and the same in every process; partners; options."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch

from family_ranks import CLASSES, EXAMPLES, PARTS, REMEMBER, Course, data, work
from labo import LabelRegularizedLoss, regularizers
from labo.errors import UserError
from launch import run_ranks

# What all of them remember.


@pytest.mark.parametrize("stop", [3, 5])
@pytest.mark.parametrize("name", REMEMBER)
def test_an_interrupted_epoch_goes_on_bit_for_bit(name, stop):
    course = Course(name)
    for step in range(stop):
        course.step(step)
    saved = course.state()
    losses = [course.step(step) for step in range(stop, 8)]
    again = Course(name).resume(saved)
    assert [again.step(step) for step in range(stop, 8)] == losses
    assert all(torch.equal(value, again.state()["member"][key]) for key, value in course.state()["member"].items())
    back = course.resume(saved)  # over a state that is further
    assert [back.step(step) for step in range(stop, 8)] == losses


@pytest.mark.parametrize("name", REMEMBER)
def test_evaluation_changes_nothing_that_is_remembered(name):
    course = Course(name)
    course.step(0)
    before = course.state()["member"]
    course.member.eval()
    features, target = data()
    told = {"indices": torch.arange(EXAMPLES), "inputs": features, "epoch": 1, "step": 1}
    given = {need: value for need, value in told.items() if need in course.member.needs}
    LabelRegularizedLoss(course.member).eval()(course.model(features), target, **given)
    after = course.state()["member"]
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, one with four rows of each batch, one with two."""
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(work, 2, folder)


@pytest.mark.parametrize("name", REMEMBER)
def test_processes_remember_the_same(ranks, name):
    (_, mine), (_, theirs) = (result[name] for result in ranks)
    assert mine.keys() == theirs.keys()
    assert mine
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize("name", [name for name in REMEMBER if name != "ls_plus"])
def test_processes_remember_what_one_alone_would(ranks, name):
    course = Course(name)
    for step in range(5):
        course.step(step, learn=False)
    for key, value in course.state()["member"].items():
        torch.testing.assert_close(ranks[0][name][1][key], value)


@pytest.mark.parametrize("name", ["online_smoothing", "ps_kd", "elr", "labo[prior=memory]"])
def test_losses_of_processes_are_parts_of_one(ranks, name):
    course = Course(name)
    for step in range(5):
        whole = course.step(step, learn=False)
        sizes = [len(range(6)[part]) for part in PARTS]
        parts = [result[name][0][step] * size / 6 for result, size in zip(ranks, sizes, strict=True)]
        torch.testing.assert_close(sum(parts), whole)


# Partners.


def test_same_class_draws_another_example_of_the_class():
    target = torch.randint(5, (200,), generator=torch.Generator().manual_seed(0))
    target[17] = 5
    partners, at = regularizers.SameClass(target), torch.arange(200)
    drawn = partners.draw(at, epoch=0)
    assert torch.equal(target[drawn], target)
    assert (drawn == at).nonzero().flatten().tolist() == [17]
    few = regularizers.SameClass(torch.tensor([0, 0, 0, 1]))
    found = [few.draw(torch.tensor([0]), epoch).item() for epoch in range(400)]
    assert set(found) == {1, 2}
    assert 150 < found.count(1) < 250


def test_same_class_is_a_function_of_seed_epoch_and_index_alone():
    target = torch.arange(60) % 3
    first, second = regularizers.SameClass(target, seed=1), regularizers.SameClass(target, seed=1)
    whole = first.draw(torch.arange(60), epoch=2)
    second.draw(torch.arange(7), epoch=5)
    assert torch.equal(second.draw(torch.tensor([41, 3, 41]), epoch=2), whole[[41, 3, 41]])
    assert not torch.equal(first.draw(torch.arange(60), epoch=3), whole)
    assert not torch.equal(regularizers.SameClass(target, seed=2).draw(torch.arange(60), epoch=2), whole)


def test_same_class_refuses():
    with pytest.raises(UserError, match=r"`target` to be \(N,\) class indices, but got torch.float32"):
        regularizers.SameClass(torch.zeros(3))
    partners = regularizers.SameClass(torch.tensor([0, 1, 0]))
    with pytest.raises(UserError, match="`indices` of 3 training examples, but got 3"):
        partners.draw(torch.tensor([0, 3]), epoch=0)
    assert partners.draw(torch.tensor([], dtype=torch.int64), epoch=0).tolist() == []


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("distillation", {"alpha": 1.1}, r"`alpha` to be in \[0, 1\]"),
        ("distillation", {"temperature": math.inf}, r"`temperature` to be a number in \(0, inf\), but got inf"),
        ("tf_kd_self", {"convention": "code"}, "Unknown convention 'code'"),
        ("tf_kd_self", {"multiplier": -1.0}, r"`multiplier` to be a number in \[0, inf\)"),
        ("cs_kd", {"strength": math.nan}, r"`strength` to be a number in \[0, inf\), but got nan"),
        ("cs_kd", {"hold_statistics": 1}, "`hold_statistics` to be True or False, but got 1"),
        ("online_smoothing", {"strength": 2}, r"`strength` to be in \[0, 1\]"),
        ("ps_kd", {"alpha": -0.1}, r"`alpha` to be in \[0, 1\]"),
        ("dlb", {"alpha": True}, "`alpha` to be a number in"),
        ("dlb", {"temperature": 0}, r"`temperature` to be a number in \(0, inf\), but got 0"),
        ("beta_smoothing", {"concentration": 0}, r"`concentration` to be a number in \(0, inf\)"),
        ("beta_smoothing", {"decay": 1.5}, r"`decay` to be in \[0, 1\]"),
        ("self_adaptive_smoothing", {"scale": 3}, r"`scale` to be in \[0, 1\]"),
    ],
)
def test_options_out_of_range_are_named(name, options, told):
    with pytest.raises(ValueError, match=told):
        regularizers.create(name, **options)


@pytest.mark.parametrize("name", [*REMEMBER, "distillation", "tf_kd_self", "cs_kd"])
def test_masked_classes_give_no_nan(name):
    """A class at -inf, never a target: the value is no NaN, and every finite loss has a finite gradient."""
    course = Course(name)
    if "teacher" in course.member.missing:
        course.member.provide(teacher=torch.nn.Linear(3, CLASSES))
    features, target = data()
    for step in range(4):
        logits = course.model(features).detach().index_fill(-1, torch.tensor([1]), -math.inf).requires_grad_()
        told = {
            "indices": torch.arange(EXAMPLES),
            "inputs": features,
            "partners": features,
            "epoch": step,
            "step": step,
        }
        given = {need: value for need, value in told.items() if need in course.member.needs}
        labels = torch.where(target == 1, 0, target)
        loss = LabelRegularizedLoss(course.member)(logits, labels, **given)
        assert not loss.isnan()
        if loss.isfinite():
            assert torch.autograd.grad(loss, logits)[0].isfinite().all()


# Deep copies.

NEEDS_A_NETWORK = ["cs_kd", "dlb", "beta_smoothing", "self_adaptive_smoothing"]


def copied(name: str) -> tuple[Course, regularizers.Regularizer]:
    """A course, and a deep copy of its member alone."""
    course = Course(name)
    course.step(0)
    return course, copy.deepcopy(course.member)


@pytest.mark.parametrize("name", ["dlb", "beta_smoothing", "self_adaptive_smoothing"])
def test_a_deep_copy_follows_the_network_that_is_trained(name):
    course, other = copied(name)
    assert other.provided("model") is course.model
    losses = [course.step(step) for step in range(1, 8)]
    again = Course(name)
    again.step(0)
    again.member = copy.deepcopy(again.member)
    assert [again.step(step) for step in range(1, 8)] == losses


def test_a_pickled_copy_has_the_network_that_is_pickled_with_it():
    course, other = copied("beta_smoothing")
    model, member = pickle.loads(pickle.dumps((course.model, other)))
    assert member.provided("model") is model


@pytest.mark.parametrize("name", NEEDS_A_NETWORK)
@pytest.mark.parametrize("first", ["member", "model"])
def test_a_network_that_is_copied_too_is_that_of_the_copy(name, first):
    model, member = torch.nn.Linear(2, 3), regularizers.create(name)
    member.provide(model=model)
    whole = torch.nn.ModuleDict(
        {"member": member, "model": model} if first == "member" else {"model": model, "member": member}
    )
    other: Any = copy.deepcopy(whole)
    assert other["member"].provided("model") is other["model"]
    assert member.provided("model") is model
    assert copy.deepcopy(member).provided("model") is model


def test_a_teacher_is_shared_by_copies():
    member, teacher = regularizers.create("distillation"), torch.nn.Linear(2, 3)
    member.provide(teacher=teacher)
    assert copy.deepcopy(copy.deepcopy(member)).provided("teacher") is teacher


def test_a_copied_table_that_no_optimizer_updates_is_told():
    course, other = copied("ls_plus")
    with pytest.raises(UserError, match="Method 'ls_plus' needs optimizer"):
        LabelRegularizedLoss(other)(torch.zeros(2, CLASSES), torch.tensor([0, 1]))
    other.provide(optimizer=torch.optim.SGD([{"params": other.learnt(), "weight_decay": 0.0}], lr=0.1))
    LabelRegularizedLoss(other)(torch.zeros(2, CLASSES), torch.tensor([0, 1])).backward()
    assert other.learnt()[0]._backward_hooks  # the mean over processes
    assert course.member.missing == ()
