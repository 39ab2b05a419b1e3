"""The rows of the README's table: where people train, the loss that is logged is LABO's, by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

import labo
from labo import LabelRegularizedLoss, regularizers
from labo.integrations.transformers import TrainerLoss

WORDS = ("<pad>", "</s>", "a", "b", "c", "<unk>")
# One step at rate 0: what is logged is the loss of the first weights.
ONE_STEP: dict[str, Any] = {"max_steps": 1, "learning_rate": 0.0, "logging_steps": 1, "use_cpu": True}
ONE_STEP |= {"report_to": [], "save_strategy": "no", "per_device_train_batch_size": 4, "disable_tqdm": True}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def loss_of(**options: Any) -> TrainerLoss:
    return TrainerLoss(LabelRegularizedLoss(regularizers.create("labo", alpha=0.3, beta=2.0)), **options)


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> float:
    rows, target = logits.flatten(0, 1), labels.flatten()
    found = labo.labo_cross_entropy(rows, target, alpha=0.3, beta=2.0).item()
    for alpha, beta in ((0.0, 2.0), (0.3, math.inf)):  # which other losses would not be taken for it
        assert abs(labo.labo_cross_entropy(rows, target, alpha=alpha, beta=beta).item() - found) > 0.01
    return found


def first_logged(trainer: Any) -> float:
    return next(line["loss"] for line in trainer.state.log_history if "loss" in line)


def test_seq2seq_trainer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 32}
    marks = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout": 0.0, "init_std": 1.0}
    settings: dict[str, Any] = {**sizes, **marks, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    torch.manual_seed(0)
    model = MarianMTModel(MarianConfig(vocab_size=len(WORDS), **settings))
    rows = [{"input_ids": [2, 3, 1], "labels": [3, 2, 4, 1][: 2 + place % 3]} for place in range(4)]
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    arguments = Seq2SeqTrainingArguments(output_dir=str(tmp_path), **ONE_STEP)
    given: dict[str, Any] = {"model": model, "args": arguments, "train_dataset": rows, "data_collator": collator}
    trainer = Seq2SeqTrainer(**given, compute_loss_func=loss_of())
    trainer.train()
    batch = collator(rows)
    with torch.no_grad():
        expected = by_hand(model(**batch).logits, batch["labels"])
    assert first_logged(trainer) == pytest.approx(expected, abs=1e-3)


@pytest.mark.filterwarnings("default")  # theirs
def test_trl(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings: dict[str, Any] = {**sizes, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), bos_token_id=1, initializer_range=1.0, **settings))
    texts = ["a b c", "c b a a b", "b", "c c"]
    arguments = trl.SFTConfig(output_dir=str(tmp_path), bf16=False, **ONE_STEP)
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"text": text} for text in texts]),
        processing_class=tokenizer,
        compute_loss_func=loss_of(shift_labels=True),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    trainer.train()
    expected = by_hand(logits[:, :-1], batch["labels"][:, 1:])
    assert first_logged(trainer) == pytest.approx(expected, abs=1e-3)


@pytest.mark.filterwarnings("default")  # theirs
def test_lightning() -> None:
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = torch.nn.Linear(3, 5)
            self.criterion = labo.LABOLoss(alpha=0.3, beta=2.0)

        def training_step(self, batch: Any, place: int) -> torch.Tensor:
            loss = self.criterion(self.network(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    inputs, target = torch.randn(8, 3), torch.arange(8) % 5
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet)
    model = Classifier()
    trainer.fit(model, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, target), 8))
    expected = labo.labo_cross_entropy(model.network(inputs), target, alpha=0.3, beta=2.0)
    torch.testing.assert_close(trainer.callback_metrics["loss"], expected.detach())
