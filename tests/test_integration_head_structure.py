"""What in a head is trained, sharded or quantized decides whether the loss may take its weight, not its values now."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from head_ranks import NETWORKS, RATE, VOCABULARY, batch, network, trained, weights
from labo.errors import UserError
from labo.integrations.heads import head_of, require_plain_head


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
