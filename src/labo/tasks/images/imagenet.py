"""ImageNet and Tiny-ImageNet in their folder layouts.

Sources: Russakovsky et al., *ImageNet Large Scale Visual Recognition Challenge*, IJCV 2015; Tiny-ImageNet-200 of
Stanford's CS231n.
"""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from typing_extensions import override

from labo.errors import UserError
from labo.tasks import data_files
from labo.tasks.images import sources
from labo.tasks.images.dataset import ImageSet, Part
from labo.tasks.images.decoding import ImageFiles
from labo.tasks.images.task import ImageTask

TINY_FOLDER = "tiny-imagenet-200"
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
IMAGENET_FOLDERS = ("imagenet", "ImageNet", "ILSVRC2012", "imagenet-1k")
# Files beside train/ and val/ with the names of the classes.
CLASS_NAME_FILES = ("words.txt", "LOC_synset_mapping.txt")


class TinyImageNet(ImageTask):
    """Tiny-ImageNet-200 from its folder; its validation images test."""

    name = "tiny-imagenet"
    size = 64

    def root(self) -> Path:
        """Its folder."""
        return locate_tiny(self.data, self.fetch)

    @override
    def read(self) -> ImageSet:
        return read(self.root())

    @override
    def fingerprint(self) -> str:
        root = self.root()
        return data_files.fingerprint(files_of(root), root)


class ImageNet(TinyImageNet):
    """ImageNet-1k from train/CLASS and val/CLASS; its validation images test.

    Images are decoded batch by batch: for the test, the centre 224 of 256 pixels, as published; for training, the
    centre square, which the augmentation crops. (The published recipe crops the whole image.)
    """

    name = "imagenet"
    size = 224
    crop = 224 / 256
    epochs = 90

    def root(self) -> Path:
        """Its folder."""
        return locate_imagenet(self.data)


def locate_tiny(data: str | None, fetch: bool) -> Path:
    """Tiny-ImageNet's folder.

    Raises:
        UserError: there is none; the message says what to put where.
    """
    roots = data_files.search_roots(data, fetch)
    for root in roots:
        for path in _candidates(root, data, (TINY_FOLDER,)):
            if _has_layout(path):
                return path
    if fetch:
        folder = data_files.writable_folder(roots)
        return _unpack(data_files.download(TINY_URL, TINY_MD5, folder), folder / TINY_FOLDER)
    raise UserError(
        f"Task 'tiny-imagenet' finds no data {data_files.describe_location(data)}: put the folder {TINY_FOLDER} "
        f"(train/CLASS/images, val/val_annotations.txt) into a folder that --data or {data_files.VARIABLE} names, or "
        "give the option fetch (248 MB)."
    )


def locate_imagenet(data: str | None) -> Path:
    """The folder with ImageNet's train/CLASS and val/CLASS.

    Raises:
        UserError: there is none; the message says what to put where.
    """
    for root in data_files.search_roots(data):
        for path in _candidates(root, data, IMAGENET_FOLDERS):
            if _has_layout(path):
                return path
    raise UserError(
        f"Task 'imagenet' finds no data {data_files.describe_location(data)}: put the images into train/CLASS/*.JPEG "
        f"and val/CLASS/*.JPEG of a folder that --data names, or of imagenet in the folder that {data_files.VARIABLE} "
        "names; image-net.org provides them to those who accept its terms."
    )


def read(root: Path) -> ImageSet:
    """Either set in its folder layout; val is the test part, because its labels are published.

    Classes are sorted by folder name (n01440764 and so on) and named by the first word in words.txt.

    Raises:
        UserError: a class folder is missing or unknown, or an annotation is of no class.
    """
    existing = [folder.name for folder in sources.subfolders(root / "train")]
    listed = root / "wnids.txt"
    class_ids = sorted(_lines(listed)) if listed.is_file() else existing
    train, train_notes = sources.read_class_folders(root / "train", class_ids, required=True)
    annotations = root / "val" / "val_annotations.txt"
    if annotations.is_file():
        test, test_notes = _read_annotated(annotations, class_ids), []
    else:
        if not sources.subfolders(root / "val"):
            raise UserError(f"Expected '{root / 'val'}' to hold a folder for each class, as train does: sort it so.")
        test, test_notes = sources.read_class_folders(root / "val", class_ids, required=False)
    notes = (*train_notes, *test_notes)
    return ImageSet(_class_names(root, class_ids), {"train": train, "test": test}, notes, tuple(class_ids))


def files_of(root: Path) -> list[Path]:
    """The files that `read` reads."""
    others = [root / name for name in (*CLASS_NAME_FILES, "wnids.txt", "val/val_annotations.txt")]
    images = [path for part in ("train", "val") for path in sources.images_in(root / part)]
    return sources.regular_files([*images, *others])


def _candidates(root: Path, data: str | None, names: Sequence[str]) -> list[Path]:
    """Possible folders of a set; `root` itself only if the user named it or its name is the set's."""
    named = data is not None or root.name in names
    return [*([root] if named else []), *(root / name for name in names)]


def _has_layout(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "val").is_dir()


def _read_annotated(path: Path, class_ids: Sequence[str]) -> Part:
    """The images in val/images; the lines of `path` are FILE, CLASS and a bounding box, separated by tabs."""
    class_of = {name: index for index, name in enumerate(class_ids)}
    files, labels = [], []
    for number, line in enumerate(_lines(path), 1):
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if label not in class_of:
            raise UserError(f"Expected FILE, CLASS in line {number} of '{path}', a class trained on, but got '{line}'.")
        files.append(path.parent / "images" / name)
        labels.append(class_of[label])
    return Part(ImageFiles(files), np.array(labels, np.int64))


def _class_names(root: Path, class_ids: Sequence[str]) -> tuple[str, ...]:
    """The first word for each class; where classes share it, followed by the class id."""
    words = {}
    for path in (root / name for name in CLASS_NAME_FILES):
        if path.is_file():
            for line in _lines(path):
                name, _, meaning = line.replace("\t", " ", 1).partition(" ")
                words[name] = meaning.split(",")[0].strip()
    first = [words.get(name) or name for name in class_ids]
    counts = Counter(first)
    return tuple(word if counts[word] == 1 else f"{word} ({name})" for word, name in zip(first, class_ids, strict=True))


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack `folder` from an archive, beside it first and renamed when complete."""
    partial = folder.with_name(f".{folder.name}.part")
    try:
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(partial)  # extractall keeps every member below it
        (partial / folder.name).rename(folder)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"Cannot unpack '{archive}': {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    archive.unlink()
    return folder


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read '{path}': {error}.") from error
