"""The fused last layer with its classes split over processes equals that of one process, gradients included."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import labo
from labo.kernels.vocab_parallel_linear import vocab_parallel_linear_labo_cross_entropy
from launch import run_ranks
from vocab_linear_ranks import (
    BAD,
    CASES,
    CLASS_WEIGHTS,
    DISAGREE,
    LEAVES,
    WIDTH,
    WITH_STATISTICS,
    Whole,
    converted,
    examples,
    gradients,
    layer,
    work,
)
from vocab_ranks import prior

FOUR = pytest.param(4, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=(2, FOUR))
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each process found."""
    return run_ranks(work, request.param, tmp_path_factory.mktemp(f"ranks{request.param}"))


def by_logits(case: dict[str, Any]) -> tuple[torch.Tensor, list[Any]]:
    """The loss and the gradients of one process in float64, from logits, by the reference implementation."""
    case = converted({name: value for name, value in case.items() if name != "chunk_rows"}, torch.float64)
    options: dict[str, Any] = {name: value for name, value in case.items() if name not in (*LEAVES, "target")}
    bias = 0.0 if case["linear_bias"] is None else case["linear_bias"]
    hidden = torch.where(case["input"].isnan(), 0.0, case["input"])
    logits = (hidden @ case["linear_weight"].T + bias).movedim(-1, 1 if hidden.dim() > 1 else 0)
    loss = labo.labo_cross_entropy(logits, case["target"], impl="reference", **options)
    if options.get("value") == "plugin":  # the same gradient, which the inner value has without a constant label
        options["value"] = "inner"
        inner = labo.labo_cross_entropy(logits, case["target"], impl="reference", **options)
        return loss.detach(), gradients(inner, case)
    return loss.detach(), gradients(loss, case)


def joined(ranks: list[dict[Any, Any]], key: Any) -> list[torch.Tensor]:
    """The gradients of the whole layer: that of the hidden states of the first rank, slices one after the other."""
    hidden, *slices = zip(*(result[key][1] for result in ranks), strict=True)
    for other in hidden[1:]:
        torch.testing.assert_close(other, hidden[0], rtol=0, atol=0)
    return [hidden[0], *(torch.cat(parts) for parts in slices)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(ranks, name, dtype):
    case = converted(CASES[name][1](), dtype)
    loss, grads = by_logits({key: v.detach() if torch.is_tensor(v) else v for key, v in case.items()})
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    for result in ranks:
        assert result[name, dtype][0].dtype == dtype
        torch.testing.assert_close(result[name, dtype][0].double(), loss, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(joined(ranks, (name, dtype)), grads, strict=True):
        scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", ["uneven", "chunks of 1", "per row prior, beta 2.0", "sequences", "ignored, mean"])
def test_half_precision(ranks, name):
    case = converted(CASES[name][1](), torch.bfloat16)
    loss, grads = by_logits({key: v.detach() if torch.is_tensor(v) else v for key, v in case.items()})
    for result in ranks:
        torch.testing.assert_close(result[name, torch.bfloat16][0].double(), loss, rtol=2e-2, atol=2e-2)
    for ours, theirs in zip(joined(ranks, (name, torch.bfloat16)), grads, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize("name", CASES)
def test_every_rank_has_the_same_loss_to_the_bit(ranks, name):
    for result in ranks[1:]:
        ours, theirs = (each[name, torch.float32][0] for each in (result, ranks[0]))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_two_all_reduces_a_chunk_and_one_of_the_hidden_states(ranks):
    """Chunks of 2, 2 and 1 rows, after one exchange in which the ranks compare their arguments."""
    for result in ranks:
        (arguments, *forward), backward = result["crossing"]
        assert arguments == len(ranks) * 19
        assert forward == [number for rows in (2, 2, 1) for number in (2 * rows + len(ranks), 6 * rows)]
        assert backward == [5 * WIDTH]


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_statistics_are_those_of_one_process(ranks, name):
    case = CASES[name][1]()
    case.pop("chunk_rows", None)
    options: dict[str, Any] = {key: value for key, value in case.items() if key not in (*LEAVES, "target")}
    logits = case["input"] @ case["linear_weight"].T + case["linear_bias"]
    logits = logits.movedim(-1, 1)
    whole = labo.labo_cross_entropy(logits, case["target"], impl="reference", return_statistics=True, **options)
    for result in ranks:
        for field, value in whole._asdict().items():
            ours = getattr(result["statistics", name], field)
            torch.testing.assert_close(ours.detach(), value, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_on_every_rank(ranks, name):
    _, kind, message = BAD[name]
    for result in ranks:
        assert result["bad"][name] is not None
        assert issubclass(result["bad"][name][0], kind)
        assert re.search(message, result["bad"][name][1]), result["bad"][name][1]


@pytest.mark.parametrize("name", DISAGREE)
def test_ranks_that_disagree_all_say_so_and_none_waits(ranks, name):
    _, message, other = DISAGREE[name]
    for rank, result in enumerate(ranks):
        assert result["disagree"][name] is not None
        told = result["disagree"][name][1]
        assert re.search(other if other and rank else message, told), told


def test_a_second_derivative_is_refused(ranks):
    assert all("no second derivative" in result["twice"] for result in ranks)


@pytest.mark.parametrize("name", ["function", "replicated input", "module", "regularizer"])
def test_a_head_that_is_a_dtensor(ranks, name):
    options: dict[str, Any] = {} if name == "regularizer" else {"prior": prior("random"), "weight": CLASS_WEIGHTS}
    loss, grads = by_logits(layer(**options))
    for result in ranks:
        torch.testing.assert_close(result[name][0], loss)
        torch.testing.assert_close(result[name][1], grads)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("replicated", r"`linear_weight`, a DTensor, to be sharded on dimension 0.*\(Replicate\(\),\)"),
        ("width", r"`linear_weight`, a DTensor, to be sharded on dimension 0.*Shard\(dim=1\)"),
        ("two dimensions", "`linear_weight`, a DTensor, on a one-dimensional mesh"),
        ("other classes", "the same number of classes on every rank that holds a slice of the head, but got 8, 10"),
        ("plain bias", "`linear_bias` to be a DTensor that is sharded as `linear_weight` is"),
        ("bias on another mesh", "`linear_bias` on the mesh of `linear_weight`"),
        ("input on another mesh", "`input`, a DTensor, to be replicated on the mesh of `linear_weight`"),
        ("sharded input", "`input`, a DTensor, to be replicated on the mesh of `linear_weight`"),
        ("impl", "impl='blocked' takes no head that is split over ranks"),
        ("probabilities", "class indices with a head that is split over ranks"),
        ("differentiable", "differentiable=False with a head that is split over ranks"),
        ("learnt alpha", "`alpha` not to require grad"),
        ("other examples", "the same `target` on every rank.*fully_shard.*full_tensor"),
    ],
)
def test_other_dtensors_are_refused_by_name(ranks, name, message):
    for result in ranks:
        assert result["dtensor errors"][name] is not None
        assert re.search(message, result["dtensor errors"][name][1]), result["dtensor errors"][name][1]


@pytest.mark.parametrize("name", ["within forward", "after forward", "gathered"])
def test_a_head_of_fully_shard_learns_from_the_examples_of_all_ranks(ranks, name):
    model = Whole()
    losses = [model(*examples(rank)) for rank in range(len(ranks))]
    torch.stack(losses).mean().backward()
    for result in ranks:
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(result[name][key], parameter.grad, rtol=1e-5, atol=1e-6)


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        vocab_parallel_linear_labo_cross_entropy(torch.zeros(2, 3), torch.zeros(4, 3), torch.tensor([0, 2]))
