"""Images and labels in .npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labo.errors import UserError, unknown
from labo.tasks.images.dataset import PART_NAMES, ImageSet, Part
from labo.tasks.labels import class_indices
from labo.tasks.npz_files import load

Arrays = dict[str, np.ndarray]


def read(path: Path, target: str | None = None) -> ImageSet:
    """The labelled images of an .npz file.

    It holds `images` and `labels` (or `target` in place of labels), or both per part as `train_images`, `train_labels`
    (`x_train`, `y_train`), likewise validation (val) and test; optionally `classes`, the names of integer labels.
    Images are uint8 (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, 3, H, W).

    Raises:
        UserError: an array is missing, or has another shape or dtype.
    """
    arrays = load(path)
    pairs = _find_pairs(arrays, target)
    if not pairs:
        if target is not None and "images" in arrays:
            raise unknown("array", target, arrays)
        raise UserError(
            f"Expected '{path}' to hold the arrays images and labels, or train_images, train_labels, test_images and "
            f"test_labels, but got {', '.join(arrays) or 'nothing'}."
        )
    names = [str(name) for name in arrays["classes"]] if "classes" in arrays else None
    labels, classes = class_indices(
        {part: _check_labels(arrays[label], label, path) for part, (_, label) in pairs.items()}, names
    )
    parts = {part: Part(as_rgb(arrays[image], image, path), labels[part]) for part, (image, _) in pairs.items()}
    for name, part in parts.items():
        if len(part.images) != len(part.labels):
            raise UserError(f"'{path}' holds {len(part.images)} {name} images, but {len(part.labels)} labels of them.")
    return ImageSet(classes, parts)


def read_images(path: Path) -> np.ndarray:
    """The images of an .npz file without labels: its array `images`, or its only array."""
    arrays = load(path)
    name = "images" if "images" in arrays or len(arrays) != 1 else next(iter(arrays))
    if name not in arrays:
        raise UserError(f"Expected '{path}' to hold an array images, but got {', '.join(arrays) or 'nothing'}.")
    return as_rgb(arrays[name], name, path)


def as_rgb(images: np.ndarray, name: str, path: Path) -> np.ndarray:
    """An array of images as uint8 (N, H, W, 3).

    Raises:
        UserError: it is not uint8, or of another shape.
    """
    if images.dtype != np.uint8:
        raise UserError(
            f"Expected the images `{name}` in '{path}' to be uint8, 0 to 255, but got {_describe(images)}; convert "
            "them."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise UserError(
            f"Expected the images `{name}` in '{path}' to be (N, H, W), (N, H, W, 3) or (N, 3, H, W), but got "
            f"{_describe(images)}."
        )
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def _find_pairs(arrays: Arrays, target: str | None) -> dict[str, tuple[str, str]]:
    """Part -> (name of its images, name of its labels)."""
    label = target or "labels"
    if "images" in arrays and label in arrays:
        return {"train": ("images", label)}
    pairs = {}
    for name, part in PART_NAMES.items():
        for image, labels in ((f"{name}_images", f"{name}_{label}"), (f"x_{name}", f"y_{name}")):
            if image in arrays and labels in arrays:
                pairs[part] = (image, labels)
    return pairs if "train" in pairs else {}


def _check_labels(labels: np.ndarray, name: str, path: Path) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise UserError(
            f"Expected the labels `{name}` in '{path}' to be integers or strings (N,), but got {_describe(labels)}."
        )
    return labels


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
