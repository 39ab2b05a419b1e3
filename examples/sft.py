"""Supervised fine-tuning in TRL with LABO: LabelRegularizedSFTTrainer where SFTTrainer stood.

    python examples/sft.py

A small model, made on the spot, learns to answer sums; only the answers count (completion-only loss). Then an adapter
(LoRA) is trained on answers of which some are wrong, with a memory of the predictions (labo[prior=memory]) for every
token of every example.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig

from labo import LabelRegularizedLoss, regularizers
from labo.integrations.trl import LabelRegularizedSFTTrainer

WORDS = ["<pad>", "</s>", "<unk>", "+", "=", *map(str, range(19))]


def sums(wrong: float = 0.0) -> Dataset:
    """All sums of two digits, some of them with a wrong answer."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for a in range(10):
        for b in range(10):
            is_wrong = torch.rand((), generator=draw) < wrong
            answer = int(torch.randint(0, 19, (), generator=draw)) if is_wrong else a + b
            rows.append({"prompt": f"{a} + {b} =", "completion": f" {answer}"})
    return Dataset.from_list(rows)


def small_model() -> tuple[Any, Any]:
    """A model and its tokenizer."""
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )  # fmt: skip
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "vocab_size": len(WORDS), "bos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(pad_token_id=0, eos_token_id=1, **sizes)), tokenizer


def train(model: Any, tokenizer: Any, data: Dataset, loss: str | LabelRegularizedLoss, **given: Any) -> Any:
    """Train a model, and tell how well it answers."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder, num_train_epochs=30, per_device_train_batch_size=25, learning_rate=5e-3, logging_steps=60,
            save_strategy="no", report_to=[], use_cpu=True, bf16=False, dataloader_pin_memory=False,
            gradient_checkpointing=False,
        )  # fmt: skip
        trainer = LabelRegularizedSFTTrainer(
            model=model, args=arguments, train_dataset=data, eval_dataset=sums(), processing_class=tokenizer, loss=loss,
            **given,
        )  # fmt: skip
        trainer.train()
        found = trainer.evaluate()
    accuracy = trainer.state.log_history[-1]["eval_mean_token_accuracy"]
    print(f"NLL of the right answers {found['eval_loss']:.2f} nats a token, accuracy {accuracy:.2f}")
    return trainer.model


def main() -> None:
    """Train by LABO, then an adapter with a memory."""
    model, tokenizer = small_model()
    model = train(model, tokenizer, sums(), "labo")
    memory = LabelRegularizedLoss(regularizers.create("labo", prior="memory"))
    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    train(model, tokenizer, sums(wrong=0.2), memory, peft_config=adapters)


if __name__ == "__main__":
    main()
