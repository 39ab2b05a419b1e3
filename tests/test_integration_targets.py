"""Which label each position predicts, and by how many targets the loss is divided, whatever version counts otherwise.

The pinned Transformers and the oldest supported one differ in what they count; both give these numbers. The oldest:

    pip install --target old httpx requests
    pip install --target old --no-deps "transformers==4.57.*" "tokenizers==0.22.*" "huggingface_hub<1" "datasets==4.4.*"
    PYTHONPATH=old pytest tests/test_integration_*.py tests/test_transformers_integration.py
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from labo import LabelRegularizedLoss, regularizers
from labo.errors import UserError
from labo.integrations import targets
from labo.integrations.targets import predicts_next_token
from labo.integrations.transformers import LabelRegularizedTrainer, TrainerLoss

VOCABULARY = 20
SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BART: dict[str, Any] = {"d_model": 8, "dropout": 0.0, "max_position_embeddings": 8, "decoder_start_token_id": 1, **IDS}
BART |= {f"{side}_layers": 1 for side in ("encoder", "decoder")}
BART |= {f"{side}_ffn_dim": 8 for side in ("encoder", "decoder")}
BART |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}


class Own(transformers.LlamaForCausalLM):
    """A user's class."""


class OwnOfOwn(Own):
    """And one that inherits from it."""


class Adapted(nn.Module):
    """A network as PEFT wraps it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def get_base_model(self) -> nn.Module:
        return self.base_model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


class Tagger(nn.Module):
    """A class of one's own: who knows what it predicts?"""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.embedding(input_ids)}


def llama(kind: Any = transformers.LlamaForCausalLM) -> Any:
    return kind(transformers.LlamaConfig(initializer_range=1.0, **SIZES, **IDS))


def gpt2(kind: Any = transformers.GPT2LMHeadModel) -> Any:
    still: dict[str, Any] = {name: 0.0 for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "classifier_dropout")}
    sizes: dict[str, Any] = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "initializer_range": 1.0}
    return kind(transformers.GPT2Config(**sizes, **IDS, **still))


def bert(kind: Any) -> Any:
    return kind(
        transformers.BertConfig(**SIZES, vocab_size=VOCABULARY, is_decoder=kind is transformers.BertLMHeadModel)
    )


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


NEXT: dict[str, Any] = {
    "llama": llama,
    "gpt2": gpt2,
    "subclass": lambda: llama(OwnOfOwn),
    "compiled": lambda: compiled(llama()),
    "adapted": lambda: Adapted(llama(Own)),
    "adapted, compiled": lambda: compiled(Adapted(llama())),
    "compiled, adapted": lambda: Adapted(compiled(llama())),
}
SAME: dict[str, Any] = {
    "tokens": lambda: gpt2(transformers.GPT2ForTokenClassification),
    "sequences": lambda: llama(transformers.LlamaForSequenceClassification),
    "masked": lambda: compiled(bert(transformers.BertForMaskedLM)),
    "encoder-decoder": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)),
}
UNKNOWN: dict[str, Any] = {
    "own": Tagger,
    "a namesake": type("LlamaForCausalLM", (Tagger,), {}),
    # Its own loss expects shifted labels, although it is in Transformers' list of causal language models.
    "decoder of BART": lambda: transformers.BartForCausalLM(transformers.BartConfig(**BART)),
}


@pytest.mark.parametrize(
    ("make", "expected"),
    [(make, known) for kinds, known in ((NEXT, True), (SAME, False), (UNKNOWN, None)) for make in kinds.values()]
    + [(lambda: nn.DataParallel(compiled(llama())), True), (lambda: bert(transformers.BertLMHeadModel), True)],
)
def test_structure_decides_what_positions_predict(make, expected):
    assert predicts_next_token(make()) is expected


def test_so_do_image_and_text_networks():
    text = transformers.LlamaConfig(**SIZES, **IDS)
    image = transformers.CLIPVisionConfig(**SIZES, image_size=4, patch_size=2)
    config = transformers.LlavaConfig(text_config=text, vision_config=image, image_token_index=3)
    assert predicts_next_token(transformers.LlavaForConditionalGeneration(config)) is True


TOKENS = torch.randint(0, VOCABULARY, (4, 5), generator=torch.Generator().manual_seed(0))
SHIFTED = torch.cat([TOKENS[:, 1:], torch.full((4, 1), -100)], 1)  # as a collator may do it


def seeded(make: Any) -> Any:
    torch.manual_seed(0)
    return make()


def logits_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS)["logits"]


def options(folder: Path, **more: Any) -> TrainingArguments:
    known: dict[str, Any] = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 1}
    known |= {"learning_rate": 0.0, "logging_steps": 1, "use_cpu": True, "report_to": [], "save_strategy": "no"}
    known |= {"disable_tqdm": True, "remove_unused_columns": False, "dataloader_pin_memory": False}
    return TrainingArguments(str(folder), **known | more)


def rows_of(labels: Tensor) -> Any:
    return [{"input_ids": ids, "labels": row} for ids, row in zip(TOKENS, labels, strict=True)]


def losses(folder: Path, model: Any, labels: Tensor, kind: Any = LabelRegularizedTrainer, **given: Any) -> list[float]:
    """The losses that are logged in training and in evaluation, at learning rate 0."""
    more = {"gradient_accumulation_steps": given.pop("parts", 1)}
    more["per_device_train_batch_size"] = 4 // more["gradient_accumulation_steps"]
    loss = LabelRegularizedLoss(regularizers.create("none"))
    if kind is LabelRegularizedTrainer:
        given["loss"] = loss
    else:
        given = {"compute_loss_func": TrainerLoss(loss, **given)}
    data = rows_of(labels)
    trainer = kind(model=model, args=options(folder, **more), train_dataset=data, eval_dataset=data, **given)
    trainer.train()
    logged = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    return [logged, trainer.evaluate()["eval_loss"]]


@pytest.mark.parametrize("make", NEXT.values(), ids=NEXT.keys())
def test_sixteen_tokens_are_predicted_and_divided_by(tmp_path, make):
    model = seeded(make)
    expected = F.cross_entropy(logits_of(model)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).item()
    for given in ((TOKENS, {}), (SHIFTED, {"shift_labels": False})):
        assert losses(tmp_path, model, given[0], **given[1]) == pytest.approx([expected] * 2, abs=1e-4)


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_trainer_divides_by_what_the_loss_is_computed_of(tmp_path, make, parts):
    model = seeded(make)
    labels = TOKENS.clone()
    labels[0, 2:] = labels[1, 3:] = labels[2, 0] = -100  # 1 + 2 + 4 + 4 targets
    expected = F.cross_entropy(logits_of(model)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()
    aligned = F.cross_entropy(logits_of(model).flatten(0, 1), labels.flatten()).item()
    for kind in (LabelRegularizedTrainer, Trainer):
        for shift, value in ((True, expected), (False, aligned)):
            found = losses(tmp_path, model, labels, kind, shift_labels=shift, parts=parts)
            assert found == pytest.approx([value] * 2, abs=1e-4)


def test_other_losses_are_counted_as_before(tmp_path):
    seen = []

    def compute(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        seen.append(int(num_items_in_batch))
        return outputs["logits"].sum() * 0

    Trainer(model=Tagger(), args=options(tmp_path), train_dataset=rows_of(TOKENS), compute_loss_func=compute).train()
    assert seen == [20]


def test_what_is_imported_again_counts_once(tmp_path):
    importlib.reload(targets)
    targets.own_the_denominator()
    expected = losses(tmp_path, seeded(llama), TOKENS)
    assert expected[1] == pytest.approx(
        F.cross_entropy(logits_of(seeded(llama))[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).item(), abs=1e-4
    )


def test_soft_labels_are_shifted_by_tokens(tmp_path):
    soft = torch.rand(4, 5, VOCABULARY, generator=torch.Generator().manual_seed(1)).softmax(-1)
    model = seeded(gpt2)
    expected = F.cross_entropy(logits_of(model)[:, :-1].flatten(0, 1), soft[:, 1:].flatten(0, 1)).item()
    assert losses(tmp_path, model, soft) == pytest.approx([expected] * 2, abs=1e-4)


def test_labels_are_int64_before_they_are_compared(tmp_path):
    labels = TOKENS.to(torch.uint8)
    assert TrainerLoss(LabelRegularizedLoss(regularizers.create("none"))).targets(labels).dtype == torch.int64
    wide, target = torch.zeros(3, 200), torch.tensor([156, 1, 2], dtype=torch.uint8)  # as a byte, -100 is 156
    compute = TrainerLoss(LabelRegularizedLoss(regularizers.create("none")))
    torch.testing.assert_close(compute(wide, target, torch.tensor(3)), torch.tensor(math.log(200)))
    weighed = LabelRegularizedLoss(regularizers.create("none"), weight=torch.ones(200))
    torch.testing.assert_close(TrainerLoss(weighed)(wide, target, torch.tensor(3)), torch.tensor(math.log(200)))
    assert losses(tmp_path, seeded(gpt2), labels) == losses(tmp_path, seeded(gpt2), TOKENS)


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_where_it_cannot_be_known_it_is_asked(tmp_path, make):
    with pytest.raises(UserError, match=r"Cannot tell .* pass shift_labels=False or, .* shift_labels=True"):
        losses(tmp_path, make(), TOKENS)
    model = seeded(make)
    logits = logits_of(model)
    for shift, value in (
        (False, F.cross_entropy(logits.flatten(0, 1), TOKENS.flatten())),
        (True, F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())),
    ):
        assert losses(tmp_path, model, TOKENS, shift_labels=shift) == pytest.approx([value.item()] * 2, abs=1e-4)


def test_images_need_no_answer():
    compute = TrainerLoss(LabelRegularizedLoss(regularizers.create("none")), shift_labels=None)
    for shape in ((2, 3), (2, 3, 4, 4), (2, 3, 5)):
        labels = torch.zeros(2, *shape[2:], dtype=torch.int64)
        torch.testing.assert_close(compute(torch.zeros(shape), labels), torch.tensor(math.log(3)))


def test_two_devices_in_one_process_are_refused(tmp_path):
    args = options(tmp_path)
    assert args.n_gpu <= 1
    args._n_gpu = 2
    loss = LabelRegularizedLoss(regularizers.create("none"))
    given: dict[str, Any] = {"model": seeded(gpt2), "args": args, "train_dataset": rows_of(TOKENS)}
    told = r"one GPU in each process, .* over 2 with nn.DataParallel: start it with `torchrun --nproc_per_node 2`"
    with pytest.raises(UserError, match=told):
        LabelRegularizedTrainer(**given, loss=loss)
    with pytest.raises(UserError, match=told):
        Trainer(**given, compute_loss_func=TrainerLoss(loss)).train()
