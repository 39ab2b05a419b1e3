"""CIFAR, Tiny-ImageNet and ImageNet in their published formats, downloads, and pickles that must not be executed."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import image_files as made
from labo import tasks
from labo.errors import UserError
from labo.tasks import data_files
from labo.tasks.images import cifar, decoding, imagenet, pickles

TEN = [f"class {number}" for number in range(10)]


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(data_files.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("edition", [cifar.CIFAR10, cifar.CIFAR100], ids=lambda edition: edition.name)
@pytest.mark.parametrize("packed", [True, False])
def test_cifar_from_the_python_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edition: cifar.Edition, packed: bool
):
    files, wanted = made.cifar_files(edition, 20, TEN)
    if packed:
        path = made.archive(tmp_path / edition.archive, edition.folder, files)
        edition = replace(edition, md5=hashlib.md5(path.read_bytes()).hexdigest())
    else:
        (tmp_path / edition.folder).mkdir()
        for name, content in files.items():
            (tmp_path / edition.folder / name).write_bytes(content)
    monkeypatch.setattr(cifar.Cifar10, "edition", edition)
    read = cifar.read(edition, cifar.locate(edition, str(tmp_path), False))
    np.testing.assert_array_equal(read.parts["train"].images, np.concatenate([wanted[name] for name in edition.train]))
    np.testing.assert_array_equal(read.parts["test"].images, wanted[edition.test])
    assert read.classes == tuple(TEN)
    assert len(tasks.create("cifar10", data=str(tmp_path)).splits(0).test) == 20


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path):
    files, _ = made.cifar_files(cifar.CIFAR100, 20, TEN)
    made.archive(tmp_path / cifar.CIFAR100.archive, cifar.CIFAR100.folder, files)
    with pytest.raises(UserError, match=r"has the md5 .*, but eb9058c3a382ffc7106e4002c42a8d85 is published"):
        tasks.create("cifar100", data=str(tmp_path)).splits(0)


def test_fetching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files, _ = made.cifar_files(cifar.CIFAR100, 20, TEN)
    (tmp_path / "source").mkdir()
    path = made.archive(tmp_path / "source" / cifar.CIFAR100.archive, cifar.CIFAR100.folder, files)
    monkeypatch.setattr(cifar.Edition, "url", property(lambda self: path.as_uri()))
    with pytest.raises(UserError, match="has the md5"):
        tasks.create("cifar100", data=str(tmp_path / "new"), fetch=True).fingerprint()
    assert not list((tmp_path / "new").iterdir())
    edition = replace(cifar.CIFAR100, md5=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar.Cifar100, "edition", edition)
    fetched = tasks.create("cifar100", fetch=True)
    assert len(fetched.splits(0).test) == 20
    assert fetched.options == {}  # the same task as without
    path.unlink()
    assert tasks.create("cifar100").fingerprint() == fetched.fingerprint()
    with pytest.raises(UserError, match=r"Cannot fetch file:.*cifar-100-python"):
        tasks.create("cifar100", data=str(tmp_path / "other"), fetch=True).fingerprint()


class Malicious:
    """Runs a command when it is unpickled the usual way."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_malicious_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for value in (Malicious(), {b"data": [Malicious()]}, np.array([Malicious()], dtype=object)):
        for protocol in (0, 2, 5):
            with pytest.raises(UserError, match="Refused to read 'bad'"):
                pickles.loads(pickle.dumps(value, protocol), "bad")
    assert not (tmp_path / "pwned").exists()
    files, _ = made.cifar_files(cifar.CIFAR100, 20, TEN)
    folder = tmp_path / cifar.CIFAR100.folder
    folder.mkdir()
    for name, content in (files | {"test": pickle.dumps(Malicious())}).items():
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"Refused to read .*test': it asks for (posix|nt)\.system"):
        tasks.create("cifar100", data=str(tmp_path)).splits(0)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read(protocol: int):
    value = {
        "a": [1, 2.5, None, True, ("x", b"y\xff")],
        "data": made.noise(0, 4, 6),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
    }
    found = pickles.loads(pickle.dumps(value, protocol), "good")
    assert found["a"] == value["a"]
    for key in ("data", "columns first", "big endian"):
        np.testing.assert_array_equal(found[key], value[key])


@pytest.mark.parametrize("value", [np.array(["text"]), np.array([{}]), np.zeros(2, "M8[s]"), range(3), {1, 2}, 1j])
def test_what_is_not_plain_is_refused(value: Any):
    with pytest.raises(UserError, match="Refused to read 'odd'"):
        pickles.loads(pickle.dumps(value, 2), "odd")


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"no pickle", pickle.dumps([1, 2])[:-3]])
def test_a_damaged_pickle_is_told(content: bytes):
    with pytest.raises(UserError, match="Cannot read 'torn': it is a damaged pickle"):
        pickles.loads(content, "torn")


def tiny_folder(root: Path) -> Path:
    names = ("n02", "n01")
    for name in names:
        for number in range(10):
            made.save(made.noise(number, 64, 64, 3), root / "train" / name / "images" / f"{name}_{number}.JPEG")
    lines = []
    for number in range(4):
        made.save(made.noise(50 + number, 64, 64, 3), root / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{names[number % 2]}\t0\t1\t2\t3\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tgreat grey owl, owl\nn03\tcrane\n")
    return root


def test_tiny_imagenet_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tiny_folder(tmp_path / "tiny-imagenet-200")
    monkeypatch.setenv(data_files.VARIABLE, str(tmp_path))
    splits = tasks.create("tiny-imagenet", validation_size=2).splits(0)
    assert splits.classes == ("goldfish", "great grey owl")
    assert splits.preprocessing["folders"] == ["n01", "n02"]
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [18, 2, 4]
    assert splits.test.target.tolist() == [1, 0, 1, 0]
    expected = decoding.decode(root / "val" / "images" / "val_2.JPEG", "", 64)
    np.testing.assert_array_equal(splits.test.features[2].permute(1, 2, 0), expected)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\t0\n")
    with pytest.raises(UserError, match=r"in line 1 of .*val_annotations"):
        tasks.create("tiny-imagenet").splits(0)


def test_fetching_tiny_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny_folder(tmp_path / "source" / imagenet.TINY_FOLDER)
    packed = Path(shutil.make_archive(str(tmp_path / imagenet.TINY_FOLDER), "zip", tmp_path / "source"))
    monkeypatch.setattr(imagenet, "TINY_URL", packed.as_uri())
    monkeypatch.setattr(imagenet, "TINY_MD5", hashlib.md5(packed.read_bytes()).hexdigest())
    assert len(tasks.create("tiny-imagenet", data=str(tmp_path / "new"), fetch=True).splits(0).test) == 4
    assert [path.name for path in (tmp_path / "new").iterdir()] == [imagenet.TINY_FOLDER]

    def full(source: Any, target: Path) -> None:
        (target / imagenet.TINY_FOLDER / "train").mkdir(parents=True)
        (target / imagenet.TINY_FOLDER / "val").mkdir()
        raise OSError(28, "No space left on device")

    # What was cut in the middle is not taken for the whole.
    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    for _ in range(2):
        with pytest.raises(UserError, match="No space left"):
            tasks.create("tiny-imagenet", data=str(tmp_path / "other"), fetch=True).splits(0)


def test_data_are_fetched_to_where_one_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    locked, free = tmp_path / "locked", tmp_path / "free" / "below"
    locked.mkdir()
    monkeypatch.setattr(data_files.os, "access", lambda path, mode: Path(path) != locked)
    assert data_files.writable_folder([locked, free]) == free
    assert data_files.writable_folder([locked / "below"]) == locked / "below"  # which then says what is wrong


def test_imagenet_from_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "imagenet"
    made.class_folders(root / "train", {"n01": 6, "n02": 6, "n03": 6}, (30, 40), "JPEG")
    made.class_folders(root / "val", {"n01": 2, "n02": 2, "n03": 2}, (40, 30), "JPEG")
    (root / "LOC_synset_mapping.txt").write_text("n01 crane\nn02 tench, Tinca tinca\nn03 crane\n")
    monkeypatch.setenv(data_files.VARIABLE, str(tmp_path))
    splits = tasks.create("imagenet", image_size=16).splits(0)
    assert splits.classes == ("crane (n01)", "tench", "crane (n03)")
    assert splits.test.features.shape == (6, 3, 16, 16)
    expected = decoding.decode(root / "val" / "n02" / "1.JPEG", "", 16, 224 / 256)
    np.testing.assert_array_equal(splits.test.features[3:4][0].permute(1, 2, 0), expected)
    other = tasks.create("imagenet", image_size=16)
    read = other.read_examples(root / "val", splits.preprocessing, splits.classes, None)
    assert torch.equal(read.features[:], splits.test.features[:])  # the folders' names do as well
    assert torch.equal(read.target, splits.test.target)
    assert splits.train.origin is not None
    place = int(splits.train.origin.source_indices[0])  # the augmentation crops training images: here they are whole
    expected = decoding.decode(root / "train" / f"n0{place // 6 + 1}" / f"{place % 6}.JPEG", "", 16)
    np.testing.assert_array_equal(splits.train.features[:1][0].permute(1, 2, 0), expected)


def test_classes_that_share_a_word_are_told_apart(tmp_path: Path):
    (tmp_path / "words.txt").write_text("n1\tcrane\nn2\tcrane, heron\n")
    assert imagenet._class_names(tmp_path, ["n1", "n2", "n3"]) == ("crane (n1)", "crane (n2)", "n3")
