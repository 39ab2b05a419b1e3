"""A causal language model in Transformers' Trainer with LABO, without logits in training.

    python examples/causal_lm.py

The model learns a made-up language in which each word has two likely successors. `fuse` is the only line that is new;
the Trainer logs LABO's loss with the accuracy and entropy of tokens, and evaluates by the negative log-likelihood.
"""

from __future__ import annotations

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from labo.integrations.transformers import fuse

VOCABULARY, LENGTH = 200, 24


def sentences(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Sentences in which word w is followed by 3 w + 1 or, one time in four, by 5 w + 2."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(0, VOCABULARY, (count, LENGTH), generator=draw)
    rare = torch.rand(count, LENGTH, generator=draw) < 0.25
    for place in range(1, LENGTH):
        before = words[:, place - 1]
        words[:, place] = torch.where(rare[:, place], 5 * before + 2, 3 * before + 1) % VOCABULARY
    return [{"input_ids": row, "labels": row} for row in words]


def main() -> None:
    """Train, evaluate and generate."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=None, eos_token_id=None, **sizes))

    fuse(model, alpha=0.1, beta=2.0, statistics=True)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=60, per_device_train_batch_size=32, learning_rate=1e-2, logging_steps=20,
            save_strategy="no", report_to=[], use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=sentences(800, 0), eval_dataset=sentences(200, 1))  # pyright: ignore[reportArgumentType]
        trainer.train()
        print(f"negative log-likelihood of new sentences: {trainer.evaluate()['eval_loss']:.2f} nats a word")
    start = torch.tensor([[7]])
    words = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=6, do_sample=False)
    print("likely words after 7:", words[0, 1:].tolist())


if __name__ == "__main__":
    main()
