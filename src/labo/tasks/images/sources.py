"""Images of the user's own: class folders, .npz files, single images, and what `hf_datasets` reads.

Class folders are not read through `datasets`: its `imagefolder` takes words in file names for parts (beside
cat/test_2.png, images without such a word are dropped), drops empty class folders silently, and would become a
requirement.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from labo.errors import UserError, not_found
from labo.tasks import data_files
from labo.tasks.file_limits import require_file
from labo.tasks.images import hf_datasets, npz
from labo.tasks.images.dataset import PART_NAMES, ImageSet, Part
from labo.tasks.images.decoding import SUFFIXES, UNSUPPORTED_SUFFIXES, EncodedImages, ImageFiles
from labo.wording import counted, unicode_name


def read(data: str, target: str | None = None, fetch: bool = False) -> ImageSet:
    """The image set `data`: a folder of class folders, an .npz file, or what `datasets` reads.

    Raises:
        UserError: it does not exist, or cannot be read.
    """
    path = Path(require_local(data, fetch))
    if not path.exists():
        return hf_datasets.read(data, target)
    if path.is_dir():
        return hf_datasets.read(data, target) if hf_datasets.is_dataset(path) else read_folders(path)
    if path.suffix.lower() == ".npz":
        return npz.read(path, target)
    if hf_datasets.is_dataset(path):
        return hf_datasets.read(data, target)
    raise UserError(f"Expected a folder with a folder for each class, an .npz or a .parquet file, but got '{data}'.")


def fingerprint(data: str, fetch: bool = False) -> str:
    """Changes when the data do."""
    path = Path(require_local(data, fetch))
    if not path.exists():
        return hf_datasets.fingerprint(data)
    if path.is_file():
        return data_files.fingerprint([path], path.parent)
    files = path.rglob("*") if hf_datasets.is_dataset(path) else images_in(path)
    return data_files.fingerprint(regular_files(files), path)


def read_unlabelled(path: Path) -> np.ndarray | EncodedImages:
    """Images to predict: one file, all in a folder and below it, or the array `images` of an .npz file.

    Raises:
        UserError: there is none.
    """
    files = image_files(path)
    return npz.read_images(path) if files is None else ImageFiles(files)


def image_files(path: Path) -> list[Path] | None:
    """The files of the images that `read_unlabelled` reads; None for an .npz file.

    Raises:
        UserError: there is none.
    """
    if path.is_dir():
        files = images_in(path)
        if not files:
            raise UserError(f"The folder '{path}' holds no image ({', '.join(SUFFIXES)}).")
        return files
    if not os.path.lexists(path):
        raise UserError(f"No such file or folder: '{path}'.")
    require_file(path)
    return None if path.suffix.lower() == ".npz" else [path]


def read_labelled(path: Path, target: str | None, classes: Sequence[str], class_folders: Sequence[str]) -> Part:
    """Images to evaluate on, labelled by the `classes` trained on; of several parts, the test part.

    A class is identified by its name, by its folder's name, or, where no class name is a number, by its index.

    Raises:
        UserError: the data cannot be read, or have a class that training did not have.
    """
    images = read(str(path), target)
    part = images.parts.get("test", images.parts["train"])
    by_index = not any(name.isdigit() for name in classes)
    trained_index = []
    for name in images.classes:
        index = classes.index(name) if name in classes else None
        if index is None and name in class_folders:
            index = class_folders.index(name)
        if index is None and by_index and name.isdigit() and int(name) < len(classes):
            index = int(name)
        trained_index.append(-1 if index is None else index)
    if len(part.labels) and (part.labels.min() < 0 or part.labels.max() >= len(images.classes)):
        raise UserError(f"'{path}' holds labels that its {len(images.classes)} classes do not have.")
    labels = np.array(trained_index, np.int64)[part.labels]
    if (labels < 0).any():
        name = images.classes[int(part.labels[int((labels < 0).argmax())])]
        raise UserError(f"The class '{name}' in '{path}' is none of the {len(classes)} classes trained on.")
    return Part(part.images, labels)


def require_local(data: str, fetch: bool) -> str:
    """`data`, if it is a path that exists or `fetch` allows a download.

    Raises:
        UserError: neither.
    """
    if not Path(data).exists() and not fetch:
        raise not_found(data)
    return data


def images_in(folder: Path) -> list[Path]:
    """All image files in a folder and below it, sorted; hidden files are left out."""
    return sorted(path for path in _walk(folder) if _is_image(path))


def regular_files(paths: Iterable[Path]) -> list[Path]:
    """The paths that are files or lead to one: links to nothing, pipes and devices have no content to depend on."""
    return [path for path in paths if path.is_file()]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; hidden ones are left out."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"Cannot read the folder '{folder}': {error.strerror or error}.") from error


def read_folders(root: Path) -> ImageSet:
    """The images in root/CLASS/… or root/PART/CLASS/….

    The parts are train, validation (val, valid, dev) and test; the classes are those of train.

    Raises:
        UserError: no class folder, an empty one in train, or one in another part alone.
    """
    part_folders, notes = _part_folders(root)
    part_folders = part_folders or {"train": root}
    classes = [folder.name for folder in subfolders(part_folders["train"])]
    if classes and all(name.lower() in PART_NAMES for name in classes):
        raise UserError(
            f"Expected the parts of the data, '{root / classes[0]}' among them, to hold a folder of images for each "
            "class (train/CLASS/*.jpg), but got none in a folder for training."
        )
    if not classes:
        raise UserError(
            f"Expected '{part_folders['train']}' to hold a folder of images for each class (CLASS/*.jpg, or "
            "train/CLASS/*.jpg and test/CLASS/*.jpg), but it holds no folder."
        )
    parts = {}
    for name, folder in part_folders.items():
        parts[name], part_notes = read_class_folders(folder, classes, required=name == "train")
        notes += part_notes
    names = tuple(map(unicode_name, classes))
    return ImageSet(names, parts, tuple(notes), () if names == tuple(classes) else tuple(classes))


def read_class_folders(root: Path, classes: Sequence[str], *, required: bool) -> tuple[Part, list[str]]:
    """(the images of root/CLASS/…, notes on empty folders and on files that are not read).

    Raises:
        UserError: a folder is none of the `classes`; with `required`, one is missing or empty.
    """
    class_of: Mapping[str, int] = {name: index for index, name in enumerate(classes)}
    existing = {folder.name for folder in subfolders(root)}
    if extra := sorted(existing - class_of.keys()):
        raise UserError(f"The class folder '{root / extra[0]}' is none of the {len(classes)} classes trained on.")
    paths: list[Path] = []
    labels: list[int] = []
    notes: list[str] = []
    unsupported: list[Path] = []
    for name, label in class_of.items():
        files = sorted(_walk(root / name)) if name in existing else []
        images = [path for path in files if _is_image(path)]
        unsupported += [path for path in files if path.suffix.lower() in UNSUPPORTED_SUFFIXES]
        if not images and required:
            raise UserError(
                f"The class folder '{root / name}' {'holds no image' if name in existing else 'is missing'} "
                f"({', '.join(SUFFIXES)})."
            )
        if not images and name in existing:
            notes.append(f"The class folder '{root / name}' holds no image.")
        paths += images
        labels += [label] * len(images)
    if unsupported:
        many = counted(len(unsupported), "file is", "files are")
        first, suffixes = unsupported[0], ", ".join(SUFFIXES)
        notes.append(f"{many} left out of '{root}', '{first}' the first: only {suffixes} are read.")
    return Part(ImageFiles(paths), np.array(labels, np.int64)), notes


def _part_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """(part -> its folder, if there is one for training that holds class folders, else nothing; notes).

    Raises:
        UserError: two folders name the same part, such as val and validation, or there is one for another part alone.
    """
    folders: dict[str, Path] = {}
    flat: list[Path] = []
    classes: list[str] = []
    for folder in subfolders(root):
        part = PART_NAMES.get(folder.name.lower())
        if part is None:
            classes.append(folder.name)
        elif not subfolders(folder):
            flat.append(folder)
        elif part in folders:
            raise UserError(f"'{folders[part]}' and '{folder}' are both the {part} part: leave one.")
        else:
            folders[part] = folder
    if "train" in folders:
        return folders, [
            f"The folder '{folder}' is left out: its images are not in a folder for each class, so they have no labels."
            for folder in flat
            if images_in(folder)
        ]
    for part, folder in folders.items():
        if shared := {inner.name for inner in subfolders(folder)} & set(classes):
            raise UserError(
                f"'{folder}' is the {part} part of the data, but the training images are beside it: move the folders "
                f"of the classes ('{min(shared)}' and so on) into '{root / 'train'}'."
            )
    as_classes = [*flat, *folders.values()] if classes else []
    return {}, [f"The folder '{folder}' is a class; it is no part of the data." for folder in as_classes]


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield Path(parent, name)
