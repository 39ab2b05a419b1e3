"""The task `image`: the user's own images."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from labo.errors import UserError
from labo.tasks.images import sources
from labo.tasks.images.dataset import ImageSet
from labo.tasks.images.task import ImageTask


class Image(ImageTask):
    """The user's own images, or a Hugging Face data set.

    Args:
        data: a folder CLASS/*.jpg or train/CLASS/*.jpg, …; an .npz or .parquet file; the folder of a saved data set;
            with `fetch`, the name of a data set on the Hugging Face hub.
        target: the array or column of the classes; by default labels, or the only column of classes.
        options: see `ImageTask`. Images keep their size if those inspected are equal squares, else they get 64 pixels.
    """

    name = "image"

    def __init__(self, *, data: str | None = None, target: str | None = None, **options: Any) -> None:
        if not data:
            raise UserError("Task 'image' needs --data FOLDER (of class folders), FILE.npz or FILE.parquet.")
        self.target = target
        super().__init__(data=data, **options, target=target)

    @override
    def may_be_on_hub(self, data: str) -> bool:
        return True

    @override
    def read(self) -> ImageSet:
        assert self.data is not None
        return sources.read(self.data, self.target, self.fetch)

    @override
    def fingerprint(self) -> str:
        assert self.data is not None
        return sources.fingerprint(self.data, self.fetch)
