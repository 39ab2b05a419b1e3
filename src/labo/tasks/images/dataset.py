"""What reading gives: parts of labelled pictures and the names of their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from labo.errors import UserError
from labo.tasks.images import pictures
from labo.tasks.images.decoding import Encoded, decode_all

# What the parts may be called in folders, arrays and data sets.
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
# Decoded pictures of more bytes than this stay encoded, and are decoded batch by batch.
MOST_BYTES = 2 * 2**30
DEFAULT_SIZE, LARGEST_OWN_SIZE, LOOKED_AT = 64, 224, 100
SIZE_NOTE = (
    f"The pictures are not all squares of one size of at most {LARGEST_OWN_SIZE} pixels: their middle squares become "
    f"{DEFAULT_SIZE} x {DEFAULT_SIZE}; --option image_size=224 is another size."
)
HINT = "--skip-unreadable leaves such pictures out"


@dataclass(frozen=True)
class Part:
    """Pictures uint8 (N, H, W, 3), or N still encoded ones, and their labels int64 (N,).

    `name` says what the picture at a place of the source is called, where it has a name; `kept` which places of it
    these pictures are (N,), where some were left out.
    """

    images: np.ndarray | Encoded
    labels: np.ndarray
    name: Callable[[int], str] | None = None
    kept: np.ndarray | None = None


@dataclass(frozen=True)
class ImageSet:
    """The parts "train" and, where the data have them, "validation" and "test".

    `classes` are names for people; `folders` what the classes' folders are called, where that is something else.
    """

    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    notes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


def common_size(part: Part) -> int | None:
    """The side of the pictures if those looked at are equal squares of at most 224 pixels, else None."""
    if isinstance(part.images, np.ndarray):
        found = {(part.images.shape[2], part.images.shape[1])}
    else:
        some = np.linspace(0, len(part.images) - 1, min(LOOKED_AT, len(part.images))).astype(int)
        found = {pictures.extent(part.images.picture(index)[1]) for index in some.tolist()} - {None}
    width, height = found.pop() if len(found) == 1 else (0, 1)  # pyright: ignore[reportGeneralTypeIssues]
    return width if width == height <= LARGEST_OWN_SIZE else None


def prepared(images: ImageSet, size: int, crop: float, skip_unreadable: bool) -> ImageSet:
    """All pictures (N, size, size, 3), or still encoded where they are too many.

    Of the latter, those that validate and test are looked through now: after a long training it would be too late. A
    damaged training picture is told in the first epoch.

    Raises:
        UserError: an unreadable picture, unless `skip_unreadable`; a label without a training picture.
    """
    parts, notes = {}, list(images.notes)
    for name, part in images.parts.items():
        try:
            parts[name], unreadable = prepared_part(part, size, crop, skip_unreadable, look=name != "train")
        except pictures.UnreadableError as error:
            raise UserError(f"{str(error).rstrip('.')}; {HINT}.") from error
        if unreadable:
            many = "1 unreadable picture is" if len(unreadable) == 1 else f"{len(unreadable)} unreadable pictures are"
            notes.append(f"{many} left out of the {name} part, '{unreadable[0]}' the first.")
    _check_labels(images.classes, parts)
    return replace(images, parts=parts, notes=tuple(notes))


def prepared_part(
    part: Part, size: int, crop: float, skip_unreadable: bool, *, look: bool = False
) -> tuple[Part, list[str]]:
    """(the pictures of a part at one size, or still encoded, names of those left out as unreadable).

    With `look`, those that stay encoded are looked through, as they are with `skip_unreadable`.

    Raises:
        UnreadableError: a picture that was looked at cannot be read, unless `skip_unreadable`.
    """
    images = part.images
    if isinstance(images, np.ndarray):
        if images.shape[1:3] != (size, size) and len(images):
            images = np.stack([pictures.resized(image, size, crop) for image in images])
        return replace(part, images=images), []
    part = replace(part, name=images.name)
    # Where a part of a picture tests, training draws parts of the whole: one decoded array would not do for both.
    if crop == 1 and len(images) * size * size * 3 <= MOST_BYTES:
        decoded, kept, unreadable = decode_all(images, size, crop, skip_unreadable=skip_unreadable)
        return replace(part, images=decoded, labels=part.labels[kept], kept=kept), unreadable
    if not (skip_unreadable or look):  # a damaged one is told when its batch comes
        return part, []
    _, kept, unreadable = decode_all(images, size, crop, skip_unreadable=skip_unreadable, keep=False)
    return replace(part, images=_Some(images, kept), labels=part.labels[kept], kept=kept), unreadable


class _Some(Encoded):
    def __init__(self, encoded: Encoded, kept: np.ndarray) -> None:
        self.encoded, self.kept = encoded, kept
        self.name = lambda index: encoded.name(int(kept[index]))

    def __len__(self) -> int:
        return len(self.kept)

    def picture(self, index: int):
        return self.encoded.picture(int(self.kept[index]))


def _check_labels(classes: Sequence[str], parts: Mapping[str, Part]) -> None:
    if len(classes) < 2:
        told = f"only '{classes[0]}'" if classes else "none"
        raise UserError(f"Expected pictures of at least two classes to train on, but got {told}.")
    seen = np.zeros(len(classes), bool)
    for name, part in parts.items():
        if not len(part.labels):
            raise UserError(f"The {name} part of the data holds no picture.")
        if part.labels.min() < 0 or part.labels.max() >= len(classes):
            raise UserError(
                f"Expected labels from 0 to {len(classes) - 1} in the {name} part, but got {part.labels.min()} to "
                f"{part.labels.max()}."
            )
        if name == "train":
            seen[part.labels] = True
    for name, part in parts.items():
        unseen = np.setdiff1d(part.labels, np.flatnonzero(seen))
        if len(unseen):
            raise UserError(f"The class '{classes[unseen[0]]}' is in the {name} part, but has no training picture.")
    if not seen.all():
        raise UserError(f"The class '{classes[int(seen.argmin())]}' has no training picture.")
