"""ImageNet and Tiny-ImageNet in the folder layouts that they come in.

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

from labo.errors import UserError
from labo.tasks import data_files as places
from labo.tasks.images import npz as arrays
from labo.tasks.images import sources as folders
from labo.tasks.images.dataset import ImageSet, Part
from labo.tasks.images.decoding import Files

TINY_FOLDER, TINY_FILE = "tiny-imagenet-200", "tiny_imagenet.npz"
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
IMAGENET_FOLDERS = ("imagenet", "ImageNet", "ILSVRC2012", "imagenet-1k")
# Files beside train/ and val/ that say what the classes' folders mean.
WORDS = ("words.txt", "LOC_synset_mapping.txt")


def locate_tiny(data: str | None, fetch: bool) -> Path:
    """Tiny-ImageNet's folder, or its compact .npz file.

    Raises:
        UserError: neither is there; it says what to put where.
    """
    looked = places.roots(data, fetch)
    for root in looked:
        for path in _candidates(root, data, (TINY_FOLDER, TINY_FILE)):
            if (path.suffix == ".npz" and path.is_file()) or _is_layout(path):
                return path
    if fetch:
        home = places.writable(looked)
        return _unpacked(places.fetch(TINY_URL, TINY_MD5, home), home / TINY_FOLDER)
    raise UserError(
        f"Task 'tiny-imagenet' finds no data {places.told(data)}: put the folder {TINY_FOLDER} (train/CLASS/images, "
        f"val/val_annotations.txt) or {TINY_FILE} into a folder that --data or {places.VARIABLE} names, or give the "
        "option fetch (248 MB)."
    )


def locate_imagenet(data: str | None) -> Path:
    """The folder that holds ImageNet's train/CLASS and val/CLASS.

    Raises:
        UserError: there is none; it says what to put where.
    """
    for root in places.roots(data):
        for path in _candidates(root, data, IMAGENET_FOLDERS):
            if _is_layout(path):
                return path
    raise UserError(
        f"Task 'imagenet' finds no data {places.told(data)}: put the pictures into train/CLASS/*.JPEG and "
        f"val/CLASS/*.JPEG of a folder that --data names, or of imagenet in the folder that {places.VARIABLE} names; "
        "they are given out at image-net.org to those who sign its terms."
    )


def read(root: Path) -> ImageSet:
    """Either set in its folder layout, or Tiny-ImageNet's compact file; val is the test, its labels being published.

    Classes are in the order of their folders' names, n01440764 and so on, and have the first word that words.txt gives.

    Raises:
        UserError: a class or an annotation is missing or none of the classes.
    """
    if root.suffix == ".npz":
        return arrays.read(root)
    there = [folder.name for folder in folders.subfolders(root / "train")]
    listed = root / "wnids.txt"
    wanted = sorted(_lines(listed)) if listed.is_file() else there
    train, told = folders.class_folders(root / "train", wanted, needed=True)
    annotations = root / "val" / "val_annotations.txt"
    if annotations.is_file():
        test, notes = _annotated(annotations, wanted), []
    else:
        if not folders.subfolders(root / "val"):
            raise UserError(f"Expected '{root / 'val'}' to hold a folder for each class, as train does: sort it so.")
        test, notes = folders.class_folders(root / "val", wanted, needed=False)
    return ImageSet(_named(root, wanted), {"train": train, "test": test}, (*told, *notes), tuple(wanted))


def files_of(root: Path) -> list[Path]:
    """The files that `read` reads."""
    if root.is_file():
        return [root]
    about = [root / name for name in (*WORDS, "wnids.txt", "val/val_annotations.txt")]
    found = [path for part in ("train", "val") for path in folders.pictures_in(root / part)]
    return [*found, *(path for path in about if path.is_file())]


def _candidates(root: Path, data: str | None, names: Sequence[str]) -> list[Path]:
    """Where a set may lie: train and val in a folder of many sets may be anyone's, unless it is named for this one."""
    named = data is not None or root.name in names
    return [*([root] if named else []), *(root / name for name in names)]


def _is_layout(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "val").is_dir()


def _annotated(path: Path, classes: Sequence[str]) -> Part:
    """The pictures in val/images, whose classes are in a table: FILE, CLASS and a box, between tabs."""
    places_of = {name: index for index, name in enumerate(classes)}
    found, labels = [], []
    for number, line in enumerate(_lines(path), 1):
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if label not in places_of:
            raise UserError(f"Expected FILE, CLASS in line {number} of '{path}', a class trained on, but got '{line}'.")
        found.append(path.parent / "images" / name)
        labels.append(places_of[label])
    return Part(Files(found), np.array(labels, np.int64))


def _named(root: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """The first word of each class; where two classes share it, with the name of the folder behind."""
    words = {}
    for path in (root / name for name in WORDS):
        if path.is_file():
            for line in _lines(path):
                name, _, meaning = line.replace("\t", " ", 1).partition(" ")
                words[name] = meaning.split(",")[0].strip()
    first = [words.get(name) or name for name in classes]
    counts = Counter(first)
    return tuple(word if counts[word] == 1 else f"{word} ({name})" for word, name in zip(first, classes, strict=True))


def _unpacked(archive: Path, folder: Path) -> Path:
    """The folder that an archive holds, in its place once it is whole."""
    beside = folder.with_name(f".{folder.name}.part")
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(beside)  # which keeps every name below it
        (beside / folder.name).rename(folder)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"Cannot unpack '{archive}': {error}.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    archive.unlink()
    return folder


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read '{path}': {error}.") from error
