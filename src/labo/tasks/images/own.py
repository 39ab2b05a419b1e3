"""Labelled pictures of one's own: folders, arrays, or a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from labo.errors import UserError, not_here
from labo.tasks import data_files as places
from labo.tasks.images import hf_datasets as hub
from labo.tasks.images import npz as arrays
from labo.tasks.images import sources as folders
from labo.tasks.images.dataset import ImageSet, Part
from labo.tasks.images.decoding import Encoded, Files
from labo.tasks.images.pictures import ENDINGS
from labo.tasks.tabular.features import class_index


def read(data: str, target: str | None = None, fetch: bool = False) -> ImageSet:
    """The set that `data` names: a folder of class folders, an .npz file, or what `datasets` reads.

    Raises:
        UserError: there is no such thing, or it will not do.
    """
    path = Path(asked_for(data, fetch))
    if not path.exists():
        return hub.read(data, target)
    if path.is_dir():
        return hub.read(data, target) if hub.is_saved(path) else folders.read(path)
    if path.suffix.lower() == ".npz":
        return arrays.read(path, target)
    if hub.is_saved(path):
        return hub.read(data, target)
    raise UserError(f"Expected a folder with a folder for each class, an .npz or a .parquet file, but got '{data}'.")


def fingerprint(data: str, fetch: bool = False) -> str:
    """Changes when the data do."""
    path = Path(asked_for(data, fetch))
    if not path.exists():
        return hub.fingerprint(data)
    if path.is_file():
        return places.fingerprint([path], path.parent)
    files = [file for file in path.rglob("*") if file.is_file()] if hub.is_saved(path) else folders.pictures_in(path)
    return places.fingerprint(files, path)


def unlabelled(path: Path) -> np.ndarray | Encoded:
    """Pictures to predict: one, all in a folder and below it, or the array `images` of an .npz file.

    Raises:
        UserError: there is none.
    """
    files = files_of(path)
    return arrays.images_alone(path) if files is None else Files(files)


def files_of(path: Path) -> list[Path] | None:
    """The pictures that `unlabelled` reads, a file each; None for an .npz file.

    Raises:
        UserError: there is none.
    """
    if path.is_dir():
        found = folders.pictures_in(path)
        if not found:
            raise UserError(f"The folder '{path}' holds no picture ({', '.join(ENDINGS)}).")
        return found
    if not path.is_file():
        raise UserError(f"No such file or folder: '{path}'.")
    return None if path.suffix.lower() == ".npz" else [path]


def labelled(path: Path, target: str | None, classes: Sequence[str], class_folders: Sequence[str]) -> Part:
    """Examples to score, labelled by the `classes` trained on; of several parts, the test part.

    A class is called what it was in training, or by its folder, or, where no class is a number, by its index.

    Raises:
        UserError: the data will not do, or hold a class that training never saw.
    """
    found = read(str(path), target)
    part = found.parts.get("test", found.parts["train"])
    numbers = not any(name.isdigit() for name in classes)
    places_of = []
    for name in found.classes:
        place = class_index(name, classes)
        if place is None and name in class_folders:
            place = class_folders.index(name)
        if place is None and numbers and name.isdigit() and int(name) < len(classes):
            place = int(name)
        places_of.append(-1 if place is None else place)
    if len(part.labels) and (part.labels.min() < 0 or part.labels.max() >= len(found.classes)):
        raise UserError(f"'{path}' holds labels that its {len(found.classes)} classes do not have.")
    labels = np.array(places_of, np.int64)[part.labels]
    if (labels < 0).any():
        strange = found.classes[int(part.labels[int((labels < 0).argmax())])]
        raise UserError(f"The class '{strange}' in '{path}' is none of the {len(classes)} classes trained on.")
    return Part(part.images, labels)


def asked_for(data: str, fetch: bool) -> str:
    """`data`, which lie on this disk, or must have been asked for.

    Raises:
        UserError: they do not, and were not.
    """
    if not Path(data).exists() and not fetch:
        raise not_here(data)
    return data
