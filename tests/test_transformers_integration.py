"""The Trainer with our loss gives the gradients that a plain loop gives, and its checkpoints are whole."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import labo
from labo import LabelRegularizedLoss, regularizers
from labo.errors import UserError
from labo.integrations import checkpoint_files
from labo.integrations.checkpoint_files import checkpoints
from labo.integrations.transformers import REGULARIZER, LabelRegularizedTrainer, TrainerLoss

CLASSES = 5


class Tokens(nn.Module):
    """Logits (B, T, C) from features (B, T, 3), as a language model gives them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(features)}


class Sentences(torch.utils.data.Dataset):
    """Twelve sentences of four tokens, a third of them padding."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        self.features = torch.randn(12, 4, 3, generator=draw)
        self.labels = torch.randint(0, CLASSES, (12, 4), generator=draw)
        self.labels[torch.rand(12, 4, generator=draw) < 0.33] = -100

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"features": self.features[index], "labels": self.labels[index]}


class Remembering(regularizers.SoftLabelRegularizer):
    """Trains towards the mean of what it has seen: something to save."""

    name = "remembering"
    mean: Tensor

    def __init__(self, *, strength: float = 0.5) -> None:
        super().__init__(strength=strength)
        self.register_buffer("mean", torch.full((CLASSES,), 1 / CLASSES))

    def labels(self, rows: Any) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * rows.logits.detach().softmax(-1).mean(0)
        return self.mean.expand(rows.logits.shape)


def loss(name: str = "labo", **options: Any) -> LabelRegularizedLoss:
    return LabelRegularizedLoss(regularizers.create(name, **options))


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    known = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "learning_rate": 0.1, "optim": "sgd"}
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    more = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "use_cpu": True, "remove_unused_columns": False}
    return TrainingArguments(output_dir=str(folder), dataloader_pin_memory=False, **(known | quiet | more | options))


def train(folder: Path, criterion: LabelRegularizedLoss, *, resume: str | None = None, **options: Any) -> Any:
    callbacks = options.pop("callbacks", None)
    trainer = LabelRegularizedTrainer(
        model=Tokens(),
        args=arguments(folder, **options),
        train_dataset=Sentences(),
        loss=criterion,
        shift_labels=False,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("name", ["labo", "label_smoothing", "confidence_penalty"])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_accumulated_gradients_are_those_of_the_undivided_batch(tmp_path, name, parts):
    trainer = train(tmp_path, loss(name), per_device_train_batch_size=12 // parts, gradient_accumulation_steps=parts)
    plain, data = Tokens(), Sentences()
    value = loss(name)(plain(data.features)["logits"].reshape(-1, CLASSES), data.labels.reshape(-1))
    value.backward()
    with torch.no_grad():
        for ours, theirs in zip(plain.parameters(), trainer.model.parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(theirs, ours - 0.1 * ours.grad, atol=1e-6, rtol=0)


def test_trainer_loss_is_the_loss():
    criterion, logits = loss(alpha=0.3, beta=4.0), torch.randn(6, CLASSES)
    target = torch.tensor([0, 1, -100, 3, 4, 2])
    expected = criterion(logits, target)
    outputs = [logits, {"logits": logits}, (logits,), type("Output", (), {"logits": logits})()]
    for output in outputs:
        torch.testing.assert_close(TrainerLoss(criterion)(output, target), expected)
        torch.testing.assert_close(TrainerLoss(criterion)(output, target, num_items_in_batch=torch.tensor(5)), expected)
    torch.testing.assert_close(TrainerLoss(criterion)(logits, target, num_items_in_batch=10), expected / 2)
    images = logits.reshape(2, 3, CLASSES).movedim(-1, 1).unsqueeze(-1)
    torch.testing.assert_close(TrainerLoss(criterion)(images, target.reshape(2, 3, 1)), expected)


def test_the_dimension_of_classes_is_asked_where_both_fit():
    """Logits (N, C, L) or (N, L, C), with as many labels as classes."""
    criterion, logits = loss(), torch.randn(2, CLASSES, CLASSES)
    target = torch.randint(0, CLASSES, (2, CLASSES))
    last = criterion(logits.reshape(-1, CLASSES), target.reshape(-1))
    torch.testing.assert_close(TrainerLoss(criterion, class_dim=-1)(logits, target), last)
    torch.testing.assert_close(TrainerLoss(criterion, class_dim=1)(logits, target), criterion(logits, target))
    for shape in ((2, CLASSES, CLASSES), (2, CLASSES, CLASSES, CLASSES)):
        with pytest.raises(ValueError, match="pass class_dim=1 or class_dim=-1"):
            TrainerLoss(criterion)(torch.randn(shape), torch.zeros(shape[0], *shape[2:], dtype=torch.long))
    with pytest.raises(ValueError, match="`class_dim` to be 1, -1 or None, but got 2"):
        TrainerLoss(criterion, class_dim=2)
    for classes_last in (True, False):  # a batch that fits only one has decided
        decided, other = TrainerLoss(criterion), torch.randn(2, 3, CLASSES)
        decided(other if classes_last else other.movedim(-1, 1), target[:, :3])
        torch.testing.assert_close(decided(logits, target), last if classes_last else criterion(logits, target))


def test_probability_targets_are_counted_by_rows():
    criterion, logits = loss(), torch.randn(2, 3, CLASSES)
    target = torch.rand(2, 3, CLASSES).softmax(-1)
    expected = criterion(logits.reshape(6, CLASSES), target.reshape(6, CLASSES))
    found = TrainerLoss(criterion)(logits, target, num_items_in_batch=(target != -100).sum())
    torch.testing.assert_close(found, expected)


def test_causal_models_predict_the_next_token():
    criterion, logits, target = loss(), torch.randn(2, 4, CLASSES), torch.randint(0, CLASSES, (2, 4))
    expected = criterion(logits[:, :-1].reshape(-1, CLASSES), target[:, 1:].reshape(-1))
    torch.testing.assert_close(TrainerLoss(criterion, shift_labels=True)(logits, target), expected)


def test_a_batch_without_a_label_gives_zero_not_nan():
    logits = torch.randn(2, CLASSES, requires_grad=True)
    value = TrainerLoss(loss())(logits, torch.full((2,), -100), num_items_in_batch=torch.tensor(0))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_class_weights_are_right_undivided_and_refused_divided():
    weight, logits = torch.rand(CLASSES) + 0.1, torch.randn(4, CLASSES)
    target = torch.tensor([0, 1, -100, 3])
    criterion = LabelRegularizedLoss(regularizers.create("none"), weight=weight)
    found = TrainerLoss(criterion)(logits, target, num_items_in_batch=torch.tensor(3))
    torch.testing.assert_close(found, F.cross_entropy(logits, target, weight=weight))
    with pytest.raises(ValueError, match="no class weights with gradient accumulation"):
        TrainerLoss(criterion)(logits, target, num_items_in_batch=torch.tensor(7))


OTHER_LOSS: Any = labo.LABOLoss()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TrainerLoss(OTHER_LOSS), "to be a LabelRegularizedLoss, but got LABOLoss"),
        (lambda: TrainerLoss(LabelRegularizedLoss(regularizers.create("none"), reduction="sum")), "reduction 'mean'"),
        (lambda: TrainerLoss(LabelRegularizedLoss(regularizers.create("none"), ignore_index=0)), "ignore_index -100"),
        (lambda: TrainerLoss(loss())(torch.zeros(1, 2), None), "`labels`"),
        (lambda: TrainerLoss(loss())({"hidden": torch.zeros(1, 2)}, torch.tensor([0])), "to return logits"),
    ],
)
def test_what_it_cannot_do_is_refused(make, told):
    with pytest.raises((TypeError, ValueError), match=told):
        make()


class Stop(TrainerCallback):
    """Stops after a step, as a kill would, having saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("step", [2, 3, 4])
def test_what_a_regularizer_remembers_is_resumed(tmp_path, step):
    whole = LabelRegularizedLoss(Remembering())
    expected = train(tmp_path / "whole", whole, num_train_epochs=2)
    train(tmp_path / "cut", LabelRegularizedLoss(Remembering()), num_train_epochs=2, callbacks=[Stop(step)])
    (newest,) = checkpoints(tmp_path / "cut")
    again = LabelRegularizedLoss(Remembering())
    resumed = train(tmp_path / "cut", again, num_train_epochs=2, resume=str(newest))
    torch.testing.assert_close(again.regularizer.mean, whole.regularizer.mean, rtol=0, atol=0)
    for ours, theirs in zip(resumed.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpoints_are_whole_and_as_many_as_asked_for(tmp_path):
    train(tmp_path, LabelRegularizedLoss(Remembering()), save_strategy="steps", save_steps=1, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    for folder in checkpoints(tmp_path):
        assert {"model.safetensors", "optimizer.pt", "trainer_state.json", REGULARIZER} <= set(
            map(lambda p: p.name, folder.iterdir())
        )


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*args: Any) -> None:
        if checkpoints(tmp_path):
            raise Killed

    monkeypatch.setattr(checkpoint_files, "flush_to_disk", die)
    with pytest.raises(Killed):
        train(tmp_path, LabelRegularizedLoss(Remembering()), save_strategy="steps", save_steps=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]


def test_a_checkpoint_that_lacks_the_memory_is_refused(tmp_path):
    train(tmp_path, LabelRegularizedLoss(Remembering()), save_strategy="steps", save_steps=2)
    (tmp_path / "checkpoint-2" / REGULARIZER).unlink()
    with pytest.raises(UserError, match=f"lacks {REGULARIZER}"):
        train(tmp_path, LabelRegularizedLoss(Remembering()), resume=str(tmp_path / "checkpoint-2"))


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    options = {"save_strategy": "epoch", "eval_strategy": "epoch", "save_total_limit": 1, "num_train_epochs": 3}
    trainer = LabelRegularizedTrainer(
        model=Tokens(),
        args=arguments(tmp_path, load_best_model_at_end=True, label_names=["labels"], **options),
        train_dataset=Sentences(),
        eval_dataset=Sentences(),
        loss=loss(),
        shift_labels=False,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert Path(best) in checkpoints(tmp_path)


def test_a_best_step_that_was_never_saved_changes_nothing(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    trainer = LabelRegularizedTrainer(
        model=Tokens(),
        args=arguments(
            tmp_path, load_best_model_at_end=True, label_names=["labels"], max_steps=6, save_total_limit=1, **options
        ),
        train_dataset=Sentences(),
        eval_dataset=Sentences(),
        loss=loss(),
        shift_labels=False,
    )
    trainer.train()  # the Trainer's own way: it loads the best one that was saved, or none
    for folder in checkpoints(tmp_path):
        assert (folder / "model.safetensors").exists()
    best = trainer.state.best_model_checkpoint
    assert best is None or Path(best) in checkpoints(tmp_path)


def test_a_causal_model_is_seen_to_predict_the_next_token(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    tokens = torch.randint(0, 11, (2, 6))
    trainer = LabelRegularizedTrainer(model=model, args=arguments(tmp_path), loss=loss("none"))
    model.eval()
    found = trainer.compute_loss(model, {"input_ids": tokens, "labels": tokens})
    torch.testing.assert_close(found, model(input_ids=tokens, labels=tokens).loss)


def test_dense_logits_are_taken_from_the_models_outputs():
    draw = torch.Generator().manual_seed(0)
    outputs = {"logits": torch.randn(6, 5, generator=draw), "dense_logits": torch.randn(6, 4, 5, generator=draw)}
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    criterion = loss("zipf_smoothing", ranking="dense", strength=1.0)
    expected = criterion(outputs["logits"], labels, dense_logits=outputs["dense_logits"])
    torch.testing.assert_close(TrainerLoss(criterion)(outputs, labels), expected)
    with pytest.raises(UserError, match="needs dense_logits: pass dense_logits="):
        TrainerLoss(criterion)({"logits": outputs["logits"]}, labels)


class Returning(nn.Module):
    """A classifier that returns its outputs in some form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.form = nn.Linear(3, CLASSES), form

    def forward(self, features: Tensor) -> Any:
        return self.form(self.head(features), features)


class Both(NamedTuple):
    """Logits that are not the first of a tuple."""

    hidden: Tensor
    logits: Tensor


FORMS: dict[str, tuple[Any, int | None]] = {
    "tensor": (lambda logits, features: logits, None),
    "tuple": (lambda logits, features: (logits, features), 0),
    "tuple of one": (lambda logits, features: (logits,), None),
    "named tuple": (lambda logits, features: Both(features, logits), 1),
    "dictionary": (lambda logits, features: {"logits": logits, "features": features}, 0),
    "mapping": (lambda logits, features: UserDict(logits=logits, features=features), 0),
    "object": (lambda logits, features: SimpleNamespace(logits=logits), None),
}


def classified(labels: bool = True) -> Any:
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    return [{"features": row} | ({"labels": torch.tensor(n)} if labels else {}) for n, row in enumerate(features)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labels", [True, False])
def test_predictions_have_every_row_whatever_the_network_returns(tmp_path, form, labels):
    returned, place = FORMS[form]
    model, data = Returning(returned), classified(labels)
    args = arguments(tmp_path, per_device_eval_batch_size=2)  # the last batch has one row
    trainer = LabelRegularizedTrainer(model=model, args=args, train_dataset=classified(), loss=loss("none"))
    trainer.train()
    assert not model._forward_hooks
    features = torch.stack([row["features"] for row in data])
    expected = model.head(features).detach()
    found: Any = trainer.predict(data)
    predictions = found.predictions if place is None else found.predictions[place]
    torch.testing.assert_close(torch.as_tensor(predictions), expected)
    if place is not None:
        torch.testing.assert_close(torch.as_tensor(found.predictions[1 - place]), features)
    if labels:
        value = F.cross_entropy(expected, torch.arange(5)).item()
        assert found.metrics["test_loss"] == pytest.approx(value, abs=1e-6)
        assert trainer.evaluate(data)["eval_loss"] == pytest.approx(value, abs=1e-6)


def test_a_plain_trainer_that_drops_a_row_says_so(tmp_path):
    model, data = Returning(FORMS["tensor"][0]), classified()
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=data, compute_loss_func=TrainerLoss(loss()))
    trainer.train()
    trainer.label_names = ["labels"]
    with pytest.warns(UserWarning, match=r"drops the first entry of outputs .* use LabelRegularizedTrainer"):
        found: Any = trainer.predict(data)
    assert len(found.predictions) < 5


def test_labels_are_found_beside_other_inputs_of_that_name(tmp_path):
    class Hinted(Returning):
        def forward(self, features: Tensor, label_hint: Tensor | None = None) -> Any:
            return self.head(features)

    model = Hinted(None)
    trainer = LabelRegularizedTrainer(model=model, args=arguments(tmp_path), eval_dataset=classified(), loss=loss())
    assert "eval_loss" in trainer.evaluate()
