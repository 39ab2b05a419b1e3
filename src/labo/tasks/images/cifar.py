"""CIFAR-10 and CIFAR-100, from compact .npz files or from the python archive as published.

Source: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labo.errors import UserError
from labo.tasks import data_files as places
from labo.tasks.images import hf_datasets as hub
from labo.tasks.images import npz as arrays
from labo.tasks.images import pickles
from labo.tasks.images.dataset import ImageSet, Part

PARTS = ("a", "b")


@dataclass(frozen=True)
class Edition:
    """One of the two sets: the names in its archive, the md5 that its home page publishes, its name on the hub."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    names: bytes
    labels: bytes
    md5: str
    megabytes: int
    hub: str
    column: str

    @property
    def archive(self) -> str:
        """The archive's file name."""
        return {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[self.name]

    @property
    def url(self) -> str:
        """Where the archive is published."""
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"

    @property
    def classes(self) -> int:
        """How many classes it has."""
        return int(self.name.removeprefix("cifar"))


CIFAR10 = Edition(
    "cifar10",
    "cifar-10-batches-py",
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test_batch",
    "batches.meta",
    b"label_names",
    b"labels",
    "c58f30108f718f92721af3b95e74349a",
    171,
    "uoft-cs/cifar10",
    "label",
)
CIFAR100 = Edition(
    "cifar100",
    "cifar-100-python",
    ("train",),
    "test",
    "meta",
    b"fine_label_names",
    b"fine_labels",
    "eb9058c3a382ffc7106e4002c42a8d85",
    169,
    "uoft-cs/cifar100",
    "fine_label",
)


def locate(edition: Edition, data: str | None, parts: Sequence[str], fetch: bool) -> list[Path]:
    """The files to read: .npz files (the test's last), the archive, the files of its folder, or those of the hub.

    `parts` asks for these .npz training files; without it those that are there are taken.

    Raises:
        UserError: none of them is there; it says what to put where.
    """
    looked = places.roots(data, fetch)
    for root in looked:
        found = _npz(edition, root, parts)
        if not parts:
            found = found or _original(edition, root) or _saved(edition, root, named=data is not None)
        if found:
            return found
    if fetch and not parts:
        return [places.fetch(edition.url, edition.md5, places.writable(looked))]
    name = edition.name
    if parts:
        wanted = ", ".join(f"{name}-train-{part}.npz" for part in parts)
        raise UserError(f"Task '{name}' does not find {wanted} and {name}-test.npz {places.told(data)}.")
    raise UserError(
        f"Task '{name}' finds no data {places.told(data)}: put {edition.archive}, its folder {edition.folder}, "
        f"{name}-train-a.npz and {name}-test.npz, or a folder {name} of .parquet files into a folder that --data or "
        f"{places.VARIABLE} names, or give the option fetch ({edition.megabytes} MB)."
    )


def read(edition: Edition, files: Sequence[Path]) -> ImageSet:
    """The set in the files that `locate` found.

    Raises:
        UserError: a file is damaged, holds something else, or the archive's checksum is wrong.
    """
    if files[0].suffix == ".npz":
        return _read_npz(files)
    if files[0].is_dir():
        return read_hub(edition, str(files[0]))
    if len(files) > 1:
        by_name = {path.name: path for path in files}
        return _read_pickles(edition, lambda name: _content(by_name[name]), str(files[0].parent))
    places.check_md5(files[0], edition.md5)
    try:
        with tarfile.open(files[0], "r:gz") as archive:  # read where it lies: nothing is extracted
            return _read_pickles(edition, lambda name: _member(archive, f"{edition.folder}/{name}"), str(files[0]))
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
        raise UserError(f"Cannot read the archive '{files[0]}': {error}.") from error


def read_hub(edition: Edition, data: str) -> ImageSet:
    """The set as the Hugging Face hub has it: a folder on this disk, else the name of a data set there.

    Raises:
        UserError: `datasets` cannot read it, or it holds something else.
    """
    found = hub.read(data, edition.column)
    if len(found.classes) != edition.classes:
        raise UserError(
            f"Expected '{data}' to be {edition.name} with {edition.classes} classes, but got {len(found.classes)}."
        )
    return found


def _saved(edition: Edition, root: Path, *, named: bool) -> list[Path]:
    """The folder of a data set that `datasets` reads: the one named, or that of the set's name in it."""
    folders = [*([root] if named else []), root / edition.name]
    return [folder for folder in folders if folder.is_dir() and hub.is_saved(folder)][:1]


def _npz(edition: Edition, root: Path, parts: Sequence[str]) -> list[Path]:
    train = [root / f"{edition.name}-train-{part}.npz" for part in parts or PARTS]
    test = root / f"{edition.name}-test.npz"
    there = [path for path in train if path.is_file()]
    if not there or (parts and len(there) < len(train)) or not test.is_file():
        return []
    return [*there, test]


def _original(edition: Edition, root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.name.endswith(".tar.gz") else []
    names = (*edition.train, edition.test, edition.meta)
    for folder in (root, root / edition.folder):
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    archive = root / edition.archive
    return [archive] if archive.is_file() else []


def _read_npz(files: Sequence[Path]) -> ImageSet:
    loaded = [arrays.load(path) for path in files]
    for path, found in zip(files, loaded, strict=True):
        if "d" not in found or "y" not in found or (path == files[-1] and "classes" not in found):
            raise UserError(f"Expected '{path}' to hold the arrays d and y, in the test file classes too.")
    read = [arrays.compact(found, path)["train"] for path, found in zip(files, loaded, strict=True)]
    classes = tuple(str(name) for name in loaded[-1]["classes"])
    return ImageSet(classes, {"train": _joined(read[:-1]), "test": read[-1]})


def _read_pickles(edition: Edition, content: Callable[[str], bytes], source: str) -> ImageSet:
    def loaded(name: str) -> dict[Any, Any]:
        found = pickles.loads(content(name), f"{source}: {name}")
        if not isinstance(found, dict):
            raise UserError(f"Expected {name} in '{source}' to be a dict, but got {type(found).__name__}.")
        return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}

    def part(name: str) -> Part:
        batch = loaded(name)
        pixels: Any = batch.get(b"data")
        labels: Any = batch.get(edition.labels)
        shaped = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (3 * 32 * 32,)
        counted = isinstance(labels, list) and shaped and len(labels) == len(pixels)
        if not counted or not all(isinstance(label, int) for label in labels):
            raise UserError(f"Expected {name} in '{source}' to hold data uint8 (N, 3072) and N labels.")
        # A picture is its red plane, then the green, then the blue one.
        images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        return Part(images, np.array(labels, np.int64))

    names = loaded(edition.meta).get(edition.names)
    if not isinstance(names, list):
        raise UserError(f"Expected {edition.meta} in '{source}' to list the names of the classes.")
    classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    train = _joined([part(name) for name in edition.train])
    return ImageSet(classes, {"train": train, "test": part(edition.test)})


def _joined(parts: Sequence[Part]) -> Part:
    images: Any = [part.images for part in parts]
    return Part(np.concatenate(images), np.concatenate([part.labels for part in parts]))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}.") from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    found = archive.extractfile(name)
    if found is None:
        raise UserError(f"{name} in the archive '{archive.name}' is no file.")
    return found.read()
