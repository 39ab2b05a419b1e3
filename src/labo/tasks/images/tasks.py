"""The tasks over pictures: CIFAR-10 and -100, Tiny-ImageNet, ImageNet, and one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from labo.errors import UserError
from labo.tasks.images import cifar, imagenet, own, places
from labo.tasks.images.base import ImageTask
from labo.tasks.images.sets import ImageSet


class Cifar10(ImageTask):
    """CIFAR-10, from cifar10-train-a.npz, -b.npz and -test.npz, or from the python archive or its folder.

    Args:
        parts: which of the .npz training files to use: "a", "b" or "ab"; by default those that are there.
        options: see `ImageTask`.
    """

    name = "cifar10"
    size = 32
    edition: ClassVar[cifar.Edition] = cifar.CIFAR10

    def __init__(self, *, parts: str | None = None, **options: Any) -> None:
        letters = "" if parts is None else parts.replace(",", "").replace(" ", "")
        if parts is not None and (not letters or set(letters) - set(cifar.PARTS)):
            raise UserError(f"Expected option `parts` to be of {', '.join(cifar.PARTS)}, but got '{parts}'.")
        self.letters = "".join(sorted(set(letters)))
        super().__init__(**options, parts=self.letters or None)

    def files(self) -> list[Path]:
        """The files that are read."""
        return cifar.locate(self.edition, self.data, self.letters, self.fetch)

    def read(self) -> ImageSet:
        """See `ImageTask.read`."""
        return cifar.read(self.edition, self.files())

    def fingerprint(self) -> str:
        """See `Task.fingerprint`."""
        files = self.files()
        return places.fingerprint(files, files[0].parent)


class Cifar100(Cifar10):
    """CIFAR-100 with its hundred fine classes; see `Cifar10` for the options."""

    name = "cifar100"
    edition = cifar.CIFAR100


class TinyImageNet(ImageTask):
    """Tiny-ImageNet-200, from its folder or its compact .npz file; its validation pictures test."""

    name = "tiny-imagenet"
    size = 64

    def root(self) -> Path:
        """Where it lies."""
        return imagenet.locate_tiny(self.data, self.fetch)

    def read(self) -> ImageSet:
        """See `ImageTask.read`."""
        return imagenet.read(self.root())

    def fingerprint(self) -> str:
        """See `Task.fingerprint`."""
        root = self.root()
        return places.fingerprint(imagenet.files_of(root), root)


class ImageNet(TinyImageNet):
    """ImageNet's thousand classes, from train/CLASS and val/CLASS; its validation pictures test.

    Pictures are decoded batch by batch: the middle 224 of 256 pixels, which the published test takes.
    """

    name = "imagenet"
    size = 224
    crop = 224 / 256
    epochs = 90

    def root(self) -> Path:
        """Where it lies."""
        return imagenet.locate_imagenet(self.data)


class Image(ImageTask):
    """One's own pictures, or a Hugging Face data set.

    Args:
        data: a folder CLASS/*.jpg or train/CLASS/*.jpg, …; an .npz or .parquet file; a saved data set's folder; with
            `fetch`, the name of a data set on the Hugging Face hub.
        target: the array or column of the classes; labels or the only column of classes by default.
        options: see `ImageTask`. Pictures keep their size if the first of them are equal squares, else have 64 pixels.
    """

    name = "image"
    hub = True

    def __init__(self, *, data: str | None = None, target: str | None = None, **options: Any) -> None:
        if not data:
            raise UserError("Task 'image' needs --data FOLDER (of class folders), FILE.npz or FILE.parquet.")
        self.target = target
        super().__init__(data=data, **options, target=target)

    def read(self) -> ImageSet:
        """See `ImageTask.read`."""
        assert self.data is not None
        return own.read(self.data, self.target, self.fetch)

    def fingerprint(self) -> str:
        """See `Task.fingerprint`."""
        assert self.data is not None
        return own.fingerprint(self.data, self.fetch)
