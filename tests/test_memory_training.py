"""Memories in Transformers' Trainer: a place for each label of a sentence, whatever the padding and the shift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from labo import LabelRegularizedLoss, regularizers
from labo.integrations.transformers import LabelRegularizedTrainer, TrainerLoss

VOCABULARY, LENGTHS = 40, (3, 5, 2, 4, 6)
STILL: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


class Texts(torch.utils.data.Dataset):
    """Sentences of different length, padded to 6 on one side."""

    def __init__(self, side: str) -> None:
        draw = torch.Generator().manual_seed(0)
        self.tokens = [torch.randint(1, VOCABULARY, (length,), generator=draw) for length in LENGTHS]
        self.side = side

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens, gap = self.tokens[index], 6 - len(self.tokens[index])
        pad = (gap, 0) if self.side == "left" else (0, gap)
        ids = torch.nn.functional.pad(tokens, pad)
        return {"input_ids": ids, "labels": torch.nn.functional.pad(tokens, pad, value=-100)}


def trainer(folder: Path, dataset: Any, method: str = "labo[prior=memory]", **options: Any) -> LabelRegularizedTrainer:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=8, n_embd=8, n_layer=1, n_head=2, **STILL))
    arguments: dict[str, Any] = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "report_to": []}
    return LabelRegularizedTrainer(
        model=model,
        args=TrainingArguments(str(folder), use_cpu=True, **{**arguments, **options}),
        train_dataset=dataset,
        loss=LabelRegularizedLoss(regularizers.create(method)),
    )


@pytest.mark.parametrize("method", ["labo[prior=memory]", "elr"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_predicted_token_has_its_place(tmp_path, side, method):
    data = Texts(side)
    ours = trainer(tmp_path, data, method)
    ours.train()
    held = ours.loss.regularizer.prediction_memory
    assert held is not None
    assert held.labels is not None
    assert held.values is not None
    assert len(held.labels) == sum(LENGTHS) + 1
    # The first token of a sentence is not predicted; with padding on the left it is, from the padding.
    start = 0
    for tokens in data.tokens:
        own = held.labels[start : start + len(tokens)].tolist()
        first = 0 if side == "left" and len(tokens) < 6 else 1
        assert own[first:] == tokens.tolist()[first:]
        assert own[:first] == [-1] * first
        moved = held.values[start + first : start + len(tokens)].float()
        assert (moved - moved.mean(-1, keepdim=True)).abs().amax() > 0
        start += len(tokens)


def test_accumulated_parts_remember_what_one_batch_does(tmp_path):
    data, memories = Texts("right"), []
    whole: dict[str, Any] = {"per_device_train_batch_size": 4}
    parts: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for options in (whole, parts):
        ours = trainer(tmp_path, data, max_steps=1, **options)
        ours.train()
        memories.append(ours.loss.regularizer.prediction_memory.values)  # pyright: ignore[reportOptionalMemberAccess]
    torch.testing.assert_close(memories[0], memories[1], rtol=2e-3, atol=1e-4)


def test_iterable_datasets_are_refused(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(TypeError, match="whose examples have no fixed indices"):
        trainer(tmp_path, Stream(), max_steps=2)


def test_the_trainer_alone_tells_no_indices():
    regularizer = regularizers.create("labo[prior=memory]")
    regularizer.provide(examples=4)
    told = "needs indices, which LabelRegularizedTrainer passes but compute_loss_func alone cannot"
    with pytest.raises(ValueError, match=told):
        TrainerLoss(LabelRegularizedLoss(regularizer))({"logits": torch.zeros(2, 4)}, torch.tensor([0, 3]))
