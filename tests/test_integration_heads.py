"""The loss from hidden states gives the Trainer the gradients that whole logits give, and refuses what it cannot do."""

from __future__ import annotations

import multiprocessing
import socket
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import labo
from head_ranks import EXAMPLES, NETWORKS, RATE, VOCABULARY, Sentences, network, trained, weights, work
from labo import LabelRegularizedLoss, regularizers
from labo.errors import UserError
from labo.integrations.heads import head_of, hidden_states, require_plain_head
from labo.integrations.trainer_loss import TrainerLoss

ALPHA, BETA = 0.3, 4.0


def batch(name: str) -> dict[str, Tensor]:
    examples = [Sentences(name)[index] for index in range(EXAMPLES)]
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}


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


class Scaled(nn.Linear):
    """A head that is more than a product."""

    def forward(self, input: Tensor) -> Tensor:
        return 1.01 * super().forward(input)


def soft_capped() -> nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=VOCABULARY, final_logit_softcapping=300.0, **sizes, **heads))


def scaled_head() -> nn.Module:
    model = network("llama")
    model.lm_head = Scaled(16, VOCABULARY, bias=False)
    return model


class Masked(nn.Module):
    """A network that masks a class after its head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Embedding(VOCABULARY, 16)
        self.head = nn.Linear(16, VOCABULARY)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.body(input_ids)).index_fill(-1, torch.tensor([3]), -100.0)}


class OfWeights(Masked):
    """A network that never calls its head, but takes its weight."""

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(input_ids) @ self.head.weight.T}


@pytest.mark.parametrize("make", [soft_capped, scaled_head, Masked, OfWeights])
def test_networks_that_do_more_are_refused(tmp_path, make):
    model = make()
    with pytest.raises(UserError, match=rf"but {type(model).__name__} transforms them .* linear=False"):
        require_plain_head(model, {"input_ids": torch.arange(8).reshape(2, 4)})
    with pytest.raises(UserError, match="transforms them"):
        trained("llama", tmp_path, linear=True, model=model)
    assert model.training


class LowRank(nn.Module):
    """A head with an adapter of low rank, built as PEFT builds it: B starts at zero, and `weight` is the frozen one."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})
        weight: Any = self.lora_B["default"].weight
        nn.init.zeros_(weight)

    @property
    def weight(self) -> Any:
        return self.base_layer.weight

    def forward(self, input: Tensor) -> Tensor:
        return self.base_layer(input) + self.lora_B["default"](self.lora_A["default"](input))


class OfBase(nn.Module):
    """The same as a parametrization of the weight: the weight is computed, and the product with it is plain."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lora_A = nn.Parameter(torch.randn(2, 16))
        self.lora_B = nn.Parameter(torch.zeros(VOCABULARY, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.lora_B @ self.lora_A


def low_rank() -> Any:
    model = network("llama")
    model.lm_head = LowRank(model.lm_head)
    return model


def hooked() -> Any:
    """An adapter that stands elsewhere, and joins by a hook."""
    model = network("llama")
    base = nn.Linear(16, VOCABULARY, bias=False)
    nn.init.zeros_(base.weight)
    adapter = LowRank(base)
    model.model.adapter = adapter
    model.lm_head.register_forward_hook(lambda module, args, output: output + adapter(args[0]))
    return model


class Tempered(Masked):
    """A network with a learnt factor of its logits, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.body(input_ids)) * self.factor}


class Copying(Masked):
    """A network whose logits have another source, silent at first."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = nn.Embedding.from_pretrained(torch.zeros(VOCABULARY, VOCABULARY), freeze=False)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.body(input_ids)) + self.copy(input_ids)}


@pytest.mark.parametrize("make", [hooked, Tempered, Copying])
def test_what_changes_no_value_yet_is_refused(make):
    with pytest.raises(UserError, match="transforms them"):
        require_plain_head(make(), {"input_ids": torch.arange(8).reshape(2, 4)})


def test_an_adapter_of_the_head_is_refused_and_trained_by_whole_logits(tmp_path):
    told = r"LowRank also trains 'lora_A.default.weight', as an adapter does: use linear=False"
    with pytest.raises(UserError, match=told):
        trained("llama", tmp_path, linear=True, model=low_rank())
    steps: dict[str, Any] = {"method": "none", "max_steps": 4}
    model, given = low_rank(), batch("llama")
    labels = given.pop("labels")
    for _ in range(4):
        nn.functional.cross_entropy(model(**given).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
                    parameter.grad = None
    found = trained("llama", tmp_path, linear=False, model=low_rank(), **steps).model.lm_head.lora_B["default"].weight
    expected = model.lm_head.lora_B["default"].weight
    assert expected.norm() > 1e-3
    torch.testing.assert_close(found.norm(), expected.norm())


def test_a_parametrized_head_is_trained_as_by_whole_logits(tmp_path):
    found = []
    for linear in (True, False):
        model = network("llama")
        nn.utils.parametrize.register_parametrization(model.lm_head, "weight", OfBase())
        found.append(weights(trained("llama", tmp_path, linear=linear, model=model, max_steps=4)))
    assert found[0]["lm_head.parametrizations.weight.0.lora_B"].norm() > 1e-3
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_a_frozen_head_is_trained_around(tmp_path):
    found = []
    for linear in (True, False):
        model = network("llama")
        model.lm_head.requires_grad_(False)
        found.append(weights(trained("llama", tmp_path, linear=linear, model=model)))
    assert torch.equal(found[0]["lm_head.weight"], network("llama").lm_head.weight)
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("targets", ["all", "attention", "saved", "embedding"])
def test_adapters_of_peft(tmp_path, targets):
    peft = pytest.importorskip("peft")
    chosen: dict[str, Any] = {
        "all": {"target_modules": ["q_proj", "lm_head"]},
        "attention": {"target_modules": ["q_proj"]},
        "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    }[targets]

    def adapted(linear: bool) -> dict[str, Tensor]:
        model = network("llama")
        config = peft.LoraConfig(r=2, lora_dropout=0.0, task_type="CAUSAL_LM", **chosen)
        torch.manual_seed(1)
        model = peft.get_peft_model(model, config)
        made = trained("llama", tmp_path, linear=linear, model=model, max_steps=4)
        return {name: value for name, value in weights(made).items() if "lora_B" in name or "saved" in name}

    expected = adapted(False)
    assert all(value.norm() > 0 for value in expected.values())
    if targets == "all":
        with pytest.raises(UserError, match="as an adapter does: use linear=False"):
            adapted(True)
    else:
        torch.testing.assert_close(adapted(True), expected, atol=1e-6, rtol=0)


@pytest.fixture
def one_process() -> Any:
    from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(model: Any, mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    model.lm_head.weight = nn.Parameter(distribute_tensor(model.lm_head.weight.data, mesh, [Shard(0)]))


def quantized(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.data.to(torch.int8), requires_grad=False)


def offloaded(model: Any) -> None:
    model.lm_head.to("meta")


def test_heads_that_are_not_here_as_they_are_are_refused(one_process):
    for change in (lambda model: sharded(model, one_process), quantized, offloaded):
        model = network("llama")
        change(model)
        with pytest.raises(UserError, match="not sharded, offloaded or quantized for linear=True: use linear=False"):
            head_of(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_plain_networks_pass_in_any_precision(name, dtype):
    given = batch(name)
    inputs = {"input_ids": given["input_ids"]}
    if name == "marian":
        inputs["decoder_input_ids"] = given["input_ids"]
    require_plain_head(network(name).to(dtype), inputs)


def test_a_scaled_head_is_seen_in_mixed_precision(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(UserError, match="transforms them"):
        trained("llama", tmp_path, linear=True, model=scaled_head(), bf16=True)


def test_what_has_no_linear_form_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match=r"'confidence_penalty' .* needs the full logits.*linear=False"):
        trained("llama", tmp_path, linear=True, method="confidence_penalty")
    with pytest.raises(UserError, match=r"an output embedding for linear=True, but got Linear: use linear=False"):
        head_of(nn.Linear(2, 2))
    trained("llama", tmp_path, linear=False, method="confidence_penalty")
