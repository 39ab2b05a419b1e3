"""An encoder-decoder network in Transformers' Seq2SeqTrainer with LABO.

    python examples/seq2seq.py

A small Marian network, made on the spot, learns to write a list of words backwards. `compute_loss_func=labo_loss()`
stands where `label_smoothing_factor=0.1` stood; the loss of an evaluation is the negative log-likelihood.
"""

from __future__ import annotations

import tempfile

import torch
from transformers import MarianConfig, MarianMTModel, Seq2SeqTrainer, Seq2SeqTrainingArguments

from labo.integrations.transformers import labo_loss

WORDS, LENGTH, PAD, END = 12, 3, 0, 1


def pairs(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Words, and the same words backwards."""
    words = torch.randint(2, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    end = torch.tensor([END])
    return [{"input_ids": torch.cat([row, end]), "labels": torch.cat([row.flip(0), end])} for row in words]


def exact(prediction: tuple) -> dict[str, float]:
    """The share of lists that are written without a mistake."""
    found, right = prediction
    return {"exact": float((found[:, 1 : LENGTH + 1] == right[:, :LENGTH]).all(1).mean())}


def main() -> None:
    """Train, and measure what is written."""
    torch.manual_seed(0)
    layers = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in
              (("layers", 1), ("attention_heads", 4), ("ffn_dim", 128))}  # fmt: skip
    ids = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD, "forced_eos_token_id": None}
    model = MarianMTModel(
        MarianConfig(
            vocab_size=WORDS, d_model=64, dropout=0.0, init_std=0.1, max_position_embeddings=16, **layers, **ids
        )
    )
    model.generation_config.max_length = LENGTH + 2
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder, max_steps=300, per_device_train_batch_size=64, learning_rate=2e-3, logging_steps=100,
            save_strategy="no", report_to=[], use_cpu=True, dataloader_pin_memory=False, predict_with_generate=True,
        )  # fmt: skip
        trainer = Seq2SeqTrainer(
            model,
            arguments,
            train_dataset=pairs(2000, 0),  # pyright: ignore[reportArgumentType]
            eval_dataset=pairs(100, 1),  # pyright: ignore[reportArgumentType]
            compute_metrics=exact,
            compute_loss_func=labo_loss(alpha=0.1, beta=2.0),
        )
        trainer.train()
        found = trainer.evaluate()
    print(f"NLL {found['eval_loss']:.2f} nats a word, {found['eval_exact']:.0%} of the lists without a mistake")


if __name__ == "__main__":
    main()
