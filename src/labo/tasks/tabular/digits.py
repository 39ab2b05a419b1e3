"""scikit-learn's handwritten digits, with few of them to train on, so that regularization matters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from labo.errors import UserError
from labo.splitting import some, stratified
from labo.tasks.base import Examples, Origin, Sample, Splits
from labo.tasks.tabular.task import ColumnTask

VALIDATION, TEST = 397, 1_000
BRIGHTEST = 16.0


class Digits(ColumnTask):
    """1,797 images of 8 x 8 pixels in ten classes: 400 train, 397 validate, 1,000 test; the seed draws which.

    Inputs to predict have the columns pixel_0 to pixel_63, 0 to 16, row by row; in an .npz file, an array `pixel` of
    shape (N, 64) or (N, 8, 8).

    Args:
        train_size: how many to train on, up to 400.
        label_noise: "SHARE,symmetric|pair" of the training and validation labels are turned into wrong ones.

    Source: Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998; the test part of it, as
        scikit-learn ships it.
    """

    name = "digits"

    def __init__(self, *, train_size: int = 400, label_noise: str | None = None) -> None:
        if not 10 <= train_size <= 400:
            raise UserError(f"Expected a train size from 10 to 400 for 'digits', but got {train_size}.")
        super().__init__(train_size=train_size, label_noise=label_noise)
        self.train_size = train_size

    def splits(self, seed: int) -> Splits:
        """See `Task.splits`."""
        pixels, target = _images()
        generator = torch.Generator().manual_seed(seed)
        train, validation, test = stratified(target, (len(target) - VALIDATION - TEST, VALIDATION, TEST), generator)
        train = train[some(target[train], self.train_size, generator)] if self.train_size < len(train) else train
        mean = pixels[train].mean(0)
        features = (pixels - mean) / BRIGHTEST
        known = [
            {"name": f"pixel_{i}", "kind": "number", "mean": m, "scale": BRIGHTEST, "missing": False}
            for i, m in enumerate(mean.tolist())
        ]
        every = Origin(torch.arange(len(target)), _called)
        parts = self.parts(features, every, target, (train, validation, test), 10, generator)
        return Splits(*parts, tuple("0123456789"), {"columns": known})

    def samples(self, examples: Examples, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """See `Task.samples`: dark strokes on a light ground, as they were written."""
        mean = torch.tensor([column["mean"] for column in preprocessing["columns"]])
        ink = (examples.features * BRIGHTEST + mean).round().clamp(0, BRIGHTEST)
        paper = (255 - ink * (255 / BRIGHTEST)).round().to(torch.uint8)
        return list(paper.view(-1, 8, 8).numpy())


def _called(place: int) -> str:
    return f"image {place + 1}"


@lru_cache(maxsize=1)
def _images() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float(), torch.from_numpy(target).long()
