"""The scripts that make tables and small images of CIFAR with true and human labels."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import image_files
from labo import tasks
from labo.errors import UserError

CLASSES = ("bird", "cat", "dog")
IMAGES = 60  # of each part, 20 of each class


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """CIFAR-10 of random images and three classes; its `worse` labels are the next class, the others are true."""
    image_files.archived_cifar(tmp_path, "cifar10", "a", IMAGES, CLASSES)
    true = np.arange(IMAGES) % len(CLASSES)
    human: dict[str, Any] = {"aggre": true, "random1": true, "worse": (true + 1) % len(CLASSES)}
    (tmp_path / "cifarn").mkdir()
    np.savez(tmp_path / "cifarn" / "cifar10n-train-a.npz", **human)
    return tmp_path


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module(name)


@pytest.fixture
def patch_features(monkeypatch: pytest.MonkeyPatch) -> Any:
    return script("patch_features", monkeypatch)


@pytest.fixture
def cifar_labels(monkeypatch: pytest.MonkeyPatch) -> Any:
    return script("cifar_labels", monkeypatch)


def run(module: Any, monkeypatch: pytest.MonkeyPatch, data: Path, name: str, *options: str) -> Path:
    """The folder that the script has written."""
    output = data / name
    monkeypatch.setenv("LABO_DATA", str(data))
    monkeypatch.setattr(sys, "argv", ["script", *options, "--output", str(output)])
    module.main()
    return output


def made(patch_features: Any, monkeypatch: pytest.MonkeyPatch, data: Path, name: str, *options: str) -> Path:
    small = ("--images", str(IMAGES), "--centres", "4", "--patches", "300", "--threads", "1")
    return run(patch_features, monkeypatch, data, name, "cifar10", *small, *options)


def test_chosen_images_keep_their_labels(cifar_labels: Any, data: Path) -> None:
    everything = cifar_labels.read("cifar10", IMAGES, 0, data=str(data))
    assert everything.labels.keys() == {"true", "aggre", "random1", "worse"}
    found = cifar_labels.read("cifar10", 30, 0, kinds=("true", "worse"), data=str(data))
    places = [int((everything.train == image).all((1, 2, 3)).argmax()) for image in found.train]
    assert len(set(places)) == 30
    assert np.bincount(found.true).tolist() == [10, 10, 10]
    for kind in ("true", "worse"):
        assert np.array_equal(found.labels[kind], everything.labels[kind][places])
    assert np.array_equal(found.labels["worse"], (found.true + 1) % 3)
    assert np.array_equal(found.test, everything.test)


def test_wrong_requests_get_one_sentence(cifar_labels: Any, data: Path) -> None:
    with pytest.raises(UserError, match="from 3 to 60, but got 61"):
        cifar_labels.read("cifar10", 61, 0, data=str(data))
    with pytest.raises(UserError, match="kind of label"):
        cifar_labels.read("cifar10", 30, 0, kinds=("noisy",), data=str(data))
    np.savez(data / "cifarn" / "cifar10n-train-a.npz", worse=np.zeros(3, np.uint8))
    with pytest.raises(UserError, match="to hold 60 labels `worse`, but got an array of shape"):
        cifar_labels.read("cifar10", 30, 0, kinds=("worse",), data=str(data))


def test_the_table_task_reads_what_is_written(patch_features: Any, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    output = made(patch_features, monkeypatch, data, "features")
    true, worse = (np.load(output / f"cifar10-{kind}.npz") for kind in ("true", "worse"))
    assert sorted(path.name for path in output.iterdir()) == [
        f"cifar10-{kind}.npz" for kind in ("aggre", "random1", "true", "worse")
    ]
    assert true["x"].dtype == np.float32
    assert true["x"].shape == (2 * IMAGES, 4 * 4)
    assert np.array_equal(true["x"], worse["x"])
    index = np.arange(IMAGES) % 3
    assert true["y"].tolist() == [CLASSES[place] for place in [*index, *index]]
    assert worse["y"].tolist() == [CLASSES[place] for place in [*(index + 1) % 3, *index]]
    splits = tasks.create("table", data=str(output / "cifar10-worse.npz"), target="y", split="split").splits(0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [48, 12, 60]
    assert splits.classes == CLASSES
    for part, shift in ((splits.train, 1), (splits.validation, 1), (splits.test, 0)):
        assert part.origin is not None
        assert torch.equal(part.target, (part.origin.source_indices + shift) % 3)


def test_features_depend_on_the_seed_alone(patch_features: Any, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    def features(name: str, seed: str) -> np.ndarray:
        output = made(patch_features, monkeypatch, data, name, "--labels", "true", "--seed", seed)
        return np.load(output / "cifar10-true.npz")["x"]

    first = features("first", "0")
    assert np.array_equal(first, features("again", "0"))
    assert not np.array_equal(first, features("other", "1"))


def test_marked_validation_images_are_the_same_for_all_labels(
    patch_features: Any, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    output = made(patch_features, monkeypatch, data, "features", "--validation", "15", "--labels", "true,worse")
    true, worse = (np.load(output / f"cifar10-{kind}.npz") for kind in ("true", "worse"))
    assert np.array_equal(true["split"], worse["split"])
    names, counts = np.unique(true["split"], return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"train": 45, "validation": 15, "test": 60}
    assert np.unique(true["y"][true["split"] == "validation"], return_counts=True)[1].tolist() == [5, 5, 5]


def test_a_random_patch_is_one_of_all(patch_features: Any) -> None:
    image = image_files.noise(0, 1, 8, 9, 3)
    every = patch_features.all_patches(torch.from_numpy(image))[0]
    assert every.shape == (3 * 4, 108)
    for patch in patch_features.random_patches(image, 20, torch.Generator().manual_seed(0)):
        assert (every == patch).all(1).any()


def test_features_are_what_the_source_says(patch_features: Any) -> None:
    image = image_files.noise(0, 3, 9, 8, 3)  # 4 x 3 places, whose quadrants are 2 and 2 rows of 2 and 1 columns
    dictionary = patch_features.learn(image_files.noise(1, 20, 9, 8, 3), 500, 5, 0)
    expected = np.zeros((3, 2, 2, 5))
    mean, whitening, centres = (getattr(dictionary, name).double().numpy() for name in ("mean", "whitening", "centres"))
    for index, row, column in np.ndindex(3, 4, 3):
        patch = image[index, row : row + 6, column : column + 6].transpose(2, 0, 1).ravel().astype(float)
        patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 10)
        distance = np.linalg.norm((patch - mean) @ whitening - centres, axis=1)
        expected[index, row // 2, column // 2] += np.maximum(0, distance.mean() - distance)
    np.testing.assert_allclose(patch_features.encode(image, dictionary), expected.reshape(3, -1), rtol=1e-4, atol=1e-4)


def test_whitened_patches_are_uncorrelated(patch_features: Any) -> None:
    images = image_files.noise(0, 20, 32, 32, 3)
    dictionary = patch_features.learn(images, 20_000, 2, 0)
    patches = patch_features.normalised(patch_features.random_patches(images, 20_000, torch.Generator().manual_seed(1)))
    covariance = torch.cov(((patches - dictionary.mean) @ dictionary.whitening).T)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.1
    # Random pixels of contrast 1 have eigenvalues near 1, to which the offset is added.
    assert abs(covariance.diag().mean() - 1 / (1 + patch_features.WHITENING_OFFSET)) < 0.05


def test_the_image_task_reads_the_small_images(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    convnet_data = script("convnet_data", monkeypatch)
    output = run(convnet_data, monkeypatch, data, "small", "--images", "30")
    splits = tasks.create("image", data=str(output / "convnet-worse.npz")).splits(0)
    clean = tasks.create("image", data=str(output / "convnet-true.npz")).splits(0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [27, 3, 60]
    assert splits.train.features.shape == (27, 3, 16, 16)
    assert splits.classes == CLASSES
    assert torch.equal(splits.test.target, torch.arange(60) % 3)
    assert torch.equal(splits.test.target, clean.test.target)
    noisy, true = (
        dict(zip([image.numpy().tobytes() for image in part.features], part.target.tolist(), strict=True))
        for part in (splits.train, clean.train)
    )
    both = noisy.keys() & true.keys()
    assert both
    assert all(noisy[image] == (true[image] + 1) % 3 for image in both)


def test_squares_of_pixels_become_their_rounded_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    convnet_data = script("convnet_data", monkeypatch)
    image = np.array([[0, 1, 10, 11], [2, 4, 12, 13]], np.uint8)[None, :, :, None]
    assert convnet_data.pooled(image, 2).ravel().tolist() == [2, 12]  # of 1.75 and 11.5
