"""The loss with its classes split over processes equals that of one process, gradient included."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import labo
from labo.kernels.vocab_parallel import vocab_parallel_labo_cross_entropy
from launch import run_ranks
from vocab_ranks import BAD, CASES, INF, WITH_STATISTICS, problem, statistics, work


@pytest.fixture(scope="module", params=(2, 4))
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each process of two, and of four, found."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    return run_ranks(work, request.param, folder)


def whole(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits (…, C) that require a gradient, and the other arguments of one process."""
    case = CASES[name][1]()
    given: dict[str, Any] = {
        k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()
    }
    z = given.pop("z").requires_grad_()
    if "prior" in case:
        given["prior"] = case["prior"]
    return z, given


def expected(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the gradient of one process, classes last."""
    z, given = whole(name, dtype)
    logits, target = z.movedim(-1, 1) if z.dim() > 2 else z, given.pop("target")
    loss = labo.labo_cross_entropy(logits, target, **given)
    # The gradient does not depend on `value`.
    given["value"] = "inner"
    sloped = labo.labo_cross_entropy(logits, target, **given)
    return loss.detach(), torch.autograd.grad(sloped.sum(), z)[0]


def assert_equal(actual: torch.Tensor, whole: torch.Tensor, tolerance: float) -> None:
    """To the tolerance relative to max(1, |whole|); inf and NaN in the same places."""
    assert actual.shape == whole.shape
    assert actual.dtype == whole.dtype
    finite = whole.isfinite()
    torch.testing.assert_close(actual[~finite], whole[~finite], rtol=0, atol=0, equal_nan=True)
    off = (actual[finite] - whole[finite]).abs() / whole[finite].abs().clamp(min=1)
    assert off.numel() == 0 or off.max() <= tolerance, off.max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(ranks, name, dtype):
    loss, gradient = expected(name, dtype)
    for result in ranks:
        assert_equal(result[name, dtype][0], loss, 1e-6)
    assert_equal(torch.cat([result[name, dtype][1] for result in ranks], -1), gradient, 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_half_precision_accumulates_in_float32_and_rounds_once(ranks, name):
    loss, gradient = expected(name, torch.bfloat16)
    for result in ranks:
        assert_equal(result[name, torch.bfloat16][0], loss, 2**-7)  # one unit in the last place
    assert_equal(torch.cat([result[name, torch.bfloat16][1] for result in ranks], -1), gradient, 2**-8)


@pytest.mark.parametrize("name", CASES)
def test_every_rank_has_the_same_loss_to_the_bit(ranks, name):
    for result in ranks[1:]:
        torch.testing.assert_close(
            result[name, torch.float32][0], ranks[0][name, torch.float32][0], rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_statistics_and_their_gradient_are_those_of_one_process(ranks, name):
    z, given = whole(name, torch.float64)
    inner = {**given, "value": "inner"}  # the same gradient

    def loss(input: torch.Tensor, **options: Any) -> labo.LossStatistics:
        return labo.labo_cross_entropy(input.movedim(-1, 1) if z.dim() > 2 else input, **options)

    values, _ = statistics({"input": z, **given}, loss)
    _, gradient = statistics({"input": z, **inner}, loss)
    for result in ranks:
        for field, value in values.items():
            torch.testing.assert_close(
                result["statistics", name][0][field], value, rtol=1e-9, atol=1e-9, equal_nan=True
            )
    assert_equal(torch.cat([result["statistics", name][1] for result in ranks], -1), gradient, 1e-9)


def test_row_weights_get_their_gradient(ranks):
    z, given = whole("uneven", torch.float64)
    weights = torch.tensor([1.0, 0.0, 2.0] * 3, dtype=torch.float64, requires_grad=True)
    loss = (torch.nn.functional.cross_entropy(z, given["target"], reduction="none") * weights).sum() / weights.sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    for result in ranks:
        assert_equal(result["row weight's gradient"], gradient, 1e-9)


def test_a_masked_target_gives_inf_and_the_gradient_of_the_data_term(ranks):
    name = "masked, beta 2.0"
    assert ranks[0][name, torch.float64][0][3] == INF
    gradient = torch.cat([result[name, torch.float64][1] for result in ranks], -1)
    assert gradient[3, 3] == pytest.approx(-(1 - 0.4))


def test_nothing_kept_gives_zero(ranks):
    for result in ranks:
        loss, gradient = result["all ignored", torch.float32]
        assert loss == 0
        assert not gradient.any()


def test_scalars_of_rows_cross_in_two_all_reduces_and_none_backward(ranks):
    for result in ranks:
        for classes in (3, 3000):
            assert result["crossing"][classes] == ([2 * 5 + len(ranks), 6 * 5], [])


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_on_every_rank(ranks, name):
    _, error, message = BAD[name]
    for result in ranks:
        assert result["bad"][name] is not None
        assert result["bad"][name][0] is error
        assert re.search(message, result["bad"][name][1]), result["bad"][name][1]


def test_a_second_derivative_is_refused(ranks):
    assert all("no second derivative" in result["twice"] for result in ranks)


def test_a_sharded_dtensor_brings_its_group(ranks):
    case = problem()
    z = case["z"].requires_grad_()
    loss = labo.labo_cross_entropy(z, case["target"])
    (gradient,) = torch.autograd.grad(loss, z)
    for result in ranks:
        assert_equal(result["dtensor"][0], loss.detach(), 1e-6)
        assert_equal(result["dtensor"][1], gradient, 1e-6)


def test_a_dtensor_that_is_not_split_over_classes_is_refused(ranks):
    assert all("`input`, a DTensor, to come without" in result["replicated"] for result in ranks)


def test_a_group_of_some_ranks(ranks):
    loss, _ = expected("uneven", torch.float64)
    for result in ranks[-2:]:
        assert_equal(result["group"], loss, 1e-6)
    for result in ranks[:-2]:
        assert "`group` to include this process" in result["group"]


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        vocab_parallel_labo_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 2]))
