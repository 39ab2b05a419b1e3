"""A fused language model gives the loss and the gradients of its logits, which it never makes in training."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainingArguments

import labo
from fused_models import LABELS, OPTIONS, SMALL, TOKENS, V, by_logits, gradients, llama, nll, rows
from head_ranks import network
from labo import LabelRegularizedLoss, regularizers
from labo.errors import UserError
from labo.integrations.fused import fused_of, token_sums
from labo.integrations.transformers import LabelRegularizedTrainer, fuse, labo_loss, unfuse, with_logits
from labo.kernels.linear import Head


def same_step(model: Any, base: Any | None = None) -> None:
    """The loss and all gradients are those of the logits."""
    model.train()
    expected = by_logits(model)
    expected.backward()
    wanted = gradients(model)
    fuse(model if base is None else base, **OPTIONS)
    outputs = model(input_ids=TOKENS, labels=LABELS)
    outputs.loss.backward()
    assert outputs.logits is None
    torch.testing.assert_close(outputs.loss, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients(model), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_is_that_of_the_logits(tied):
    same_step(llama(tie_word_embeddings=tied))


@pytest.mark.filterwarnings("default")  # theirs
def test_gradient_checkpointing_changes_nothing():
    model = llama()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    same_step(model)


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("fuse_first", [True, False])
def test_adapters_of_peft(fuse_first):
    peft = pytest.importorskip("peft")
    base = llama()
    if fuse_first:
        fuse(base, **OPTIONS)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False, lora_dropout=0.0)
    same_step(peft.get_peft_model(base, config))


@pytest.mark.filterwarnings("default")  # theirs
def test_an_adapter_of_the_head_is_refused_with_the_option_that_uses_logits():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False))
    with pytest.raises(UserError, match=r"also trains 'lora_A.*use linear=False"):
        fuse(model, **OPTIONS)
    expected = by_logits(model)
    model.train()
    outputs = fuse(model, linear=False, **OPTIONS)(input_ids=TOKENS, labels=LABELS)
    torch.testing.assert_close(outputs.loss, expected)
    assert outputs.logits.shape == (4, 6, V)


def test_transformed_logits_and_missing_heads_are_refused():
    config = transformers.Gemma2Config(**SMALL, head_dim=4, num_key_value_heads=2, final_logit_softcapping=2.0)
    capped = transformers.Gemma2ForCausalLM(config)
    with pytest.raises(UserError, match=r"Gemma2ForCausalLM transforms them .* use linear=False"):
        fuse(capped)
    capped.train()
    expected = by_logits(capped)
    torch.testing.assert_close(fuse(capped, linear=False, **OPTIONS)(TOKENS, labels=LABELS).loss, expected)
    headless = llama()
    headless.get_output_embeddings = lambda: None
    with pytest.raises(UserError, match=r"with an output embedding .* use linear=False"):
        fuse(headless)
    with pytest.raises(TypeError, match=r"a network of Transformers, but got Linear: .*labo_loss\(\)"):
        fuse(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"'focal' .* needs the full logits.*linear=False"):
        fuse(llama(), "focal")
    with pytest.raises(UserError, match=r"options of a loss \(alpha\)"):
        fuse(llama(), LabelRegularizedLoss(regularizers.create("labo")), alpha=0.2)


def test_packed_sequences_are_those_that_were_not():
    model = llama()
    same = fuse(copy.deepcopy(model), **OPTIONS).train()
    positions = torch.arange(6).repeat(4)[None]
    labels = LABELS.clone()
    labels[:, 0] = -100  # no sequence predicts the first token of the next
    packed = same(TOKENS.reshape(1, -1), position_ids=positions, labels=labels.reshape(1, -1), use_cache=False)
    torch.testing.assert_close(packed.loss, by_logits(model), atol=1e-5, rtol=0)


class HeadProducts(TorchDispatchMode):
    """Counts the products that have the classes as a dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm"):
            self.count += any(isinstance(value, Tensor) and V in value.shape for value in args)
        return func(*args, **(kwargs or {}))


def head_products(model: Any, **inputs: Any) -> int:
    """The products with the head in a step."""
    with HeadProducts() as products:
        model(TOKENS, labels=LABELS, **inputs).loss.backward()
    return products.count


def test_weights_of_tokens():
    model = llama().train()
    weights = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    losses, of_targets = by_logits(model, reduction="none"), weights[:, 1:].reshape(-1)
    kept = rows(model(TOKENS).logits)[1] != -100
    total, count = (losses * of_targets).sum(), of_targets[kept].sum()
    fuse(model, **OPTIONS)
    for given, divisor in ((None, count), (torch.tensor(7.0), 7.0)):
        found = model(TOKENS, labels=LABELS, token_weights=weights, num_items_in_batch=given).loss
        torch.testing.assert_close(found, total / divisor, atol=1e-5, rtol=0)
    total.backward()
    wanted = gradients(model)
    model(TOKENS, labels=LABELS, token_weights=weights, num_items_in_batch=1).loss.backward()
    torch.testing.assert_close(gradients(model), wanted, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="Expected weights of 20 class indices, but got 16"):
        model(TOKENS, labels=LABELS, token_weights=weights[:, 1:])
    # The logits of the chunk, and the gradients of hidden states and head.
    assert head_products(model, token_weights=weights) == head_products(model) == 3


def test_evaluation_is_nll_with_logits_where_asked_for():
    model = llama().eval()
    expected, logits = nll(model), model(TOKENS).logits
    fuse(model, **OPTIONS)
    outputs = model(TOKENS, labels=LABELS)
    assert outputs.loss.item() == pytest.approx(expected, abs=1e-5)
    assert outputs.logits is None
    with with_logits(model):
        outputs = model(TOKENS, labels=LABELS)
    assert outputs.loss.item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(outputs.logits, logits)
    torch.testing.assert_close(model(TOKENS).logits, logits)
    assert len(model(TOKENS, labels=LABELS, return_dict=False)) == len(llama()(TOKENS, return_dict=False))
    with pytest.raises(UserError, match="passed to `fuse`"), with_logits(llama()):
        pass


def test_a_deep_copy_has_weights_of_its_own_and_names_stay():
    model = fuse(llama(), **OPTIONS).train()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.mul_(2)
    assert twin(TOKENS, labels=LABELS).loss != model(TOKENS, labels=LABELS).loss
    assert set(model.state_dict()) == set(llama().state_dict())
    assert unfuse(twin)(TOKENS, labels=LABELS).logits.shape == (4, 6, V)
    assert "forward" not in vars(twin)
    assert fused_of(unfuse(llama())) is None
    again = fuse(model, alpha=0.0).train()
    assert again(TOKENS, labels=LABELS).loss.item() == pytest.approx(nll(llama()), abs=1e-5)


def test_no_logits_in_training():
    model, seen = fuse(llama(), **OPTIONS).train(), []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dim() and result.shape[-1] == V:
                seen.append(result.shape)
            return result

    with Watch():
        model(TOKENS, labels=LABELS)
    assert seen  # chunks: the last position of a sentence predicts nothing, and ignored ones are left out
    assert not [shape for shape in seen if shape.numel() >= TOKENS.numel() * V]


def test_half_precision_gives_a_float32_loss():
    model = llama().to(torch.bfloat16).train()
    exact = by_logits(llama())
    found = fuse(model, **OPTIONS)(TOKENS, labels=LABELS).loss
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.05, rtol=0)


def test_an_encoder_decoder_network():
    model = network("marian").train()
    labels = LABELS.masked_fill(LABELS == -100, 5)
    with torch.no_grad():
        logits = model(input_ids=TOKENS, labels=labels).logits
    expected = labo.labo_cross_entropy(logits.reshape(-1, V), labels.reshape(-1), **OPTIONS)
    torch.testing.assert_close(fuse(model, **OPTIONS)(input_ids=TOKENS, labels=labels).loss, expected)


def test_experts_keep_their_auxiliary_loss():
    config = transformers.MixtralConfig(**SMALL, num_local_experts=2, output_router_logits=True, num_key_value_heads=2)
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).train()
    auxiliary = model(TOKENS).aux_loss
    assert auxiliary > 0
    expected = by_logits(model) + config.router_aux_loss_coef * auxiliary
    torch.testing.assert_close(fuse(model, **OPTIONS)(TOKENS, labels=LABELS).loss, expected, atol=1e-5, rtol=0)


def test_statistics_of_tokens():
    hidden, weight, bias = torch.randn(3, 5, 4), torch.randn(7, 4), torch.randn(7)
    target = torch.randint(0, 7, (3, 5)).masked_fill(torch.rand(3, 5) < 0.3, -100)
    kept = target != -100
    p = (hidden @ weight.T + bias).softmax(-1)[kept].double()
    expected = torch.stack([(p.argmax(-1) == target[kept]).sum(), -(p * p.log()).sum(), kept.sum()]).float()
    criterion = LabelRegularizedLoss(regularizers.create("labo"))
    logits = (hidden @ weight.T + bias).flatten(0, 1)
    for found in (
        criterion.statistics(hidden, target, Head(weight, bias)),
        criterion.statistics(logits, target.flatten(), count=torch.tensor(7.0)),
    ):
        torch.testing.assert_close(token_sums(found), expected, atol=1e-4, rtol=0)


def test_statistics_of_tokens_need_no_product_of_their_own():
    weights = torch.ones(4, 6).index_fill(1, torch.tensor([5]), 0.0)
    model = fuse(llama(), statistics=True, **OPTIONS).train()
    assert head_products(model) == head_products(model, token_weights=weights) == 3
    fused: Any = fused_of(model)
    kept = LABELS[:, 1:] != -100
    assert fused.take_statistics(training=True)[2] == kept.sum() + kept[:, :-1].sum()  # none of weight 0
    with torch.no_grad(), HeadProducts() as products:
        model.eval()(TOKENS, labels=LABELS)
    assert products.count == 1
    assert fused.take_statistics(training=False)[2] == kept.sum()


@pytest.mark.parametrize(("method", "linear"), [("labo[prior=memory,beta=inf]", True), ("elr", False)])
def test_statistics_of_methods_that_have_none(method, linear):
    hidden, weight = torch.randn(6, 4), torch.randn(7, 4)
    target = torch.tensor([0, -100, 6, 1, 2, 3])
    losses = []
    for _ in range(2):
        member = regularizers.create(method)
        member.provide(examples=6)
        losses.append(LabelRegularizedLoss(member))
    logits, given = hidden @ weight.T, {"indices": torch.arange(6)}
    found = losses[0].statistics(hidden if linear else logits, target, Head(weight, None) if linear else None, **given)
    torch.testing.assert_close(found.loss, losses[1](logits, target, **given))
    torch.testing.assert_close(losses[0].state_dict(), losses[1].state_dict())  # remembered once
    plain = labo.labo_cross_entropy(logits, target, alpha=0.0, return_statistics=True)
    for name in ("nll", "entropy", "correct"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), equal_nan=True)
    assert found.label_entropy.isnan().all()


class Data(torch.utils.data.Dataset):
    """The sentences, with weights of tokens if asked for."""

    def __init__(self, weights: Tensor | None = None) -> None:
        self.weights = weights

    def __len__(self) -> int:
        return len(TOKENS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        found = {"input_ids": TOKENS[index], "labels": LABELS[index]}
        return found if self.weights is None else found | {"token_weights": self.weights[index]}


def arguments(folder: Path, parts: int = 1, **options: Any) -> TrainingArguments:
    known: dict[str, Any] = {"per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts}
    known |= {"max_steps": 1, "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0.0, "use_cpu": True}
    known |= {"lr_scheduler_type": "constant", "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    return TrainingArguments(str(folder), logging_steps=1, dataloader_pin_memory=False, **(known | options))


def stepped(model: Any, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    with torch.no_grad():
        return {name: (p - 0.1 * p.grad).detach() for name, p in model.named_parameters() if p.grad is not None}


def logged(trainer: Any, name: str = "loss") -> float:
    return next(line[name] for line in trainer.state.log_history if name in line)


@pytest.mark.parametrize("parts", [1, 4])
def test_the_trainer_takes_the_step_of_the_logits(tmp_path, parts):
    model = llama()
    plain = llama().train()
    value = by_logits(plain)
    expected = stepped(plain, value)
    trainer = Trainer(fuse(model, statistics=True, **OPTIONS), arguments(tmp_path, parts), train_dataset=Data())
    with torch.no_grad():
        logits, target = rows(model(TOKENS).logits)
    kept = target != -100
    trainer.train()
    found = {name: p.detach() for name, p in model.named_parameters() if name in expected}
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert logged(trainer) == pytest.approx(value.item(), abs=1e-4)
    accuracy = (logits.argmax(-1) == target)[kept].float().mean().item()
    assert logged(trainer, "mean_token_accuracy") == pytest.approx(accuracy, abs=1e-6)
    entropy = torch.distributions.Categorical(logits=logits[kept]).entropy().mean().item()
    assert logged(trainer, "entropy") == pytest.approx(entropy, abs=1e-4)


def test_the_trainer_divides_by_the_weights_of_all_parts(tmp_path):
    weights = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    model, plain = fuse(llama(), **OPTIONS), llama().train()
    of_targets = weights[:, 1:].reshape(-1)
    count = of_targets[rows(TOKENS[..., None])[1] != -100].sum()
    expected = stepped(plain, (by_logits(plain, reduction="none") * of_targets).sum() / count)
    Trainer(model, arguments(tmp_path, 4), train_dataset=Data(weights)).train()
    found = {name: p.detach() for name, p in model.named_parameters() if name in expected}
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_trainer_evaluates_nll_and_has_logits_for_predictions_and_metrics(tmp_path):
    model = llama()
    expected, logits = nll(model), model(TOKENS).logits.detach()
    shapes = []

    def metrics(given: Any) -> dict[str, float]:
        shapes.append(given.predictions[0].shape if isinstance(given.predictions, tuple) else given.predictions.shape)
        return {}

    fuse(model, statistics=True, **OPTIONS)
    trainer = Trainer(model, arguments(tmp_path), eval_dataset=Data())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert 0 < trainer.state.log_history[-1]["eval_entropy"] < math.log(V)
    found: Any = trainer.predict(Data())
    predictions = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
    torch.testing.assert_close(torch.as_tensor(predictions), logits)
    assert found.metrics["test_loss"] == pytest.approx(expected, abs=1e-5)
    Trainer(model, arguments(tmp_path), eval_dataset=Data(), compute_metrics=metrics).evaluate()
    assert shapes == [(4, 6, V)]
    fused: Any = fused_of(model)
    assert fused.gives_logits is False


def test_labo_loss_needs_no_more_than_its_name(tmp_path):
    plain = llama().train()
    value = by_logits(plain)
    loss = labo_loss(**OPTIONS)
    for kind, parts in ((transformers.LlamaForCausalLM, 2), (transformers.LlamaForSequenceClassification, 1)):
        torch.manual_seed(0)
        model = kind(transformers.LlamaConfig(**SMALL))
        data: Any = Data()
        if parts == 1:  # the same loss in the Trainer of a network whose labels are not shifted
            data = [{"input_ids": TOKENS[row], "labels": torch.tensor(row % 2)} for row in range(4)]
            labels = torch.arange(4) % 2
            value = labo.labo_cross_entropy(model.train()(TOKENS).logits, labels, **OPTIONS)
            expected = F.cross_entropy(model(TOKENS).logits, labels).item()
        else:
            expected = nll(model)
        trainer = Trainer(
            model, arguments(tmp_path, parts), train_dataset=data, eval_dataset=data, compute_loss_func=loss
        )
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
        trainer.train()
        assert logged(trainer) == pytest.approx(value.item(), abs=1e-4)
    assert loss.shift_labels is None


def test_the_decoders_inputs_are_made_of_the_labels_that_the_trainer_takes_away(tmp_path):
    model = network("marian")
    labels = LABELS.masked_fill(LABELS == -100, 5)
    data: Any = [{"input_ids": TOKENS[row], "labels": labels[row]} for row in range(4)]
    logits = model.train()(input_ids=TOKENS, labels=labels).logits.detach()
    value = labo.labo_cross_entropy(logits.reshape(-1, V), labels.reshape(-1), **OPTIONS).item()
    args = transformers.Seq2SeqTrainingArguments(**arguments(tmp_path, 2).to_dict())
    trainer = transformers.Seq2SeqTrainer(
        model, args, train_dataset=data, eval_dataset=data, compute_loss_func=labo_loss(**OPTIONS)
    )
    expected = F.cross_entropy(logits.reshape(-1, V), labels.reshape(-1)).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
    trainer.train()
    assert logged(trainer) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"label_smoothing_factor": 0.1}, r"Expected one loss, but got .* and label_smoothing_factor=0.1: .*epsilon="),
        ({"use_liger_kernel": True}, r"Expected one loss, but got .* and use_liger_kernel=True.*liger_kernel_config="),
    ],
)
def test_two_losses_are_an_error(tmp_path, options, told):
    args = arguments(tmp_path, **options)
    with pytest.raises(UserError, match=told):
        Trainer(llama(), args, compute_loss_func=labo_loss())
    with pytest.raises(UserError, match=told):
        Trainer(fuse(llama()), args)
    with pytest.raises(UserError, match="a fused model and a compute_loss_func"):
        Trainer(fuse(llama()), arguments(tmp_path), compute_loss_func=labo_loss())
    with pytest.raises(UserError, match="a fused model and a compute_loss_func"):
        LabelRegularizedTrainer(
            fuse(llama()), arguments(tmp_path), loss=LabelRegularizedLoss(regularizers.create("none"))
        )
    only = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    Trainer(fuse(llama()), arguments(tmp_path, use_liger_kernel=True, liger_kernel_config=only))


def test_a_memory_is_told_where_it_works(tmp_path):
    memory = fuse(llama(), "labo", prior="memory")
    with pytest.raises(UserError, match=r"needs .*(LabelRegularizedTrainer|provide)"):
        Trainer(memory, arguments(tmp_path), train_dataset=Data()).train()
