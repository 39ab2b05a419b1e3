"""The image tasks: their data, splits and examples, and what is said of data that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import image_files as made
from labo import tasks
from labo.errors import UserError
from labo.experiment.evaluators import classification
from labo.tasks import data_files
from labo.tasks.images import cifar, dataset, decoding, models

TEN = [f"class {number}" for number in range(10)]


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(data_files.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def linear(name: str, classes: int, image_size: int, settings: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, classes))


def test_large_data_are_decoded_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made.class_folders(tmp_path / "train", {"a": 30, "b": 30}, (20, 20))
    made.class_folders(tmp_path / "test", {"a": 5, "b": 5}, (20, 20))
    options: dict[str, Any] = {"data": str(tmp_path), "image_size": 8}
    whole = tasks.create("image", **options).splits(3)
    monkeypatch.setattr(dataset, "MAX_DECODED_BYTES", 1000)
    monkeypatch.setattr("labo.tasks.images.task._CACHE", {})
    lazy = tasks.create("image", **options).splits(3)
    assert isinstance(lazy.train.features, decoding.LazyImages)
    assert lazy.train.features.shape == whole.train.features.shape
    assert torch.equal(lazy.train.target, whole.train.target)
    batch, expected = (part.train.__getitems__([5, 0, 7]) for part in (lazy, whole))
    assert torch.equal(batch["features"], expected["features"])
    assert torch.equal(batch["labels"], expected["labels"])
    assert [len(piece) for piece in lazy.train.features.split(40)] == [40, 14]
    assert torch.equal(torch.cat(list(lazy.train.features.split(40))), whole.train.features)
    assert torch.equal(lazy.test.features.to("cpu"), whole.test.features)
    assert lazy.preprocessing == whole.preprocessing
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 10 * 3 * 64)
    assert max(len(piece) for piece in lazy.train.features.split(40)) == 10
    model = models.Normalized(linear("", 2, 8, {}), [0.5] * 3, [0.2] * 3)
    torch.testing.assert_close(
        classification.predict(model, lazy.test.features), classification.predict(model, whole.test.features)
    )
    # A damaged one is told when it is asked for, or left out beforehand.
    (tmp_path / "train" / "a" / "3.png").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"'.*3\.png'"):
        list(tasks.create("image", **options, validation_size=2).splits(3).train.features.split(10))
    # One that tests would be asked for after the training: it is told before.
    good = (tmp_path / "test" / "a" / "3.png").read_bytes()
    (tmp_path / "test" / "a" / "3.png").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"'.*test.a.3\.png'.*; --skip-unreadable leaves such images out"):
        tasks.create("image", **options).splits(3)
    (tmp_path / "test" / "a" / "3.png").write_bytes(good)
    left = tasks.create("image", **options, skip_unreadable=True).splits(3)
    assert len(left.train) + len(left.validation) == 59
    assert any("1 unreadable image is left out of the train part" in note for note in left.notes)
    assert len(list(left.train.features.split(100))) == 6


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet", "imagenet"])
def test_data_that_are_not_there_get_one_sentence(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=f"Task '{name}' finds no data \\(neither --data nor LABO_DATA"):
        tasks.create(name).splits(0)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(data_files.VARIABLE, str(tmp_path / "empty"))
    with pytest.raises(UserError, match=f"Task '{name}' finds no data in '.*empty': put ") as caught:
        tasks.create(name).fingerprint()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv(data_files.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"No such file or folder: '.*nowhere', named by LABO_DATA"):
        tasks.create(name).splits(0)


def test_image_needs_data():
    with pytest.raises(UserError, match="Task 'image' needs --data"):
        tasks.create("image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """200 training and 200 test images of ten classes in the files of CIFAR-100."""
    files, _ = made.cifar_files(cifar.CIFAR100, 200, TEN)
    (tmp_path / "cifar").mkdir()
    for name, content in files.items():
        (tmp_path / "cifar" / name).write_bytes(content)
    return tmp_path / "cifar"


def test_the_seed_draws_validation_in_proportion(folder: Path):
    task = tasks.create("cifar100", data=str(folder))
    first, again, other = task.splits(1), task.splits(1), task.splits(2)
    assert [len(part) for part in (first.train, first.validation, first.test)] == [180, 20, 200]
    assert first.train.target.bincount().tolist() == [18] * 10
    assert first.validation.target.bincount().tolist() == [2] * 10
    assert torch.equal(first.train.features, again.train.features)
    assert not torch.equal(first.train.features, other.train.features)
    assert not made.contents(first.train.features) & made.contents(first.validation.features)
    assert torch.equal(first.test.features, other.test.features)  # the official test
    small = tasks.create("cifar100", data=str(folder), train_size=50, validation_size=40).splits(1)
    assert small.train.target.bincount().tolist() == [5] * 10
    assert len(small.validation) == 40


def test_label_noise_leaves_the_test_clean(folder: Path):
    clean, noisy = (tasks.create("cifar100", data=str(folder), label_noise=n).splits(0) for n in (None, "0.2,pair"))
    changed = clean.train.target != noisy.train.target
    assert changed.sum() == 36
    assert torch.equal(noisy.train.target[changed], (clean.train.target[changed] + 1) % 10)
    assert (clean.validation.target != noisy.validation.target).sum() == 4
    assert torch.equal(clean.test.target, noisy.test.target)
    assert torch.equal(clean.train.features, noisy.train.features)


def test_statistics_are_those_of_the_training_split(folder: Path):
    splits = tasks.create("cifar100", data=str(folder)).splits(0)
    shares = splits.train.features.double() / 255
    mean, deviation = (torch.tensor(splits.preprocessing[key]).double() for key in ("mean", "deviation"))
    torch.testing.assert_close(mean, shares.mean((0, 2, 3)))
    torch.testing.assert_close(deviation, shares.std((0, 2, 3), correction=0))
    model = models.Normalized(nn.Identity(), mean.tolist(), deviation.tolist())
    seen = model(splits.train.features)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3))
    # An augmentation works on bytes / 255; the network sees the same.
    torch.testing.assert_close(model(splits.train.features.float() / 255), seen)
    assert model.to(torch.bfloat16)(splits.train.features[:2]).dtype == torch.bfloat16


def test_a_channel_that_never_changes_divides_nothing_by_zero():
    mean, deviation = dataset.channel_statistics(torch.full((2, 3, 4, 4), 51, dtype=torch.uint8))
    assert mean == pytest.approx([0.2] * 3)
    assert deviation == [1.0] * 3


def test_examples_are_bytes():
    with pytest.raises(ValueError, match=r"`features` to be uint8 \(N, 3, H, W\) with N = 2, but got torch.float32"):
        dataset.ImageExamples(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="`features`"):
        dataset.ImageExamples(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.long))


def test_the_model_sees_bytes_in_training_and_prediction(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def build(*arguments: Any) -> nn.Module:
        asked.append(arguments)
        return linear(*arguments)

    monkeypatch.setattr(models, "build", build)
    task = tasks.create("cifar100", data=str(folder))
    splits, settings = task.splits(0), task.default_settings()
    model = task.model(splits.classes, splits.preprocessing, settings)
    assert asked == [("convnet", 10, 32, settings)]
    batch = splits.train.__getitems__([3, 1, 4])
    assert batch["features"].dtype == torch.uint8
    assert model(batch["features"]).shape == (3, 10)
    assert classification.predict(model, splits.test.features).shape == (200, 10)
    assert set(model.state_dict()) == {"mean", "deviation", "network.1.weight", "network.1.bias"}


@pytest.mark.parametrize(
    ("model", "optimizer", "learning_rate", "weight_decay"),
    [(None, "sgd", 0.1, 5e-4), ("resnet18", "sgd", 0.1, 5e-4), ("vit_small", "adamw", 1.25e-4, 0.05)],
)
def test_the_model_decides_how_it_is_trained(model: Any, optimizer: str, learning_rate: float, weight_decay: float):
    task = tasks.create("cifar10")
    usual, tried = task.default_settings(model), task.optimizer_candidates(model)
    found = tuple(usual[key] for key in ("optimizer", "learning_rate", "weight_decay"))
    assert found == (optimizer, learning_rate, weight_decay)
    half, more = {"learning_rate": learning_rate / 2}, {"weight_decay": weight_decay * 2}
    most = {"weight_decay": weight_decay * 4}
    assert tried == ({}, half, more, {"learning_rate": learning_rate * 2}, half | more, most)


def test_new_pictures(folder: Path, tmp_path: Path):
    task = tasks.create("cifar100", data=str(folder))
    about = task.splits(0).preprocessing
    one = made.save(made.noise(7, 32, 32, 3), tmp_path / "new" / "b.png")
    made.save(made.noise(8, 50, 40, 3), tmp_path / "new" / "a.jpg")
    read = task.read_inputs(tmp_path / "new" / "b.png", about)
    np.testing.assert_array_equal(read[0].permute(1, 2, 0), one)
    both = task.read_inputs(tmp_path / "new", about)
    assert both.shape == (2, 3, 32, 32)
    assert torch.equal(both[1:], read)
    np.savez(tmp_path / "new.npz", images=one[None])
    assert torch.equal(task.read_inputs(tmp_path / "new.npz", about), read)
    for path, told in ((tmp_path / "no.png", "No such file"), (tmp_path / "empty", "holds no image")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=told):
            task.read_inputs(path, about)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="it is damaged or not an image"):
        task.read_inputs(tmp_path / "text.png", about)


def test_new_examples_are_labelled_as_training_was(folder: Path, tmp_path: Path):
    task = tasks.create("cifar100", data=str(folder))
    splits = task.splits(0)
    made.class_folders(tmp_path / "own", {"class 7": 2, "class 2": 3}, (32, 32))
    read = task.read_examples(tmp_path / "own", splits.preprocessing, splits.classes, None)
    assert read.target.tolist() == [2, 2, 2, 7, 7]
    assert read.features.shape == (5, 3, 32, 32)
    np.savez(tmp_path / "own.npz", images=made.noise(0, 2, 32, 32, 3), kinds=np.array([9, 4]))
    read = task.read_examples(tmp_path / "own.npz", splits.preprocessing, splits.classes, "kinds")
    assert read.target.tolist() == [9, 4]  # indices, where no class is called a number
    images = splits.test.features.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "again.npz", images=images, labels=splits.test.target, classes=np.array(TEN))
    again = task.read_examples(tmp_path / "again.npz", splits.preprocessing, splits.classes, None)
    assert torch.equal(again.features, splits.test.features)
    assert torch.equal(again.target, splits.test.target)
    made.class_folders(tmp_path / "own", {"emu": 1})
    with pytest.raises(UserError, match=r"The class 'emu' in .* is none of the 10 classes"):
        task.read_examples(tmp_path / "own", splits.preprocessing, splits.classes, None)


def test_examples_of_ones_own_are_labelled_by_what_was_trained_on(tmp_path: Path):
    """The array that --target named in training is the default; `labels`, which is there too, is another."""
    images, labels = made.noise(0, 24, 8, 8, 3), np.arange(24) % 4
    np.savez(tmp_path / "a.npz", images=images, labels=labels, coarse=labels // 2)
    task = tasks.create("image", data=str(tmp_path / "a.npz"), target="coarse")
    splits = task.splits(0)
    read = task.read_examples(tmp_path / "a.npz", splits.preprocessing, splits.classes, None)
    assert read.target.tolist() == (labels // 2).tolist()
    np.savez(tmp_path / "none.npz", images=made.noise(0, 0, 20, 20, 3))
    assert task.read_inputs(tmp_path / "none.npz", {**splits.preprocessing, "image_size": 20}).shape[0] == 0


def test_the_fingerprint_changes_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made.class_folders(tmp_path, {"cat": 3, "dog": 3})
    task = tasks.create("image", data=str(tmp_path))
    before = task.fingerprint()
    (tmp_path / "notes.txt").write_text("no part of the data")
    assert task.fingerprint() == before
    (tmp_path / "cat" / "0.png").rename(tmp_path / "dog" / "9.png")
    moved = task.fingerprint()
    assert moved != before
    made.save(made.noise(99, 8, 8, 3), tmp_path / "dog" / "9.png")
    assert task.fingerprint() != moved
    monkeypatch.setattr(data_files, "MAX_HASHED_BYTES", 0)  # names and sizes alone
    assert task.fingerprint() == task.fingerprint() != moved
