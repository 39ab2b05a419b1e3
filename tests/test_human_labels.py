"""CIFAR with labels of human annotators: which labels are replaced, what is kept, and files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import image_files as made
from labo import tasks
from labo.errors import UserError
from labo.tasks import data_files
from labo.tasks.images import cifar

TEN = [f"class {number}" for number in range(10)]
EACH = 20  # images in each file of the archive, five to train on


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 of 100 and 20 images, as the published archive unpacks."""
    monkeypatch.delenv(data_files.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files, _ = made.cifar_files(cifar.CIFAR10, EACH, TEN)
    root = tmp_path / "data" / cifar.CIFAR10.folder
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root.parent


def true_labels(folder: Path) -> np.ndarray:
    return cifar.read(cifar.CIFAR10, cifar.locate(cifar.CIFAR10, str(folder), False)).parts["train"].labels


def worse(true: np.ndarray) -> np.ndarray:
    """Every fourth label is of the next class."""
    return (true + (np.arange(len(true)) % 4 == 0)) % 10


def publish(folder: Path, legacy: bool = False, **changes: Any) -> None:
    true = true_labels(folder)
    content = {"clean_label": true, "worse_label": worse(true), "aggre_label": true, **changes}
    torch.save(content, folder / "CIFAR-10_human.pt", _use_new_zipfile_serialization=not legacy)


def task(folder: Path, labels: str | None = "worse", **options: Any) -> Any:
    return tasks.create("cifar10", data=str(folder), labels=labels, **options)


@pytest.mark.parametrize("legacy", [False, True])
def test_training_and_validation_labels_are_replaced_and_the_true_ones_kept(folder, legacy):
    publish(folder, legacy)
    splits, plain = task(folder).splits(0), task(folder, None).splits(0)
    given = torch.from_numpy(worse(true_labels(folder)))
    for part, same in ((splits.train, plain.train), (splits.validation, plain.validation)):
        assert torch.equal(part.origin.source_indices, same.origin.source_indices)  # the same split
        assert torch.equal(part.features, same.features)
        assert torch.equal(part.before_noise, same.target)
        assert torch.equal(part.target, given[part.origin.source_indices])
    assert torch.equal(splits.test.target, plain.test.target)
    assert splits.test.before_noise is None
    assert any("25.0% of them are wrong; the test labels are the true ones" in note for note in splits.notes)
    assert torch.equal(task(folder, "aggre").splits(0).train.target, plain.train.target)
    assert len({task(folder, kind).fingerprint() for kind in (None, "worse")}) == 2


def test_arrays_of_parts_leave_out_images_without_a_label(folder):
    true = true_labels(folder)
    (folder / "cifarn").mkdir()
    index = np.array([90, 3, 50, *range(60, 85)])
    np.savez(folder / "cifarn" / "cifar10n-train-a.npz", index=index[:10], worse=worse(true)[index[:10]])
    np.savez(folder / "cifarn" / "cifar10n-train-b.npz", index=index[10:], worse=worse(true)[index[10:]])
    splits, plain = task(folder).splits(0), task(folder, None)._read_true().parts["train"]
    assert len(splits.train) + len(splits.validation) == len(index)
    for part in (splits.train, splits.validation):
        source = part.origin.source_indices
        assert set(source.tolist()) <= set(index.tolist())
        assert part.target.tolist() == worse(true)[source.numpy()].tolist()
        np.testing.assert_array_equal(part.features.permute(0, 2, 3, 1), plain.images[source.numpy()])
    assert "72 training images have no human label and are left out." in splits.notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"worse_label": np.zeros(7, np.int64), "clean_label": np.zeros(7, np.int64)},
            "7 labels of 100 training images",
        ),
        ({"clean_label": np.zeros(100, np.int64)}, "not those of the images .they differ for 90 images."),
        ({"worse_label": np.full(100, 10)}, "from 0 to 9, but got 10 to 10"),
        ({"worse_label": np.zeros(100, np.int64)}, "Only 10% of the labels `worse` in .* agree with the true ones"),
        ({"worse_label": ["a"] * 100}, "to hold whole numbers `worse_label`"),
        ({"worse_label": Path("x")}, "Cannot read"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, changes, message):
    publish(folder, **changes)
    with pytest.raises(UserError, match=message):
        task(folder).splits(0)


def test_positions_outside_the_training_set_are_refused(folder):
    np.savez(folder / "cifar10n-train-a.npz", index=np.array([0, 100]), worse=np.array([0, 1]))
    with pytest.raises(UserError, match="a position from 0 to 99"):
        task(folder).splits(0)


def test_kinds_noise_and_missing_files_are_refused(folder):
    with pytest.raises(UserError, match="Unknown kind of label 'worst'; the nearest is 'worse'"):
        task(folder, "worst")
    with pytest.raises(UserError, match="either human `labels` or label noise, but got both"):
        task(folder, label_noise="0.2")
    with pytest.raises(UserError, match=r"No human labels of cifar10 in .*: put CIFAR-10_human\.pt"):
        task(folder).splits(0)
    with pytest.raises(UserError, match="Known kind of labels: noisy"):
        tasks.create("cifar100", data=str(folder), labels="worse")
    with pytest.raises(UserError, match="takes no `labels`"):
        tasks.create("image", data=str(folder), labels="worse")
