"""TRL's SFTTrainer with LABO's loss from hidden states: the loss of the logits, and what TRL logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import labo
from labo import LabelRegularizedLoss, regularizers
from labo.errors import UserError
from labo.integrations.transformers import fuse, labo_loss

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
sft = pytest.importorskip("labo.integrations.trl")

pytestmark = pytest.mark.filterwarnings("default")  # theirs

WORDS = ("<pad>", "</s>", "a", "b", "c", "d", "<unk>")
OPTIONS: dict[str, Any] = {"alpha": 0.3, "beta": 4.0}
TEXTS = datasets.Dataset.from_list([{"text": text} for text in ("a b c", "c b a a b", "b d", "c c d")])
PROMPTS = datasets.Dataset.from_list([{"prompt": "a b", "completion": " c d"}, {"prompt": "d", "completion": " b"}])


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(bos_token_id=1, initializer_range=1.0, **sizes, **options))


def config(folder: Path, **options: Any) -> Any:
    known: dict[str, Any] = {"max_steps": 1, "learning_rate": 0.0, "logging_steps": 1, "use_cpu": True, "bf16": False}
    known |= {"report_to": [], "save_strategy": "no", "per_device_train_batch_size": 4, "disable_tqdm": True}
    known |= {"dataloader_pin_memory": False, "gradient_checkpointing": False}
    return trl.SFTConfig(output_dir=str(folder), **(known | options))


def trainer_of(folder: Path, tokenizer: Any, *, model: Any = None, data: Any = TEXTS, **options: Any) -> Any:
    ours = {name: options.pop(name) for name in ("loss", "linear", "peft_config", "eval_dataset") if name in options}
    ours = {"loss": LabelRegularizedLoss(regularizers.create("labo", **OPTIONS))} | ours
    return sft.LabelRegularizedSFTTrainer(
        model=llama() if model is None else model,
        args=config(folder, **options),
        train_dataset=data,
        processing_class=tokenizer,
        **ours,
    )


def batches(trainer: Any) -> list[dict[str, Tensor]]:
    """The training batches, of the same order as in training."""
    return list(trainer.get_train_dataloader())


def by_logits(trainer: Any, model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The logits and targets that count, and the loss."""
    (batch,) = batches(trainer)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[:, :-1]
    kept = batch["labels"][:, 1:] != -100
    logits, target = logits[kept], batch["labels"][:, 1:][kept]
    return logits, target, labo.labo_cross_entropy(logits, target, **OPTIONS, impl="reference")


def logged(trainer: Any, name: str = "loss") -> float:
    return next(line[name] for line in trainer.state.log_history if name in line)


CORNERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "completions": {"data": PROMPTS, "per_device_train_batch_size": 2},
    "packed": {"packing": True, "max_length": 64, "per_device_train_batch_size": 1},
    "checkpointed": {"gradient_checkpointing": True},
    "logits": {"linear": False},
}


@pytest.mark.parametrize("corner", CORNERS)
def test_what_is_logged_is_that_of_the_logits(tmp_path, tokenizer, corner):
    trainer = trainer_of(tmp_path, tokenizer, **CORNERS[corner])
    logits, target, value = by_logits(trainer, llama())
    trainer.train()
    if corner == "completions":
        assert len(target) == 5  # two completions and their ends
    assert logged(trainer) == pytest.approx(value.item(), abs=1e-4)
    accuracy = (logits.argmax(-1) == target).float().mean().item()
    assert logged(trainer, "mean_token_accuracy") == pytest.approx(accuracy, abs=1e-6)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    assert logged(trainer, "entropy") == pytest.approx(entropy, abs=1e-4)
    assert logged(trainer, "num_tokens") > len(target)


def test_accumulation_and_lora(tmp_path, tokenizer):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    found = []
    for parts in (1, 4):
        options = {"per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts}
        options |= {"learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
        trainer = trainer_of(tmp_path, tokenizer, peft_config=lora, **options)
        trainer.train()
        found.append({n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert found[0]
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_evaluation_is_nll(tmp_path, tokenizer):
    trainer = trainer_of(tmp_path, tokenizer, eval_dataset=TEXTS)
    logits, target, _ = by_logits(trainer, llama())
    expected = torch.nn.functional.cross_entropy(logits, target).item()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert 0 < trainer.state.log_history[-1]["eval_mean_token_accuracy"] <= 1
    predictions: Any = trainer.predict(trainer.eval_dataset).predictions
    assert predictions.shape[-1] == len(WORDS)


def test_a_memory_remembers_every_token_of_every_example(tmp_path, tokenizer):
    loss = LabelRegularizedLoss(regularizers.create("labo", prior="memory"))
    trainer = trainer_of(tmp_path, tokenizer, loss=loss, max_steps=-1, num_train_epochs=1)
    tokens = sum(len(row) for row in trainer.train_dataset.dataset["labels"])
    trainer.train()
    assert loss.regularizer.provided("examples") == tokens
    remembered: Any = loss.regularizer.prediction_memory
    assert remembered.state_dict()
    packed = {"packing": True, "max_length": 64}
    for options in (packed, {"padding_free": True, "max_length": None}):
        again = LabelRegularizedLoss(regularizers.create("labo", prior="memory"))
        with pytest.raises(UserError, match=r"'labo' remembers each example and position, which packing"):
            trainer_of(tmp_path, tokenizer, loss=again, **options)


def test_elr_from_logits(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"'elr' .*use linear=False"):
        trainer_of(tmp_path, tokenizer, loss="elr")
    trainer = trainer_of(tmp_path, tokenizer, loss="elr", linear=False, max_steps=-1, num_train_epochs=2)
    trainer.train()
    assert logged(trainer) > 0


def test_weights_of_tokens(tmp_path, tokenizer):
    rows = [{"input_ids": [2, 3, 4], "token_weights": [0.0, 1.0, 0.5]}, {"input_ids": [5, 3], "token_weights": [1, 2]}]
    data = datasets.Dataset.from_list([row | {"labels": row["input_ids"]} for row in rows])
    trainer = trainer_of(tmp_path, tokenizer, data=data, per_device_train_batch_size=2)
    with torch.no_grad():
        losses = [
            labo.labo_cross_entropy(
                llama()(torch.tensor([row["input_ids"]])).logits[0, :-1],
                torch.tensor(row["input_ids"][1:]),
                **OPTIONS,
                reduction="none",
            )
            for row in rows
        ]
    trainer.train()
    expected = (losses[0] @ torch.tensor([1.0, 0.5]) + losses[1] @ torch.tensor([2.0])).item() / 3.5
    assert logged(trainer) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(UserError, match="`token_weights` of the dataset belong to each example and position"):
        trainer_of(tmp_path, tokenizer, data=data, packing=True, max_length=8)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"label_smoothing_factor": 0.1}, "Expected one loss, but got `loss` and label_smoothing_factor=0.1"),
        ({"use_liger_kernel": True}, "Expected one loss, but got `loss` and use_liger_kernel=True"),
        ({"loss_type": "dft"}, "Expected one loss, but got `loss` and loss_type='dft'"),
    ],
)
def test_two_losses_are_an_error(tmp_path, tokenizer, options, told):
    with pytest.raises(UserError, match=told):
        trainer_of(tmp_path, tokenizer, **options)


def test_a_fused_model_and_a_second_loss_are_told_to_trl(tmp_path, tokenizer):
    given: dict[str, Any] = {"args": config(tmp_path), "train_dataset": TEXTS, "processing_class": tokenizer}
    with pytest.raises(UserError, match=r"use labo\.integrations\.trl\.LabelRegularizedSFTTrainer"):
        trl.SFTTrainer(model=fuse(llama()), **given)
    for _ in range(2):  # a model that was trained before
        trained = trainer_of(tmp_path, tokenizer, model=given.get("model"))
        given["model"] = trained.model
        trained.train()
    _, _, value = by_logits(trained, llama())
    assert logged(trained) == pytest.approx(value.item(), abs=1e-4)
    given.pop("model")
    with pytest.raises(UserError, match="leave compute_loss_func out"):
        sft.LabelRegularizedSFTTrainer(model=llama(), **given, compute_loss_func=labo_loss())


def test_the_loss_function_of_trl_is_told_which_token_is_next(tmp_path, tokenizer):
    trainer = trl.SFTTrainer(
        model=llama(),
        args=config(tmp_path),
        train_dataset=TEXTS,
        processing_class=tokenizer,
        compute_loss_func=labo_loss(**OPTIONS),
    )
    _, _, value = by_logits(trainer, llama())
    trainer.train()
    assert logged(trainer) == pytest.approx(value.item(), abs=1e-4)
