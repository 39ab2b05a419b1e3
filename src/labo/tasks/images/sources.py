"""A folder for each class, with or without a folder for each part above them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from labo.errors import UserError
from labo.tasks.images.dataset import PART_NAMES, ImageSet, Part
from labo.tasks.images.decoding import Files
from labo.tasks.images.pictures import ENDINGS, UNREAD_ENDINGS


def pictures_in(folder: Path) -> list[Path]:
    """All pictures in a folder and below it, in the order of their names; what is hidden or no picture is left out."""
    return sorted(path for path in _walk(folder) if _is_picture(path))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names, without hidden ones."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"Cannot read the folder '{folder}': {error.strerror or error}.") from error


def parts_in(root: Path) -> dict[str, Path]:
    """Part -> its folder, where there is one for training that holds the classes' folders; else nothing.

    Raises:
        UserError: two folders mean the same part, such as val and validation.
    """
    found: dict[str, Path] = {}
    for folder in subfolders(root):
        part = PART_NAMES.get(folder.name.lower())
        if part is None or not subfolders(folder):
            continue
        if part in found:
            raise UserError(f"'{found[part]}' and '{folder}' are both the {part} part: leave one.")
        found[part] = folder
    return found if "train" in found else {}


def read(root: Path) -> ImageSet:
    """The pictures in root/CLASS/… or root/PART/CLASS/….

    The parts are train, validation (val, valid, dev) and test; the classes are those that train has.

    Raises:
        UserError: no class folder, an empty one to train on, or one that only validates or tests.
    """
    found = parts_in(root) or {"train": root}
    classes = [folder.name for folder in subfolders(found["train"])]
    if classes and all(name.lower() in PART_NAMES for name in classes):
        raise UserError(
            f"Expected the parts of the data, '{root / classes[0]}' among them, to hold a folder of pictures for each "
            "class (train/CLASS/*.jpg), but got none in a folder for training."
        )
    if not classes:
        raise UserError(
            f"Expected '{found['train']}' to hold a folder of pictures for each class (CLASS/*.jpg, or "
            "train/CLASS/*.jpg and test/CLASS/*.jpg), but it holds no folder."
        )
    parts, notes = {}, []
    for name, folder in found.items():
        parts[name], told = class_folders(folder, classes, needed=name == "train")
        notes += told
    return ImageSet(tuple(classes), parts, tuple(notes))


def class_folders(root: Path, classes: Sequence[str], *, needed: bool) -> tuple[Part, list[str]]:
    """(the pictures of root/CLASS/…, sentences on folders without any and on pictures of kinds that are not read).

    Raises:
        UserError: a folder is none of the `classes`; with `needed`, one is missing or empty.
    """
    places: Mapping[str, int] = {name: index for index, name in enumerate(classes)}
    there = {folder.name for folder in subfolders(root)}
    if strange := sorted(there - places.keys()):
        raise UserError(f"The class folder '{root / strange[0]}' is none of the {len(classes)} classes trained on.")
    paths: list[Path] = []
    labels: list[int] = []
    notes: list[str] = []
    unread: list[Path] = []
    for name, label in places.items():
        files = sorted(_walk(root / name)) if name in there else []
        found = [path for path in files if _is_picture(path)]
        unread += [path for path in files if path.suffix.lower() in UNREAD_ENDINGS]
        if not found and needed:
            raise UserError(
                f"The class folder '{root / name}' {'holds no picture' if name in there else 'is missing'} "
                f"({', '.join(ENDINGS)})."
            )
        if not found and name in there:
            notes.append(f"The class folder '{root / name}' holds no picture.")
        paths += found
        labels += [label] * len(found)
    if unread:
        many = "1 file is" if len(unread) == 1 else f"{len(unread)} files are"
        notes.append(f"{many} left out of '{root}', '{unread[0]}' the first: only {', '.join(ENDINGS)} are read.")
    return Part(Files(paths), np.array(labels, np.int64)), notes


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, below, files in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield Path(parent, name)
