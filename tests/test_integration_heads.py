"""The loss from hidden states gives the Trainer the gradients that whole logits give, and refuses what it cannot do."""

from __future__ import annotations

import math
import multiprocessing
import socket
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import labo
from head_ranks import EXAMPLES, NETWORKS, RATE, VOCABULARY, Sentences, batch, network, trained, weights, work
from labo import LabelRegularizedLoss, regularizers
from labo.errors import UserError
from labo.integrations.heads import hidden_states
from labo.integrations.trainer_loss import TrainerLoss

ALPHA, BETA = 0.3, 4.0


def by_logits(name: str) -> dict[str, Tensor]:
    """The weights after a step of plain gradient descent by whole logits, without any trainer."""
    model = network(name).train()
    whole_loss(model, name).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= RATE * parameter.grad
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def whole_loss(model: Any, name: str) -> Tensor:
    """The loss of all sentences by whole logits."""
    given = batch(name)
    labels = given.pop("labels")
    if name == "marian":
        start = torch.full((EXAMPLES, 1), 2)
        given["decoder_input_ids"] = torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, 0)], 1)
    logits = model(**given).logits
    if name != "marian":
        logits, labels = logits[:, :-1], labels[:, 1:]
    rows, target = logits.reshape(-1, VOCABULARY), labels.reshape(-1)
    return labo.labo_cross_entropy(rows, target, alpha=ALPHA, beta=BETA, impl="reference")


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_that_of_whole_logits(tmp_path, name, parts):
    found = weights(trained(name, tmp_path, linear=True, parts=parts))
    torch.testing.assert_close(found, by_logits(name), atol=1e-6, rtol=0)
    assert not torch.equal(found["lm_head.weight"], network(name).state_dict()["lm_head.weight"])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, half of the sentences each, one with fewer tokens than the other."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "labo.integrations.transformers"])
    processes = [context.Process(target=work, args=(rank, 2, folder, port)) for rank in range(2)]
    end = time.monotonic() + 120
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for result in results:
        assert "failed" not in result, result["failed"]
    return results


@pytest.mark.slow  # two processes that import Transformers
@pytest.mark.parametrize("name", NETWORKS)
def test_two_processes_take_the_step_of_one(ranks, name):
    for result in ranks:
        torch.testing.assert_close(result[name], by_logits(name), atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_two_processes_evaluate_what_one_does(ranks, name):
    model = network(name)
    model.load_state_dict(by_logits(name))
    with torch.no_grad():
        expected = whole_loss(model, name).item()
    for result in ranks:
        assert result[f"{name}, evaluated"] == pytest.approx(expected, abs=1e-5)


def test_logits_are_whole_in_evaluation_alone(tmp_path):
    model, widths = network("marian"), []
    model.lm_head.register_forward_hook(
        lambda module, args, output: widths.append((model.training, torch.is_grad_enabled(), *output.shape[::2]))
    )
    trainer = trained("marian", tmp_path, linear=True, parts=2, model=model)
    assert {width for training, _, _, width in widths if training} == {16}
    assert all(training or rows == 1 for training, graph, rows, _ in widths if graph)  # one, when the head is looked at
    widths.clear()
    found = trainer.predict(Sentences("marian"))
    assert {width for *_, width in widths} == {VOCABULARY}
    assert found.predictions[0].shape == (EXAMPLES, 6, VOCABULARY)
    expected = trained("marian", tmp_path, linear=False, parts=2).predict(Sentences("marian"))
    torch.testing.assert_close(torch.tensor(found.predictions[0]), torch.tensor(expected.predictions[0]))
    assert found.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], abs=1e-6)


def test_generation_after_training_is_that_of_the_weights(tmp_path):
    trainer = trained("marian", tmp_path, linear=True)
    again = network("marian")
    again.load_state_dict(weights(trainer))
    found, expected = (
        model.eval().generate(input_ids=Sentences("marian").sources[:3], num_beams=2, max_new_tokens=5)
        for model in (trainer.model, again)
    )
    assert torch.equal(found, expected)


def test_the_network_is_given_back_whatever_happens():
    model = network("marian")
    bias = model.final_logits_bias
    with pytest.raises(RuntimeError, match="stop"), hidden_states(model):
        raise RuntimeError("stop")
    assert model.final_logits_bias is bias
    assert "forward" not in vars(model.lm_head)


def test_whoever_replaced_the_heads_forward_gets_it_back():
    model = network("llama")
    own = model.lm_head.forward
    model.lm_head.forward = own
    with hidden_states(model):
        assert model.lm_head.forward is not own
    assert vars(model.lm_head)["forward"] is own


def test_checking_the_network_draws_no_random_number(tmp_path):
    found = []
    for linear in (True, False):
        model = network("marian")
        for module in model.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.5
        found.append(weights(trained("marian", tmp_path, linear=linear, model=model)))
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["marian", "llama"])
def test_bfloat16_errs_no_more_than_whole_logits_do(tmp_path, name, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # which Transformers 4 sets for whoever comes later
    truth, linear, whole = (
        weights(trained(name, tmp_path, linear=linear, bf16=half))["lm_head.weight"]
        for linear, half in ((False, False), (True, True), (False, True))
    )
    error, theirs = ((found - truth).square().mean().sqrt().item() for found in (linear, whole))
    assert 0 < error < 1.3 * theirs
    assert theirs < 1e-3


@pytest.mark.parametrize("name", ["marian", "llama"])
def test_who_asks_for_the_outputs_gets_logits(tmp_path, name):
    trainer = trained(name, tmp_path, linear=True)
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, batch(name))
    value, outputs = trainer.compute_loss(trainer.model, batch(name), return_outputs=True)
    assert outputs.logits.shape == (EXAMPLES, 6, VOCABULARY)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("linear", [True, False])
def test_the_decoders_inputs_are_made_of_the_labels(tmp_path, linear):
    from transformers import BartConfig, BartForConditionalGeneration

    # This network would otherwise be trained on its source, shifted, and nobody would be told.
    config: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 16, "max_position_embeddings": 32, "dropout": 0.0}
    config |= {f"{side}_layers": 1 for side in ("encoder", "decoder")} | {"pad_token_id": 0, "eos_token_id": 3}
    config |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(decoder_start_token_id=2, forced_eos_token_id=None, **config))
    trainer = trained("marian", tmp_path, linear=linear, method="none", model=model)
    model.train()
    given = batch("marian")
    torch.testing.assert_close(trainer.compute_loss(model, dict(given)), model(**given).loss)
    with_own = {**given, "decoder_input_ids": given["labels"].clamp(min=0)}
    own = model(input_ids=given["input_ids"], decoder_input_ids=with_own["decoder_input_ids"]).logits
    expected = nn.functional.cross_entropy(own.reshape(-1, VOCABULARY), given["labels"].reshape(-1))
    torch.testing.assert_close(trainer.compute_loss(model, with_own), expected)


def test_class_weights_undivided(tmp_path):
    hidden, weight, bias = torch.randn(2, 3, 4), torch.randn(7, 4), torch.randn(7)
    target = torch.tensor([[0, -100, 6], [1, 2, 3]])
    criterion = LabelRegularizedLoss(regularizers.create("labo"), weight=torch.rand(7) + 0.1)
    compute = TrainerLoss(criterion)
    logits = hidden @ weight.T + bias
    expected = [compute(logits, target, items) for items in (None, torch.tensor(5))]
    compute.head = labo.kernels.linear.Head(weight, bias)
    for found, items in zip(expected, (None, torch.tensor(5)), strict=True):
        torch.testing.assert_close(compute(hidden, target, items), found)
    with pytest.raises(ValueError, match="no class weights with gradient accumulation"):
        compute(hidden, target, torch.tensor(9))


def test_probability_targets():
    hidden, weight = torch.randn(2, 3, 4), torch.randn(7, 4)
    target = torch.rand(2, 3, 7).softmax(-1)
    compute = TrainerLoss(LabelRegularizedLoss(regularizers.create("label_smoothing")))
    count = (target != -100).sum()  # every entry, as the Trainer counts
    expected = compute(hidden @ weight.T, target, count)
    compute.head = labo.kernels.linear.Head(weight, None)
    torch.testing.assert_close(compute(hidden, target, count), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_linear_loss_of_a_member(reduction):
    hidden, weight, bias = torch.randn(2, 3, 4), torch.randn(7, 4), torch.randn(7)
    target = torch.tensor([[0, -100, 6], [1, 2, 3]])
    member = regularizers.create("unigram_smoothing")
    member.provide(class_counts=torch.arange(1, 8))
    criterion = LabelRegularizedLoss(member, reduction=reduction)
    expected = criterion((hidden @ weight.T + bias).reshape(6, 7), target.reshape(6))
    found = criterion.linear(hidden, weight, target, bias)
    torch.testing.assert_close(found, expected.reshape(found.shape))
    count = torch.tensor(11.0)
    part = criterion.mean_over((hidden @ weight.T + bias).reshape(6, 7), target.reshape(6), count)
    torch.testing.assert_close(criterion.linear(hidden, weight, target, bias, count=count), part)


@pytest.mark.parametrize("method", ["labo", "elr"])
def test_weights_of_rows(method):
    """Those of every call: a part of the sum of the losses, and of the denominator."""
    logits, target = torch.randn(6, 7), torch.tensor([0, -100, 6, 1, 2, 3])
    weights = torch.tensor([1.0, math.nan, 0.0, 0.5, 2.0, 1.0])
    given = {"indices": torch.arange(6)} if method == "elr" else {}

    def criterion(reduction: str = "mean") -> LabelRegularizedLoss:
        member = regularizers.create(method)
        member.provide(**({"examples": 6} if given else {}))
        return LabelRegularizedLoss(member, reduction=reduction)

    losses = criterion("none")(logits, target, **given)
    total, count = (losses * weights)[target >= 0].sum(), weights[target >= 0].sum()
    found = criterion()(logits, target, row_weight=weights, **given)
    torch.testing.assert_close(found, total / count)
    torch.testing.assert_close(criterion().total_and_count(logits, target, row_weight=weights, **given), (total, count))
    seven = torch.tensor(7.0)
    torch.testing.assert_close(criterion().mean_over(logits, target, seven, row_weight=-weights, **given), -total / 7)
    with pytest.raises(ValueError, match="`row_weight` to be >= 0"):
        criterion()(logits, target, row_weight=-weights, **given)
    if method == "labo":
        form = criterion().linear, (logits, torch.eye(7), target)
        torch.testing.assert_close(form[0](*form[1], row_weight=weights), total / count)
        torch.testing.assert_close(form[0](*form[1], row_weight=weights, count=seven), total / 7)


def test_a_memory_in_the_linear_form_takes_no_weights_of_rows():
    member = regularizers.create("labo", prior="memory", beta=math.inf)
    member.provide(examples=2)
    hidden, weight, target = torch.randn(2, 4), torch.randn(7, 4), torch.tensor([0, 1])
    given: dict[str, Any] = {"indices": torch.arange(2), "row_weight": torch.tensor([1.0, 0.0])}
    with pytest.raises(UserError, match=r"'labo' keeps a memory.* use linear=False, or leave out the weights of rows"):
        LabelRegularizedLoss(member).linear(hidden, weight, target, **given)
    LabelRegularizedLoss(member).eval().linear(hidden, weight, target, **given)


def test_the_linear_loss_refuses():
    hidden, weight, target = torch.randn(2, 4), torch.randn(7, 4), torch.tensor([0, 1])
    with pytest.raises(UserError, match="'unigram_smoothing' needs class_counts"):
        LabelRegularizedLoss(regularizers.create("unigram_smoothing")).linear(hidden, weight, target)
    with pytest.raises(UserError, match=r"'focal' .* needs the full logits.*linear=False"):
        LabelRegularizedLoss(regularizers.create("focal")).linear(hidden, weight, target)
    weighed = LabelRegularizedLoss(regularizers.create("none"), weight=torch.ones(7))
    with pytest.raises(ValueError, match="no class weights with a count"):
        weighed.linear(hidden, weight, target, count=torch.tensor(2))
    with pytest.raises(ValueError, match=r"`linear_weight` of shape \(V, 4\)"):
        LabelRegularizedLoss(regularizers.create("none")).linear(hidden, weight.T, target)
