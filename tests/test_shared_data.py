"""The script that converts the shared archive of CIFAR and Tiny-ImageNet to the .npz files of the task `image`."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import image_files as made
from labo import tasks
from labo.errors import UserError
from labo.tasks.images import dataset, decoding

TEN = [f"class {number}" for number in range(10)]
REAL = os.environ.get("LABO_DATA", "")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("convert_shared_data")


def test_the_image_task_reads_converted_cifar(script: Any, tmp_path: Path):
    images = made.archived_cifar(tmp_path, "cifar100", "ab", 40, TEN)
    (path,) = script.convert(tmp_path, tmp_path / "converted")
    assert path.name == "cifar100.npz"
    splits = tasks.create("image", data=str(path)).splits(0)
    assert splits.classes == tuple(TEN)
    assert splits.preprocessing["image_size"] == 32
    np.testing.assert_array_equal(splits.test.features.permute(0, 2, 3, 1), images["test"])
    assert splits.test.target.tolist() == [index % 10 for index in range(40)]
    train = np.concatenate([images["train-a"], images["train-b"]])
    assert splits.train.origin is not None
    indices = splits.train.origin.source_indices
    np.testing.assert_array_equal(splits.train.features.permute(0, 2, 3, 1), train[indices.numpy()])
    assert torch.equal(splits.train.target, indices % 40 % 10)


def test_parts_of_cifar(script: Any, tmp_path: Path):
    images = made.archived_cifar(tmp_path, "cifar10", "ab", 40, TEN)
    archive = script.read_archive(tmp_path, "cifar10", ["b"])
    np.testing.assert_array_equal(archive.train_images, images["train-b"])
    assert archive.train_labels.dtype == np.int64
    assert len(script.read_archive(tmp_path, "cifar10").train_labels) == 80
    (tmp_path / "cifar10-train-b.npz").unlink()
    assert len(script.read_archive(tmp_path, "cifar10").train_labels) == 40
    with pytest.raises(UserError, match=r"to hold cifar10-train-b\.npz"):
        script.read_archive(tmp_path, "cifar10", ["b"])
    with pytest.raises(UserError, match="but there is no set"):
        script.convert(tmp_path / "converted", tmp_path / "converted")


def test_the_image_task_reads_converted_tiny_imagenet(script: Any, tmp_path: Path):
    images = [made.noise(seed, 64, 64, 3) for seed in range(12)]
    arrays: dict[str, Any] = {"classes": np.array(["goldfish", "owl"])}
    for part, some in (("train", images[:8]), ("test", images[8:])):
        arrays[f"jpeg_{part}"], arrays[f"off_{part}"] = made.blobs([made.jpeg(image) for image in some])
        arrays[f"y_{part}"] = np.arange(len(some)) % 2
    np.savez(tmp_path / "tiny_imagenet.npz", **arrays)
    (path,) = script.convert(tmp_path, tmp_path / "converted")
    splits = tasks.create("image", data=str(path), validation_size=2).splits(0)
    assert splits.classes == ("goldfish", "owl")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [6, 2, 4]
    expected = decoding.decode(made.jpeg(images[9]), "", 64)
    np.testing.assert_array_equal(splits.test.features[1].permute(1, 2, 0), expected)


@pytest.mark.skipif(
    not (REAL and all((Path(REAL) / f"cifar100-train-{part}.npz").is_file() for part in "ab")),
    reason="LABO_DATA names no folder with cifar100-train-a.npz and -b.npz",
)
def test_the_real_cifar_100_has_the_published_statistics(script: Any):
    archive = script.read_archive(Path(REAL), "cifar100")
    assert [len(archive.train_labels), len(archive.test_labels)] == [50_000, 10_000]
    mean, deviation = dataset.channel_statistics(decoding.channels_first(archive.train_images))
    assert mean == pytest.approx([0.5071, 0.4865, 0.4409], abs=1e-4)
    assert deviation == pytest.approx([0.2673, 0.2564, 0.2762], abs=1e-4)
    assert np.bincount(archive.train_labels).tolist() == [500] * 100
    assert archive.classes[:2] == ("apple", "aquarium_fish")
