"""Pictures and labels in .npz files: of one's own, or as the project's compact files keep them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from labo.errors import UserError, unknown
from labo.tasks.images.dataset import PART_NAMES, ImageSet, Part
from labo.tasks.images.decoding import Blobs, Encoded
from labo.tasks.tabular.features import class_name

Arrays = dict[str, np.ndarray]


def load(path: Path) -> Arrays:
    """The arrays in an .npz file; objects are refused, because reading them runs code.

    Raises:
        UserError: the file is missing, damaged, or holds something else than plain arrays.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as error:
        raise UserError(f"No such file: '{path}'.") from error
    except (
        ValueError,
        OSError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        reason = "it is no .npz file of plain arrays" if "pickle" in reason or "context" in reason else reason
        raise UserError(f"Cannot read '{path}': {reason}.") from error


def read(path: Path, target: str | None = None) -> ImageSet:
    """The pictures of an .npz file.

    It holds `images` and `labels` (or `target` in place of labels), or both for each part as `train_images`,
    `train_labels` (`x_train`, `y_train`), likewise validation (val) and test; perhaps `classes`, the names that whole
    numbers as labels stand for. Pictures are uint8 (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, 3, H, W).

    Raises:
        UserError: an array is missing or is not of these.
    """
    arrays = load(path)
    names = [str(name) for name in arrays["classes"]] if "classes" in arrays else None
    if is_compact(arrays):
        found = compact(arrays, path)
        named = names or [str(label) for label in range(max(part.labels.max() for part in found.values()) + 1)]
        return ImageSet(tuple(named), found)
    pairs = _pairs(arrays, target)
    if not pairs:
        if target is not None and "images" in arrays:
            raise unknown("array", target, arrays)
        raise UserError(
            f"Expected '{path}' to hold the arrays images and labels, or train_images, train_labels, test_images and "
            f"test_labels, but got {', '.join(arrays) or 'nothing'}."
        )
    values = {part: _flat(arrays[label], label, path) for part, (_, label) in pairs.items()}
    labels, classes = numbered(values, names)
    parts = {part: Part(rgb(arrays[image], image, path), labels[part]) for part, (image, _) in pairs.items()}
    for name, part in parts.items():
        if len(part.images) != len(part.labels):
            raise UserError(
                f"'{path}' holds {len(part.images)} {name} pictures, but {len(part.labels)} labels of them."
            )
    return ImageSet(classes, parts)


def images_alone(path: Path) -> np.ndarray | Encoded:
    """The pictures of an .npz file without asking for labels: its array `images`, or its only one."""
    arrays = load(path)
    if is_compact(arrays):
        found = compact(arrays, path)
        return found.get("test", found["train"]).images
    name = "images" if "images" in arrays or len(arrays) != 1 else next(iter(arrays))
    if name not in arrays:
        raise UserError(f"Expected '{path}' to hold an array images, but got {', '.join(arrays) or 'nothing'}.")
    return rgb(arrays[name], name, path)


def is_compact(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether these are the arrays of a compact file: differences of pixels, or JPEG files end to end."""
    return {"d", "y"} <= arrays.keys() or {"jpeg_train", "off_train", "y_train"} <= arrays.keys()


def compact(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Part]:
    """The parts of a compact file; one of differences is a single part, called "train"."""
    if "d" in arrays:
        images = from_differences(arrays["d"], path)
        return {"train": _part(images, arrays["y"], path)}
    parts = {}
    for name in ("train", "validation", "test"):
        if f"jpeg_{name}" in arrays:
            missing = {f"off_{name}", f"y_{name}"} - arrays.keys()
            if missing:
                raise UserError(f"'{path}' lacks the array {min(missing)}.")
            images = Blobs(arrays[f"jpeg_{name}"], arrays[f"off_{name}"], f"{path}, {name}")
            parts[name] = _part(images, arrays[f"y_{name}"], path)
    return parts


def from_differences(differences: np.ndarray, path: Path) -> np.ndarray:
    """Pictures uint8 (N, H, W, 3) from what compresses better: uint8 (3, N, H, W), all modulo 256.

    Its planes are red - green, green and blue - green, differenced from pixel to pixel along each row, after that from
    row to row. Sums undo both, in either order.
    """
    if differences.dtype != np.uint8 or differences.ndim != 4 or len(differences) != 3:
        raise UserError(f"Expected `d` in '{path}' to be uint8 (3, N, H, W), but got {_told(differences)}.")
    planes = np.cumsum(differences, axis=3, dtype=np.uint8)
    np.cumsum(planes, axis=2, dtype=np.uint8, out=planes)
    red_less_green, green, blue_less_green = planes
    return np.stack([red_less_green + green, green, blue_less_green + green], axis=-1)


def rgb(images: np.ndarray, name: str, path: Path) -> np.ndarray:
    """An array of pictures as uint8 (N, H, W, 3).

    Raises:
        UserError: it is not uint8, or of another shape.
    """
    if images.dtype != np.uint8:
        raise UserError(
            f"Expected the pictures `{name}` in '{path}' to be uint8, 0 to 255, but got {_told(images)}; turn them."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise UserError(
            f"Expected the pictures `{name}` in '{path}' to be (N, H, W), (N, H, W, 3) or (N, 3, H, W), but got "
            f"{_told(images)}."
        )
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def numbered(
    values: Mapping[str, np.ndarray], names: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels of all parts as class indices, and the classes' names.

    With `names`, whole numbers are indices into them and texts are some of them; without, the classes are the different
    values, numbers in the order of numbers.
    """
    joined = np.concatenate(list(values.values()))
    if names is not None and joined.dtype.kind in "iu":
        return {part: labels.astype(np.int64) for part, labels in values.items()}, tuple(names)
    if names is None:
        found = np.unique(joined)
        indices = {part: np.searchsorted(found, labels).astype(np.int64) for part, labels in values.items()}
        return indices, tuple(class_name(value) for value in found)
    places = {name: index for index, name in enumerate(names)}
    strange = sorted(set(map(str, joined)) - set(places))
    if strange:
        raise unknown("class", strange[0], names)
    indices = {part: np.array([places[str(label)] for label in labels], np.int64) for part, labels in values.items()}
    return indices, tuple(names)


def _pairs(arrays: Arrays, target: str | None) -> dict[str, tuple[str, str]]:
    """Part -> (name of its pictures, name of its labels)."""
    label = target or "labels"
    if "images" in arrays and label in arrays:
        return {"train": ("images", label)}
    found = {}
    for said, part in PART_NAMES.items():
        for image, labels in ((f"{said}_images", f"{said}_{label}"), (f"x_{said}", f"y_{said}")):
            if image in arrays and labels in arrays:
                found[part] = (image, labels)
    return found if "train" in found else {}


def _part(images: np.ndarray | Encoded, labels: np.ndarray, path: Path) -> Part:
    flat = _flat(labels, "y", path).astype(np.int64)
    if len(flat) != len(images):
        raise UserError(f"'{path}' holds {len(images)} pictures, but {len(flat)} labels of them.")
    return Part(images, flat)


def _flat(labels: np.ndarray, name: str, path: Path) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise UserError(
            f"Expected the labels `{name}` in '{path}' to be whole numbers or texts (N,), but got {_told(labels)}."
        )
    return labels


def _told(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
