"""One clear sentence for every argument that does not fit, naming it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import labo
from labo import LabelRegularizedLoss, regularizers

Z, Y = torch.zeros(2, 3), torch.tensor([0, 2])
NAN = math.nan


@pytest.mark.parametrize(
    ("options", "error", "names"),
    [
        ({"alpha": -0.1}, ValueError, "alpha"),
        ({"alpha": 1.1}, ValueError, "alpha"),
        ({"alpha": NAN}, ValueError, "alpha"),
        ({"alpha": torch.tensor([0.5, NAN])}, ValueError, "alpha"),
        ({"alpha": "0.1"}, TypeError, "alpha"),
        ({"alpha": torch.zeros(3)}, ValueError, "alpha"),
        ({"beta": 0.0}, ValueError, "beta"),
        ({"beta": -1.0}, ValueError, "beta"),
        ({"beta": NAN}, ValueError, "beta"),
        ({"beta": torch.tensor([1.0, 0.0])}, ValueError, "beta"),
        ({"beta": torch.ones(5)}, ValueError, "beta"),
        ({"prior": torch.tensor([0.5, 0.7, -0.2])}, ValueError, "prior"),
        ({"prior": torch.tensor([0.5, 0.5])}, ValueError, "prior"),
        ({"prior": torch.tensor([0.5, 0.5, 0.5])}, ValueError, "prior"),
        ({"prior": torch.tensor([NAN, 0.5, 0.5])}, ValueError, "prior"),
        ({"prior": torch.tensor([1, 0, 0])}, TypeError, "prior"),
        ({"weight": torch.ones(2)}, ValueError, "weight"),
        ({"reduction": "average"}, ValueError, "reduction"),
        ({"value": "outer"}, ValueError, "value"),
        ({"impl": "refrence"}, ValueError, "reference"),
        ({"value": "plugin", "beta": torch.tensor(2.0, requires_grad=True)}, ValueError, "beta"),
    ],
)
def test_options(options, error, names):
    with pytest.raises(error, match=names):
        labo.labo_cross_entropy(Z, Y, **options)


@pytest.mark.parametrize(
    ("input", "target", "error", "names"),
    [
        (Z, torch.tensor([0, 3]), ValueError, r"`target`.*\[0, 3\).*3"),
        (Z, torch.tensor([0, -1]), ValueError, "`target`.*-1"),
        (Z, torch.tensor([0.0, 1.0]), TypeError, "`target`.*integer class indices"),
        (Z, torch.tensor([0, 1, 2]), ValueError, "`target`"),
        (Z, torch.zeros(2, 3), ValueError, "`target`.*sum to 1"),
        (Z, torch.zeros(2, 3, dtype=torch.long), ValueError, "`target`"),
        (Z, torch.tensor([True, False]), TypeError, "`target`"),
        (Z.long(), Y, TypeError, "`input`.*floating point"),
        (torch.tensor(1.0), torch.tensor(0), ValueError, "`input`"),
    ],
)
def test_logits_and_targets(input, target, error, names):
    with pytest.raises(error, match=names):
        labo.labo_cross_entropy(input, target)


def test_linear_shapes():
    with pytest.raises(ValueError, match="`linear_weight`"):
        labo.linear_labo_cross_entropy(torch.zeros(2, 4), torch.zeros(3, 5), Y)
    with pytest.raises(ValueError, match="`linear_bias`"):
        labo.linear_labo_cross_entropy(torch.zeros(2, 4), torch.zeros(3, 4), Y, linear_bias=torch.zeros(4))


def test_label_smoothing_is_refused_with_a_word_on_beta():
    with pytest.raises(TypeError, match=r"label_smoothing.*beta"):
        labo.LABOLoss(label_smoothing=0.1)
    with pytest.raises(ValueError, match="alpha"):
        labo.LABOLoss(alpha=2.0)


def test_labels_of_your_own_are_checked():
    with pytest.raises(ValueError, match="`labels`"):
        labo.label_regularized_cross_entropy(Z, Y, torch.zeros(2, 4), alpha=0.1)
    with pytest.raises(ValueError, match=r"`labels`.*sum to 1"):
        labo.label_regularized_cross_entropy(Z, Y, torch.zeros(2, 3), alpha=0.1)


def test_a_prior_does_not_widen_the_result():
    prior = torch.full((5, 3), 1 / 3)
    for solved in (labo.optimal_labels, labo.inner_value):
        with pytest.raises(ValueError, match="argument `prior` to broadcast over the rows"):
            solved(torch.zeros(3), beta=2.0, prior=prior)
    assert labo.optimal_labels(torch.zeros(5, 3), beta=2.0, prior=prior).shape == (5, 3)


@pytest.mark.parametrize("impl", ["auto", *labo.implementations()])
def test_a_prior_on_another_device_is_told_by_every_implementation(impl):
    prior = torch.full((5,), 0.2, device="meta")
    with pytest.raises(ValueError, match="argument `prior` on cpu"):
        labo.labo_cross_entropy(torch.zeros(2, 5), torch.tensor([0, 1]), prior=prior, impl=impl)


# Integer targets of any dtype.

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]
LOSSES = {
    "loss": labo.labo_cross_entropy,
    "linear": lambda z, y, **options: labo.linear_labo_cross_entropy(z, torch.eye(z.shape[1]), y, **options),
    "member": lambda z, y, **options: LabelRegularizedLoss(regularizers.create("focal"), **options)(z, y),
    "own labels": lambda z, y, **options: labo.label_regularized_cross_entropy(
        z, y, torch.full_like(z, 1 / max(1, z.shape[1])), alpha=0.1, **options
    ),
}


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", LOSSES)
def test_targets_of_every_integer_dtype_are_those_of_int64(dtype, name):
    logits = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 3, 100, 0])
    for ignored in (0, -100, 255):
        found, expected = (LOSSES[name](logits, y, ignore_index=ignored) for y in (target.to(dtype), target))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_narrow_target_is_not_compared_before_it_is_widened(name):
    logits = torch.randn(2, 256)
    with pytest.raises(ValueError, match=r"in \[0, 256\) or ignore_index 255, but got -1"):
        LOSSES[name](logits, torch.tensor([3, -1], dtype=torch.int8), ignore_index=255)
    kept = LOSSES[name](logits, torch.tensor([3, 156], dtype=torch.uint8))  # -100 is 156 in uint8, and here a class
    torch.testing.assert_close(kept, LOSSES[name](logits, torch.tensor([3, 156])))


# Shapes.


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(4, 0), (0, 0), (4, 1), (0, 1)])
def test_fewer_than_two_classes_are_refused(name, shape):
    target = torch.zeros(shape[0], dtype=torch.long)
    with pytest.raises(ValueError, match=rf"at least 2 classes, but got shape \({shape[0]}, {shape[1]}\)"):
        LOSSES[name](torch.zeros(shape), target)
    with pytest.raises(ValueError, match="at least 2 classes"):
        labo.labo_cross_entropy(torch.zeros(shape), torch.ones(shape))


def test_one_logit_for_each_example_is_told_how_it_has_two():
    z, binary = torch.randn(6), torch.tensor([0, 1, 1, 0, 1, 0])
    with pytest.raises(ValueError, match=r"torch.stack\(\[torch.zeros_like\(z\), z\], 1\)"):
        labo.labo_cross_entropy(z.unsqueeze(1), torch.zeros(6, dtype=torch.long))
    two = labo.labo_cross_entropy(torch.stack([torch.zeros_like(z), z], 1), binary, alpha=0.0)
    torch.testing.assert_close(two, torch.nn.functional.binary_cross_entropy_with_logits(z, binary.float()))


# The last layer.


@pytest.mark.parametrize("impl", ["auto", *labo.implementations()])
@pytest.mark.parametrize(
    ("weight", "bias", "name"),
    [
        (torch.bfloat16, None, "linear_weight"),
        (torch.float64, torch.float64, "linear_weight"),
        (torch.float32, torch.float64, "linear_bias"),
    ],
)
def test_a_layer_of_another_dtype_is_told(impl, weight, bias, name):
    hidden, head = torch.randn(2, 4), torch.randn(3, 4, dtype=weight)
    given: dict[str, Any] = {} if bias is None else {"linear_bias": torch.zeros(3, dtype=bias)}
    with pytest.raises(TypeError, match=f"`{name}` of `input`'s dtype torch.float32, but got .*; convert one of them"):
        labo.linear_labo_cross_entropy(hidden, head, Y, impl=impl, **given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert labo.linear_labo_cross_entropy(hidden, head, Y, **given).isfinite()


# Class weights.


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        ([1.0, 2.0, 1.0], TypeError, "to be a tensor, but got list"),
        (torch.ones(3, 2), ValueError, r"shape \(C,\), but got \(3, 2\)"),
        (torch.tensor([1, 2, 3]), TypeError, "to be floating point, but got dtype torch.int64"),
        (torch.tensor([1.0, NAN, 1.0]), ValueError, "to be finite and >= 0, but got NaN"),
        (torch.tensor([1.0, -1.0, 1.0]), ValueError, "to be finite and >= 0, but got -1 to 1"),
        (torch.tensor([1.0, math.inf, 1.0]), ValueError, "to be finite and >= 0, but got 1 to inf"),
    ],
    ids=str,
)
def test_class_weights_are_checked_when_a_loss_is_made(weight, error, message):
    for made in (
        labo.LABOLoss,
        labo.LinearLABOLoss,
        lambda w: LabelRegularizedLoss(regularizers.create("none"), weight=w),
    ):
        with pytest.raises(error, match=f"argument `weight` {message}|argument `weight` to have {message}"):
            made(weight)


# Numbers of NumPy.


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int64])
def test_scalars_of_numpy_are_numbers(kind):
    logits, one = torch.randn(2, 3), kind(1)
    expected = labo.labo_cross_entropy(logits, Y, alpha=1.0, beta=1.0)
    assert labo.labo_cross_entropy(logits, Y, alpha=one, beta=one) == expected
    assert labo.LABOLoss(alpha=one, beta=one)(logits, Y) == expected
    assert torch.equal(labo.optimal_labels(logits, beta=one), labo.optimal_labels(logits, beta=1.0))
    for name, option in (("label_smoothing", "epsilon"), ("focal", "gamma"), ("confidence_penalty", "strength")):
        made = regularizers.create(name, **{option: one})
        assert type(made.options()[option]) in (int, float)
        torch.testing.assert_close(
            LabelRegularizedLoss(made)(logits, Y),
            LabelRegularizedLoss(regularizers.create(name, **{option: 1.0}))(logits, Y),
        )
    with pytest.raises(ValueError, match=r"`alpha` to be in \[0, 1\], but got"):
        labo.labo_cross_entropy(logits, Y, alpha=kind(2))


# Logits that are split over processes.


@pytest.fixture
def mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    store: Any = vars(dist)["HashStore"]
    dist.init_process_group("gloo", store=store(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("name", LOSSES)
def test_a_dtensor_is_told_where_to_go(mesh, dim, name):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    split = distribute_tensor(torch.randn(2, 3), mesh, [Replicate() if dim is None else Shard(dim)])
    with pytest.raises(
        ValueError, match=r"`input` to be a plain tensor, but got a DTensor .*labo\.vocab_parallel_labo"
    ):
        LOSSES[name](split, Y)
    with pytest.raises(ValueError, match="`target` to be a plain tensor, but got a DTensor"):
        LOSSES[name](torch.randn(2, 3), distribute_tensor(Y, mesh, [Replicate()]))
