"""Images through a whole trial: augmentation, mixed labels, a stopped run that goes on exactly, optimization."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import trial
from labo import LabelRegularizedLoss, regularizers
from labo.cli import main
from labo.errors import UserError
from labo.experiment import run_trial, saved_run
from labo.integrations.transformers import TrainerLoss
from labo.records import trial as trials
from labo.settings import TrainingSettings
from labo.tasks.images.augmentation import Augmentation
from labo.training import optimizers
from labo.training.checkpoints import read_weights


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Sixty pictures of three classes that a convnet can tell apart: how bright a corner is."""
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = draw.integers(0, 80, (60, 8, 8, 3), dtype=np.uint8)
    images[:, :4, :4] += (labels * 80).astype(np.uint8)[:, None, None, None]
    path = tmp_path / "pictures.npz"
    np.savez(path, images=images, labels=labels)
    return str(path)


def image_trial(data: str, method: str = "labo", **settings: Any) -> Any:
    small = {"width": 4, "batch_size": 8, "learning_rate": 0.05}
    options = {"data": data, "validation_size": 9}
    return trial(method, task="image", task_options=options, set={**small, **settings}, epochs=3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mixup": 0.4, "cutmix": 1.0, "erasing": 0.3},
        {"schedule": "steps"},
        {"ema": 0.9, "accumulation": 2, "channels_last": True},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["labo", "online_smoothing", "dlb"])
def test_a_stopped_run_goes_on_exactly(tmp_path, data, settings, method):
    class StoppedError(Exception):
        pass

    def stop(share: float) -> None:
        if share >= 0.5:
            raise StoppedError

    asked = image_trial(data, method, **settings)
    whole = run_trial.run(asked, tmp_path / "whole")
    with pytest.raises(StoppedError):
        run_trial.run(trials.Trial(**{**vars(asked), "save_seconds": 0.0}), tmp_path / "cut", stop)
    resumed = run_trial.run(asked, tmp_path / "cut")
    assert resumed["metrics"] == whole["metrics"]
    mine, theirs = (read_weights(tmp_path / name / trials.WEIGHTS) for name in ("cut", "whole"))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("method", ["ps_kd", "cs_kd"])
def test_mixtures_are_refused_where_single_pictures_are_followed(tmp_path, data, method):
    for kind in ("mixup", "cutmix"):
        with pytest.raises(UserError, match="it follows single images, and mixup and cutmix train on mixtures"):
            run_trial.run(image_trial(data, method, **{kind: 0.5}), tmp_path / kind)


def test_partners_are_augmented_as_the_batch_is(tmp_path, data, monkeypatch):
    seen = []
    whole = Augmentation.__call__

    def watched(self: Augmentation, features: torch.Tensor, labels: torch.Tensor) -> Any:
        seen.append(labels.clone())
        return whole(self, features, labels)

    monkeypatch.setattr(Augmentation, "__call__", watched)
    run_trial.run(image_trial(data, "cs_kd"), tmp_path / "run")
    batches, partners = seen[0::2], seen[1::2]
    assert len(batches) == len(partners) > 0
    assert all(len(one) == len(other) for one, other in zip(batches, partners, strict=True))


def test_a_run_in_bfloat16_is_measured_as_it_is_later(tmp_path, data):
    record = run_trial.run(image_trial(data, precision="bfloat16"), tmp_path / "run")
    run = saved_run.load(tmp_path / "run")
    later = run.scores(run.task.splits(0).test)
    for name in ("accuracy", "nll", "ece"):
        assert later[name] == pytest.approx(record["metrics"][name], rel=1e-9)


def test_mixed_labels_count_as_their_examples(tmp_path, data):
    """The loss of a mixed batch is a mean over examples, not over the entries of their labels."""
    found = {}
    for mixup in (0.0, 1e-6):  # a share so close to 0 or 1 that it mixes nothing
        record = run_trial.run(image_trial(data, "none", mixup=mixup, augment="none"), tmp_path / str(mixup))
        lines = (tmp_path / str(mixup) / "curve.jsonl").read_text().splitlines()
        found[mixup] = [json.loads(line)["loss"] for line in lines]
        assert record["metrics"]["accuracy"] > 0.2
    assert found[0.0][0] == pytest.approx(found[1e-6][0], rel=0.2)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_pictures_are_smoothed_once(kind):
    """From the pictures to the Trainer's loss: torch's own smoothing of the labels that the mixing gave, no more."""
    torch.manual_seed(0)
    mixing = Augmentation({kind: 1.0}, image_size=8, classes=3)
    features, labels = mixing(torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert ((labels > 0).sum(1) == 2).any()
    logits = features.mean((2, 3))
    criterion = LabelRegularizedLoss(regularizers.create("label_smoothing", epsilon=0.2))
    found = TrainerLoss(criterion)({"logits": logits}, labels)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2))


def test_the_schedules():
    network = torch.nn.Linear(1, 1)

    def rates(**settings: Any) -> list[float]:
        asked = TrainingSettings(epochs=1, batch_size=1, learning_rate=1.0, **settings)
        kind, options = optimizers.optimizer_options(asked)
        made = kind(network.parameters(), **options)
        schedule = optimizers.make_schedule(asked, made, 10)
        found = []
        for _ in range(10):
            found.append(made.param_groups[0]["lr"])
            made.step()
            schedule.step()
        return found

    assert rates(schedule="constant") == [1.0] * 10
    assert rates(schedule="steps", optimizer="sgd") == pytest.approx([1.0] * 5 + [0.1] * 3 + [0.01] * 2)
    assert rates(schedule="linear", warmup=0.2)[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.875])
    assert rates(schedule="cosine")[5] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    kind, options = optimizers.optimizer_options(
        TrainingSettings(epochs=1, batch_size=1, learning_rate=1.0, optimizer="sgd", momentum=0.0)
    )
    assert kind is torch.optim.SGD
    assert not options["nesterov"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "adam"}, "nearest is 'adamw'"),
        ({"momentum": 1.0}, r"`momentum` to be in \[0, 1\), but got 1.0"),
        ({"precision": "bf16"}, "Unknown precision 'bf16'"),
    ],
)
def test_settings_out_of_range_are_named(data, settings, told):
    with pytest.raises(UserError, match=told):
        image_trial(data, **settings)


def test_the_command_line(tmp_path, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["train", "image", "--data", data, "--option", "validation_size=9", "--epochs", "1", "--set", "width=4"]
    assert main([*asked, "--output", "run"]) == 0
    assert main(["evaluate", "run"]) == 0
    assert main(["predict", "run", data]) == 0
    capsys.readouterr()
    assert main([*asked, "--option", "train_size=30"]) == 2
    assert "Use --train-size 30 instead of --option train_size=30" in capsys.readouterr().err
    assert main([*asked, "--option", "parts=a"]) == 2
    assert "Task 'image' takes no `parts`" in capsys.readouterr().err
