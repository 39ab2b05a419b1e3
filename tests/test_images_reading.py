"""Images of the user's own: how each kind of file and folder is read."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import image_files as made
from labo import tasks
from labo.errors import UserError
from labo.tasks import data_files
from labo.tasks.images import dataset, decoding, hf_datasets, npz, sources

TEN = [f"class {number}" for number in range(10)]


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(data_files.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_kind_of_picture_becomes_rgb(tmp_path: Path):
    grey = made.noise(0, 8, 8)
    levels = (grey.astype(np.uint16) * 257).astype(np.uint16)  # the same greys, 0 to 65535
    expected = np.repeat(grey[..., None], 3, axis=2)
    palette = Image.fromarray(made.noise(1, 8, 8, 3)).quantize(16)
    clear = np.dstack([made.noise(2, 8, 8, 3), np.zeros((8, 8), np.uint8)])
    two = np.dstack([grey, np.full_like(grey, 255)])
    cases = {
        "grey.png": (Image.fromarray(grey), expected),
        "sixteen.png": (Image.fromarray(levels), expected),
        "sixteen.tif": (Image.fromarray(levels), expected),
        "thirty-two.tif": (Image.fromarray(levels.astype(np.int32)), expected),
        "grey-alpha.png": (Image.fromarray(two), expected),
        "palette.png": (palette, np.asarray(palette.convert("RGB"))),
        "clear.png": (Image.fromarray(clear), np.full((8, 8, 3), 255)),
        "bits.png": (Image.fromarray(grey > 99), np.repeat((grey > 99)[..., None] * 255, 3, axis=2)),
    }
    for name, (image, wanted) in cases.items():
        image.save(tmp_path / name)
        found = decoding.decode(tmp_path / name, name, 8)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, wanted, err_msg=name)


def test_a_camera_that_was_turned(tmp_path: Path):
    image = Image.fromarray(made.noise(0, 8, 8, 3))
    about = Image.Exif()
    about[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.png", exif=about)
    found = decoding.decode(tmp_path / "turned.png", "turned", 8)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(image), -1))


def test_the_middle_is_taken_and_scaled():
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = 200
    found = decoding.resize(wide, 8)
    assert (found[:, 2:-2] == 200).all()
    assert found.min() > 180  # bicubic weights reach across the edge
    frame = np.zeros((256, 256, 3), np.uint8)
    frame[16:240, 16:240] = 200
    np.testing.assert_array_equal(decoding.resize(frame, 224, 224 / 256), frame[16:240, 16:240])
    # A large JPEG is decoded at a fraction of its size: much the same image.
    smooth = np.tile(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (400, 1, 3))
    found = decoding.decode(made.jpeg(smooth), "smooth", 32)
    assert np.abs(found.astype(int) - decoding.resize(smooth, 32).astype(int)).max() <= 4


@pytest.mark.parametrize("spoil", [lambda c: c[: len(c) // 2], lambda c: b"x" * 100, lambda c: b"", lambda c: c[:20]])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_damaged_picture_is_named(tmp_path: Path, spoil: Any, ending: str):
    path = tmp_path / f"torn.{ending}"
    made.save(made.noise(0, 64, 64, 3), path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=rf"Cannot read the image '.*torn\.{ending}': ") as caught:
        decoding.decode(path, str(path), 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_a_tiff_of_32_bits_that_holds_bytes(kind: Any):
    grey = made.noise(0, 8, 8)
    file = io.BytesIO()
    Image.fromarray(grey.astype(kind)).save(file, "TIFF")
    found = decoding.decode(file.getvalue(), "deep", 8)
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))
    # A dark image of 16 bits stays dark: its format names the brightest value.
    file = io.BytesIO()
    Image.fromarray(grey.astype(np.uint16)).save(file, "TIFF")
    assert decoding.decode(file.getvalue(), "dark", 8).max() <= 1


def test_flat_folders_beside_class_folders_are_told(tmp_path: Path):
    made.class_folders(tmp_path / "train", {"cat": 20, "dog": 30})
    for part in ("val", "test"):
        made.save(made.noise(0, 8, 8, 3), tmp_path / part / "a.png")
    images = sources.read_folders(tmp_path)
    assert images.classes == ("cat", "dog")
    assert images.notes == tuple(
        f"The folder '{tmp_path / part}' is left out: its images are not in a folder for each class, so they have no "
        "labels."
        for part in ("test", "val")
    )
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).rename(tmp_path / name)
    (tmp_path / "train").rmdir()
    (tmp_path / "val" / "a.png").unlink()
    (tmp_path / "val").rmdir()
    images = sources.read_folders(tmp_path)
    assert images.classes == ("cat", "dog", "test")
    assert images.notes == (f"The folder '{tmp_path / 'test'}' is a class; it is no part of the data.",)
    made.class_folders(tmp_path / "test", {"cat": 2})
    with pytest.raises(UserError, match=r"is the test part of the data, but the training images are beside it: move"):
        sources.read_folders(tmp_path)


def test_pictures_without_a_scale_are_refused():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).random((8, 8), dtype=np.float32)).save(file, "TIFF")
    with pytest.raises(UserError, match="not of 8 or 16 bits"):
        decoding.decode(file.getvalue(), "floats", 8)


def test_class_folders_without_parts(tmp_path: Path):
    made.class_folders(tmp_path, {"cat": 20, "dog": 30})
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    task = tasks.create("image", data=str(tmp_path))
    splits = task.splits(0)
    assert splits.classes == ("cat", "dog")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [36, 4, 10]
    assert splits.test.target.bincount().tolist() == [4, 6]
    assert splits.train.features.shape == (36, 3, 8, 8)  # as they are: equal squares
    assert any("draws a fifth" in note for note in splits.notes)
    assert (
        len(set.union(*(made.contents(part.features) for part in (splits.train, splits.validation, splits.test)))) == 50
    )
    assert task.options["data"] == str(tmp_path)
    assert torch.equal(task.splits(0).test.features, splits.test.features)
    assert not torch.equal(task.splits(1).test.features, splits.test.features)


@pytest.mark.parametrize(
    ("names", "sizes", "told"),
    [
        (("train", "validation", "test"), [20, 6, 6], ""),
        (("Train", "val", "test"), [20, 6, 6], ""),
        (("train", "test"), [18, 2, 6], ""),
        (("train", "val"), [18, 2, 6], "their validation part tests"),
    ],
)
def test_class_folders_below_parts(tmp_path: Path, names: tuple[str, ...], sizes: list[int], told: str):
    for place, name in enumerate(names):
        made.class_folders(tmp_path / name, {"cat": 10, "dog": 10} if not place else {"cat": 3, "dog": 3}, (9, 12))
    splits = tasks.create("image", data=str(tmp_path)).splits(0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == sizes
    assert splits.train.features.shape[2:] == (64, 64)  # no squares: the default size
    assert told in " ".join(splits.notes)
    if sizes[1] == 6:
        with pytest.raises(UserError, match="leave `validation_size` out"):
            tasks.create("image", data=str(tmp_path), validation_size=4).splits(0)


def test_unreadable_pictures_are_named_or_counted(tmp_path: Path):
    made.class_folders(tmp_path, {"cat": 20, "dog": 20})
    (tmp_path / "cat" / "3.png").write_bytes((tmp_path / "cat" / "3.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"Cannot read the image '.*cat.3\.png'.*--skip-unreadable"):
        tasks.create("image", data=str(tmp_path)).splits(0)
    splits = tasks.create("image", data=str(tmp_path), skip_unreadable=True).splits(0)
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 39
    assert any(note.startswith("1 unreadable image is left out of the train part") for note in splits.notes)


def test_an_empty_class_folder_is_named(tmp_path: Path):
    made.class_folders(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "emu").mkdir()
    with pytest.raises(UserError, match=r"The class folder '.*emu' holds no image"):
        tasks.create("image", data=str(tmp_path)).splits(0)


def test_parts_without_class_folders_are_refused(tmp_path: Path):
    for part in ("train", "test"):
        made.save(made.noise(0, 8, 8, 3), tmp_path / part / "0.png")
    with pytest.raises(UserError, match=r"to hold a folder of images for each class \(train/CLASS"):
        tasks.create("image", data=str(tmp_path)).splits(0)


def test_what_is_not_read_and_what_is_shrunk_is_told(tmp_path: Path):
    made.class_folders(tmp_path, {"cat": 9, "dog": 9}, (70, 90))
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "0.jfif")  # read
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "1.HEIC")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    splits = tasks.create("image", data=str(tmp_path)).splits(0)
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 17
    assert [note for note in splits.notes if "1.HEIC" in note] == [note for note in splits.notes if "left out" in note]
    assert any("resized to 64 x 64; --option image_size=224 is another size" in note for note in splits.notes)
    assert splits.train.features.shape[2:] == (64, 64)
    assert not any(
        "64 x 64" in note for note in tasks.create("image", data=str(tmp_path), image_size=64).splits(0).notes
    )


def test_a_class_that_only_tests_is_refused(tmp_path: Path):
    made.class_folders(tmp_path / "train", {"cat": 5, "dog": 5})
    made.class_folders(tmp_path / "test", {"cat": 5, "emu": 5})
    with pytest.raises(UserError, match=r"The class folder '.*test.emu' is none of the 2 classes trained on"):
        tasks.create("image", data=str(tmp_path)).splits(0)
    images = made.noise(0, 12, 8, 8, 3)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(12) % 2, x_test=images, y_test=np.arange(12) % 3)
    with pytest.raises(UserError, match="The class '2' is in the test part, but has no training image"):
        tasks.create("image", data=str(tmp_path / "a.npz")).splits(0)


@pytest.mark.parametrize(
    ("counts", "options", "told"),
    [
        ({}, {}, "but it holds no folder"),
        ({"cat": 5}, {}, "at least two classes to train on, but got only 'cat'"),
        ({"cat": 5, "dog": 1}, {}, "The class 'dog' has a single image"),
        ({"cat": 9, "dog": 9}, {"validation_size": 30}, "a validation size from 2"),
        ({"cat": 9, "dog": 9}, {"validation_size": 1}, "a validation size from 2"),
        ({"cat": 9, "dog": 9}, {"train_size": 100}, r"a train size from 2 \(the number of classes\) to 12"),
        ({"cat": 9, "dog": 9}, {"image_size": 0}, "`image_size` to be a whole number above 0, but got 0"),
        ({"cat": 9, "dog": 9}, {"label_noise": "2"}, "Expected label noise as"),
    ],
)
def test_folders_that_will_not_do_get_one_sentence(
    tmp_path: Path, counts: dict[str, int], options: dict[str, Any], told: str
):
    made.class_folders(tmp_path, counts)
    with pytest.raises(UserError, match=told) as caught:
        tasks.create("image", data=str(tmp_path), **options).splits(0)
    assert "\n" not in str(caught.value)


def test_two_folders_for_one_part_are_refused(tmp_path: Path):
    for name in ("train", "val", "valid"):
        made.class_folders(tmp_path / name, {"cat": 2, "dog": 2})
    with pytest.raises(UserError, match="are both the validation part"):
        sources.read_folders(tmp_path)


@pytest.mark.parametrize("kind", ["grey", "one channel", "last", "first", "texts", "columns"])
def test_arrays_of_ones_own(tmp_path: Path, kind: str):
    images, labels = made.noise(0, 30, 8, 8, 3), np.arange(30) % 3
    stored: dict[str, Any] = {
        "grey": {"images": images[..., 0], "labels": labels},
        "one channel": {"images": images[..., :1], "labels": labels, "classes": np.array(["a", "b", "c"])},
        "last": {"images": images, "labels": labels[:, None]},
        "first": {"images": images.transpose(0, 3, 1, 2), "labels": labels},
        "texts": {"images": images, "labels": np.array(["c", "a", "b"])[labels]},
        "columns": {f"{part}_{what}": value for part in ("train", "val", "test")
                    for what, value in (("images", images), ("labels", labels))},
    }[kind]  # fmt: skip
    np.savez(tmp_path / "a.npz", **stored)
    read = npz.read(tmp_path / "a.npz")
    expected = np.repeat(images[..., :1], 3, axis=3) if kind in ("grey", "one channel") else images
    np.testing.assert_array_equal(read.parts["train"].images, expected)
    assert read.parts["train"].labels.tolist() == ([2, 0, 1] * 10 if kind == "texts" else labels.tolist())
    assert read.classes == (("a", "b", "c") if kind in ("texts", "one channel") else ("0", "1", "2"))
    assert set(read.parts) == ({"train", "validation", "test"} if kind == "columns" else {"train"})
    assert tasks.create("image", data=str(tmp_path / "a.npz")).splits(0).train.features.shape[1:] == (3, 8, 8)


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ({"images": np.zeros((4, 8, 8, 3)), "labels": np.arange(4)}, r"to be uint8, 0 to 255, but got float64"),
        ({"images": made.noise(0, 4, 8), "labels": np.arange(4)}, r"to be \(N, H, W\)"),
        ({"images": made.noise(0, 4, 8, 8, 5), "labels": np.arange(4)}, r"to be \(N, H, W\)"),
        ({"images": made.noise(0, 4, 8, 8), "labels": np.arange(3)}, "4 train images, but 3 labels"),
        ({"images": made.noise(0, 4, 8, 8), "labels": np.arange(4.0)}, "integers or strings"),
        ({"images": made.noise(0, 4, 8, 8), "labels": np.arange(4), "classes": np.array(["a"])}, "two classes"),
        ({"images": made.noise(0, 4, 8, 8), "labels": np.arange(4), "classes": np.array(["a", "b"])}, "from 0 to 1"),
        ({"images": made.noise(0, 4, 8, 8)}, "to hold the arrays images and labels"),
        ({"images": made.noise(0, 4, 8, 8), "labels": np.array([{}] * 4)}, "no .npz file of plain arrays"),
    ],
)
def test_arrays_that_will_not_do_get_one_sentence(tmp_path: Path, stored: dict[str, Any], told: str):
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises(UserError, match=told) as caught:
        tasks.create("image", data=str(tmp_path / "a.npz")).splits(0)
    assert "\n" not in str(caught.value)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    images = [made.noise(seed, 8, 8, 3) for seed in range(20)]
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "size": datasets.Value("int64")}
    )
    columns = {"img": [Image.fromarray(image) for image in images], "label": [0, 1] * 10, "size": [8] * 20}
    return SimpleNamespace(images=images, set=datasets.Dataset.from_dict(columns, features=features), library=datasets)


@pytest.mark.parametrize("kind", ["saved", "saved parts", "file", "files", "a folder below"])
def test_data_sets_on_this_disk(tmp_path: Path, rows: Any, kind: str):
    path = tmp_path / ("set.parquet" if kind == "file" else "set")
    if kind == "saved":
        rows.set.save_to_disk(path)
    elif kind == "saved parts":
        rows.library.DatasetDict({"train": rows.set, "test": rows.set}).save_to_disk(path)
    elif kind == "file":
        rows.set.to_parquet(path)
    else:
        below = path / ("data" if kind == "files" else "plain_text")
        below.mkdir(parents=True)
        for name in ("train-00000-of-00001", "test-00000-of-00001"):
            rows.set.to_parquet(below / f"{name}.parquet")
    read = hf_datasets.read(str(path))
    assert read.classes == ("cat", "dog")
    assert set(read.parts) == ({"train"} if kind in ("saved", "file") else {"train", "test"})
    assert read.parts["train"].labels.tolist() == [0, 1] * 10
    prepared = dataset.decode_set(read, 8, 1.0, skip_unreadable=False)
    np.testing.assert_array_equal(prepared.parts["train"].images, np.stack(rows.images))
    task = tasks.create("image", data=str(path), target="label")
    assert len(task.splits(0).test) == (20 if len(read.parts) == 2 else 4)
    assert task.fingerprint() == task.fingerprint()
    with pytest.raises(UserError, match="Unknown column 'labl'; the nearest is 'label'"):
        tasks.create("image", data=str(path), target="labl").splits(0)


def test_several_data_sets_in_a_folder_are_not_mixed(tmp_path: Path, rows: Any):
    for name in ("fine", "coarse"):
        (tmp_path / name).mkdir()
        rows.set.to_parquet(tmp_path / name / "train.parquet")
    with pytest.raises(UserError, match=r"holds data sets in its folders coarse, fine: name one"):
        tasks.create("image", data=str(tmp_path)).splits(0)


def test_cifar_as_the_hub_has_it(tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch):
    names = [f"class {number}" for number in range(10)]
    features = rows.library.Features({"img": rows.library.Image(), "label": rows.library.ClassLabel(names=names)})
    pixels = [made.noise(seed, 32, 32, 3) for seed in range(40)]
    columns = {"img": [Image.fromarray(image) for image in pixels], "label": [index % 10 for index in range(40)]}
    found = rows.library.Dataset.from_dict(columns, features=features)
    home = tmp_path / "cifar10" / "plain_text"
    home.mkdir(parents=True)
    for part in ("train", "test"):
        found.to_parquet(home / f"{part}-00000-of-00001.parquet")
    monkeypatch.setenv("LABO_DATA", str(tmp_path))
    for options in ({}, {"data": str(tmp_path / "cifar10")}):
        task = tasks.create("cifar10", validation_size=10, **options)
        splits = task.splits(0)
        assert splits.classes == tuple(names)
        np.testing.assert_array_equal(splits.test.features.permute(0, 2, 3, 1), np.stack(pixels))
        assert splits.test.target.tolist() == columns["label"]
        assert task.fingerprint() == task.fingerprint()
    rows.set.to_parquet(home / "train-00000-of-00001.parquet")
    rows.set.to_parquet(home / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match="to be cifar10 with 10 classes, but got 2"):
        tasks.create("cifar10").splits(0)
    with pytest.raises(UserError, match="a Hugging Face data set of this name is read with the option fetch"):
        tasks.create("cifar10", data="uoft-cs/cifar10").splits(0)
    monkeypatch.setattr(rows.library, "load_dataset", lambda name: {"train": found, "test": found})
    task = tasks.create("cifar10", data="uoft-cs/cifar10", fetch=True, validation_size=10)
    assert torch.equal(task.splits(0).test.target, splits.test.target)


def test_the_hub_is_asked_only_when_the_user_asks(tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load(name: str, **_: Any) -> Any:
        asked.append(name)
        unlabelled = rows.set.remove_columns("label").add_column("label", [-1] * 20)
        return {"train": rows.set, "test": unlabelled.cast_column("label", rows.set.features["label"])}

    monkeypatch.setattr(rows.library, "load_dataset", load)
    with pytest.raises(UserError, match="No such file or folder: 'owner/birds'; a Hugging Face data set"):
        tasks.create("image", data="owner/birds").fingerprint()
    assert not asked
    task = tasks.create("image", data="owner/birds", fetch=True)
    splits = task.splits(0)
    assert set(asked) == {"owner/birds"}
    assert any("has no labels and is left out" in note for note in splits.notes)
    assert tasks.create("image", **task.options).fingerprint() == task.fingerprint()  # in another process
