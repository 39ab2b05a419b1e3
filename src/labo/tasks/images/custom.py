"""The tasks over pictures: CIFAR-10 and -100, Tiny-ImageNet, ImageNet, and one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from labo.errors import UserError
from labo.tasks import data_files as places
from labo.tasks.images import cifar, imagenet, own
from labo.tasks.images.dataset import ImageSet
from labo.tasks.images.task import ImageTask


class Cifar10(ImageTask):
    """CIFAR-10: cifar10-train-a.npz, -b.npz and -test.npz, the python archive or its folder, or as the hub has it.

    With `fetch` the archive is downloaded; `data="uoft-cs/cifar10"` names the data set of the Hugging Face hub.

    Args:
        parts: which of the .npz training files to use: "a", "b" or "ab"; by default those that are there.
        options: see `ImageTask`.
    """

    name = "cifar10"
    size = 32
    edition: ClassVar[cifar.Edition] = cifar.CIFAR10

    def __init__(self, *, parts: str | None = None, **options: Any) -> None:
        letters = "" if parts is None else str(parts).replace(",", "").replace(" ", "")
        if parts is not None and (not letters or set(letters) - set(cifar.PARTS)):
            raise UserError(f"Expected option `parts` to be of {', '.join(cifar.PARTS)}, but got '{parts}'.")
        self.letters = "".join(sorted(set(letters)))
        super().__init__(**options, parts=self.letters or None)

    def may_be_on_hub(self, data: str) -> bool:
        """See `ImageTask.may_be_on_hub`: other names are folders to fetch the archive into."""
        return data == self.edition.hub

    def files(self) -> list[Path]:
        """The files that are read."""
        return cifar.locate(self.edition, self.data, self.letters, self.fetch)

    def read(self) -> ImageSet:
        """See `ImageTask.read`."""
        if self.on_hub:
            return cifar.read_hub(self.edition, own.asked_for(str(self.data), self.fetch))
        return cifar.read(self.edition, self.files())

    def fingerprint(self) -> str:
        """See `Task.fingerprint`."""
        if self.on_hub:
            return own.fingerprint(str(self.data), self.fetch)
        files = self.files()
        if files[0].is_dir():
            return own.fingerprint(str(files[0]))
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

    Pictures are decoded batch by batch: to test, the middle 224 of 256 pixels, which the published test takes; to
    train, the middle square, of which the augmentation draws a part. (The published recipe draws it of the whole
    picture.)
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

    def __init__(self, *, data: str | None = None, target: str | None = None, **options: Any) -> None:
        if not data:
            raise UserError("Task 'image' needs --data FOLDER (of class folders), FILE.npz or FILE.parquet.")
        self.target = target
        super().__init__(data=data, **options, target=target)

    def may_be_on_hub(self, data: str) -> bool:
        """See `ImageTask.may_be_on_hub`."""
        return True

    def read(self) -> ImageSet:
        """See `ImageTask.read`."""
        assert self.data is not None
        return own.read(self.data, self.target, self.fetch)

    def fingerprint(self) -> str:
        """See `Task.fingerprint`."""
        assert self.data is not None
        return own.fingerprint(self.data, self.fetch)
