"""Sets of labelled images: their parts as read, resized to one size, and as examples of a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labo.errors import UserError
from labo.tasks.base import Examples
from labo.tasks.images import decoding
from labo.tasks.images.decoding import EncodedImages, EncodedSubset, LazyImages
from labo.wording import counted

# Names of the parts in folders, arrays and data sets.
PART_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
# Images of more decoded bytes than this stay encoded and are decoded batch by batch.
MAX_DECODED_BYTES = 2 * 2**30
DEFAULT_SIZE, MAX_NATIVE_SIZE, INSPECTED_IMAGES = 64, 224, 100
SIZE_NOTE = (
    f"The images are not all squares of one size of at most {MAX_NATIVE_SIZE} pixels: their centre squares are resized "
    f"to {DEFAULT_SIZE} x {DEFAULT_SIZE}; --option image_size=224 is another size."
)
SKIP_HINT = "--skip-unreadable leaves such images out"


@dataclass(frozen=True)
class Part:
    """Images uint8 (N, H, W, 3), or N encoded ones, and their labels int64 (N,).

    `name` maps an index of the source to the image's display name, if images have names; `source_indices` (N,) are
    the indices of these images in the source, if some were left out. `given` (N,) are the labels to train on, where
    those are not the true ones.
    """

    images: np.ndarray | EncodedImages
    labels: np.ndarray
    name: Callable[[int], str] | None = None
    source_indices: np.ndarray | None = None
    given: np.ndarray | None = None

    def at(self, indices: np.ndarray, images: Any) -> Part:
        """The part with `images`, those at `indices`."""
        given = None if self.given is None else self.given[indices]
        source = indices if self.source_indices is None else self.source_indices[indices]
        return replace(self, images=images, labels=self.labels[indices], source_indices=source, given=given)


@dataclass(frozen=True)
class ImageSet:
    """The parts "train" and, where the data have them, "validation" and "test".

    `classes` are display names; `folders` the names of the classes' folders, where they differ.
    """

    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    notes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageExamples(Examples):
    """Images uint8 (N, 3, H, W) and class indices (N,) int64.

    The features are a tensor, or `LazyImages`, decoded on access. Batches, evaluation and prediction see bytes; the
    first layer of the network, `Normalized`, turns them into floats.
    """

    features: Any

    def __post_init__(self) -> None:
        shape, dtype = tuple(self.features.shape), self.features.dtype
        if dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or len(self.features) != len(self.target):
            raise ValueError(
                f"Expected argument `features` to be uint8 (N, 3, H, W) with N = {len(self.target)}, but got {dtype} "
                f"{shape}."
            )

    def _subset_features(self, indices: Tensor) -> Any:
        return self.features.subset(indices) if isinstance(self.features, LazyImages) else self.features[indices]


def channel_statistics(features: Tensor | LazyImages) -> tuple[list[float], list[float]]:
    """Means and standard deviations per channel of uint8 (N, C, H, W) / 255, exact, from histograms of the 256 values.

    A constant channel gets a deviation of 1, so that it can be divided by.
    """
    channels = features.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for chunk in features.split(4096):
        for channel in range(channels):
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    frequency = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = frequency @ values
    deviation = (frequency * (values - mean.unsqueeze(1)) ** 2).sum(1).sqrt()
    return mean.tolist(), torch.where(deviation < 1e-6, 1.0, deviation).tolist()


def common_size(part: Part) -> int | None:
    """The side of the images if those inspected are equal squares of at most 224 pixels, else None."""
    if isinstance(part.images, np.ndarray):
        sizes: set[Any] = {(part.images.shape[2], part.images.shape[1])}
    else:
        count = len(part.images)
        inspected = np.linspace(0, count - 1, min(INSPECTED_IMAGES, count)).astype(int)
        sizes = {decoding.read_size(part.images.entry(index)[1]) for index in inspected.tolist()} - {None}
    width, height = sizes.pop() if len(sizes) == 1 else (0, 1)
    return width if width == height <= MAX_NATIVE_SIZE else None


def decode_set(images: ImageSet, size: int, crop: float, skip_unreadable: bool) -> ImageSet:
    """All images as (N, size, size, 3), or still encoded where they need too much memory.

    Encoded images of the validation and test parts are checked now, because an error after a long training would be too
    late; a damaged training image is an error in the first epoch.

    Raises:
        UserError: an unreadable image, unless `skip_unreadable`; a class without a training image.
    """
    parts, notes = {}, list(images.notes)
    for name, part in images.parts.items():
        try:
            parts[name], unreadable = decode_part(part, size, crop, skip_unreadable, check=name != "train")
        except decoding.UnreadableError as error:
            raise UserError(f"{str(error).rstrip('.')}; {SKIP_HINT}.") from error
        if unreadable:
            many = counted(len(unreadable), "unreadable image is", "unreadable images are")
            notes.append(f"{many} left out of the {name} part, '{unreadable[0]}' the first.")
    _check_labels(images.classes, parts)
    return replace(images, parts=parts, notes=tuple(notes))


def decode_part(
    part: Part, size: int, crop: float, skip_unreadable: bool, *, check: bool = False
) -> tuple[Part, list[str]]:
    """(the images of a part at one size, or still encoded, the names of unreadable images that are left out).

    With `check` or `skip_unreadable`, images that stay encoded are decoded once to find the unreadable ones.

    Raises:
        UnreadableError: a decoded image cannot be read, unless `skip_unreadable`.
    """
    images = part.images
    if isinstance(images, np.ndarray):
        if images.shape[1:3] != (size, size) and len(images):
            images = np.stack([decoding.resize(image, size, crop) for image in images])
        return replace(part, images=images), []
    part = replace(part, name=images.name)
    # With a crop below 1, training and test decode differently: one decoded array cannot serve both.
    if crop == 1 and len(images) * size * size * 3 <= MAX_DECODED_BYTES:
        decoded, indices, unreadable = decoding.decode_all(images, size, crop, skip_unreadable=skip_unreadable)
        return part.at(indices, decoded), unreadable
    if not (skip_unreadable or check):
        return part, []
    _, indices, unreadable = decoding.decode_all(images, size, crop, skip_unreadable=skip_unreadable, keep=False)
    subset = EncodedSubset(images, indices)
    return part.at(indices, subset), unreadable


def _check_labels(classes: Sequence[str], parts: Mapping[str, Part]) -> None:
    if len(classes) < 2:
        got = f"only '{classes[0]}'" if classes else "none"
        raise UserError(f"Expected images of at least two classes to train on, but got {got}.")
    in_training = np.zeros(len(classes), bool)
    for name, part in parts.items():
        if not len(part.labels):
            raise UserError(f"The {name} part of the data holds no image.")
        if part.labels.min() < 0 or part.labels.max() >= len(classes):
            raise UserError(
                f"Expected labels from 0 to {len(classes) - 1} in the {name} part, but got {part.labels.min()} to "
                f"{part.labels.max()}."
            )
        if name == "train":
            in_training[part.labels] = True
    for name, part in parts.items():
        unseen = np.setdiff1d(part.labels, np.flatnonzero(in_training))
        if len(unseen):
            raise UserError(f"The class '{classes[unseen[0]]}' is in the {name} part, but has no training image.")
    if not in_training.all():
        raise UserError(f"The class '{classes[int(in_training.argmin())]}' has no training image.")
