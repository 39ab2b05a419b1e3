"""CIFAR-10 and CIFAR-100, from the published python archive or as the Hugging Face hub has them.

Source: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from labo.errors import UserError
from labo.tasks import data_files
from labo.tasks.images import hf_datasets, human_labels, pickles, sources
from labo.tasks.images.dataset import ImageSet, Part
from labo.tasks.images.task import ImageTask


@dataclass(frozen=True)
class Edition:
    """One of the two sets.

    `folder`, `train`, `test` and `meta` are names in its archive, `names` and `labels` keys of its pickles, `md5` the
    published checksum; `hub` is its name on the hub, and `column` its column of labels there.
    """

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
        """The number of classes."""
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


class Cifar10(ImageTask):
    """CIFAR-10: the python archive or its folder, or a data set as the hub has it.

    With `fetch` the archive is downloaded; `data="uoft-cs/cifar10"` is the data set of the Hugging Face hub.

    Args:
        labels: a kind of human labels (`human_labels.KINDS`) for the training and validation images; the test labels
            stay the true ones. The split is the same for all kinds.
        options: see `ImageTask`.
    """

    name = "cifar10"
    size = 32
    edition: ClassVar[Edition] = CIFAR10

    def __init__(self, *, labels: str | None = None, **options: Any) -> None:
        if labels is not None:
            human_labels.check_kind(self.edition.name, labels)
            if options.get("label_noise"):
                raise UserError("Expected either human `labels` or label noise, but got both.")
        super().__init__(**options, labels=labels)
        self.labels = labels

    @override
    def may_be_on_hub(self, data: str) -> bool:
        """Other names are folders to download the archive to."""
        return data == self.edition.hub

    @override
    def read(self) -> ImageSet:
        images = self._read_true()
        if self.labels is None:
            return images
        return human_labels.relabelled(images, self.edition.name, self.labels, self._label_files())

    def _label_files(self) -> list[Path]:
        return human_labels.files(self.edition.name, None if self.on_hub else self.data)

    def _read_true(self) -> ImageSet:
        if self.on_hub:
            return read_hub(self.edition, sources.require_local(str(self.data), self.fetch))
        return read(self.edition, locate(self.edition, self.data, self.fetch))

    @override
    def fingerprint(self) -> str:
        images = self._image_fingerprint()
        if self.labels is None:
            return images
        return "-".join([images, *map(data_files.digest, self._label_files())])

    def _image_fingerprint(self) -> str:
        if self.on_hub:
            return sources.fingerprint(str(self.data), self.fetch)
        files = locate(self.edition, self.data, self.fetch)
        if files[0].is_dir():
            return sources.fingerprint(str(files[0]))
        return data_files.fingerprint(files, files[0].parent)


class Cifar100(Cifar10):
    """CIFAR-100 with its hundred fine classes; see `Cifar10` for the options."""

    name = "cifar100"
    edition = CIFAR100


def locate(edition: Edition, data: str | None, fetch: bool) -> list[Path]:
    """The files to read: the archive, the files of its folder, or the folder of a data set as the hub has it.

    Raises:
        UserError: there are none; the message says what to put where.
    """
    roots = data_files.search_roots(data, fetch)
    for root in roots:
        files = _archive_files(edition, root) or _dataset_folder(edition, root, named=data is not None)
        if files:
            return files
    if fetch:
        return [data_files.download(edition.url, edition.md5, data_files.writable_folder(roots))]
    name = edition.name
    raise UserError(
        f"Task '{name}' finds no data {data_files.describe_location(data)}: put {edition.archive}, its folder "
        f"{edition.folder}, or a folder {name} of .parquet files into a folder that --data or {data_files.VARIABLE} "
        f"names, or give the option fetch ({edition.megabytes} MB)."
    )


def read(edition: Edition, files: Sequence[Path]) -> ImageSet:
    """The set in the files that `locate` returned.

    Raises:
        UserError: a file is damaged, has unexpected contents, or the archive's checksum is wrong.
    """
    if files[0].is_dir():
        return read_hub(edition, str(files[0]))
    if len(files) > 1:
        by_name = {path.name: path for path in files}
        return _read_pickles(edition, lambda name: _read_bytes(by_name[name]), str(files[0].parent))
    data_files.check_md5(files[0], edition.md5)
    try:
        with tarfile.open(files[0], "r:gz") as archive:  # read in place, without extracting
            return _read_pickles(edition, lambda name: _read_member(archive, f"{edition.folder}/{name}"), str(files[0]))
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
        raise UserError(f"Cannot read the archive '{files[0]}': {error}.") from error


def read_hub(edition: Edition, data: str) -> ImageSet:
    """The set as the Hugging Face hub has it: a folder on disk, or the name of a data set there.

    Raises:
        UserError: `datasets` cannot read it, or it is another set.
    """
    images = hf_datasets.read(data, edition.column)
    if len(images.classes) != edition.classes:
        raise UserError(
            f"Expected '{data}' to be {edition.name} with {edition.classes} classes, but got {len(images.classes)}."
        )
    return images


def _dataset_folder(edition: Edition, root: Path, *, named: bool) -> list[Path]:
    """The folder of a data set that `datasets` reads: root, if the user named it, or root/NAME."""
    folders = [*([root] if named else []), root / edition.name]
    return [folder for folder in folders if folder.is_dir() and hf_datasets.is_dataset(folder)][:1]


def _archive_files(edition: Edition, root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.name.endswith(".tar.gz") else []
    names = (*edition.train, edition.test, edition.meta)
    for folder in (root, root / edition.folder):
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    archive = root / edition.archive
    return [archive] if archive.is_file() else []


def _read_pickles(edition: Edition, content: Callable[[str], bytes], source: str) -> ImageSet:
    def load(name: str) -> dict[Any, Any]:
        value = pickles.loads(content(name), f"{source}: {name}")
        if not isinstance(value, dict):
            raise UserError(f"Expected {name} in '{source}' to be a dict, but got {type(value).__name__}.")
        return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}

    def load_part(name: str) -> Part:
        batch = load(name)
        pixels: Any = batch.get(b"data")
        labels: Any = batch.get(edition.labels)
        is_images = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (3 * 32 * 32,)
        has_labels = isinstance(labels, list) and is_images and len(labels) == len(pixels)
        if not has_labels or not all(isinstance(label, int) for label in labels):
            raise UserError(f"Expected {name} in '{source}' to hold data uint8 (N, 3072) and N labels.")
        # Images are stored channel by channel: red, green, blue.
        images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        return Part(images, np.array(labels, np.int64))

    names = load(edition.meta).get(edition.names)
    if not isinstance(names, list):
        raise UserError(f"Expected {edition.meta} in '{source}' to list the names of the classes.")
    classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    train = [load_part(name) for name in edition.train]
    images: Any = [part.images for part in train]
    joined = Part(np.concatenate(images), np.concatenate([part.labels for part in train]))
    return ImageSet(classes, {"train": joined, "test": load_part(edition.test)})


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}.") from error


def _read_member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise UserError(f"{name} in the archive '{archive.name}' is no file.")
    return file.read()
