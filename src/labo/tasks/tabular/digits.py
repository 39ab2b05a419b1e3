"""scikit-learn's handwritten digits, with few training examples, so that regularization matters."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from labo.errors import UserError
from labo.splitting import stratified, stratified_sample
from labo.tasks.base import Examples, Origin, Sample, Splits
from labo.tasks.tabular.task import TabularTask

VALIDATION, TEST = 397, 1_000
MAX_INTENSITY = 16.0


class Digits(TabularTask):
    """1,797 images of 8 x 8 pixels in ten classes: 400 training, 397 validation, 1,000 test, drawn by the seed.

    New inputs have the columns pixel_0 to pixel_63, 0 to 16, row by row; in an .npz file, an array `pixel` of shape
    (N, 64) or (N, 8, 8).

    Args:
        train_size: number of training examples, 10 to 400.
        label_noise: "SHARE,symmetric|pair": this share of the training and validation labels is changed.

    Source: Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998; its test part, as shipped with
        scikit-learn.
    """

    name = "digits"

    def __init__(self, *, train_size: int = 400, label_noise: str | None = None) -> None:
        if not 10 <= train_size <= 400:
            raise UserError(f"Expected a train size from 10 to 400 for 'digits', but got {train_size}.")
        super().__init__(train_size=train_size, label_noise=label_noise)
        self.train_size = train_size

    @override
    def splits(self, seed: int) -> Splits:
        pixels, target = _load()
        generator = torch.Generator().manual_seed(seed)
        train, validation, test = stratified(target, (len(target) - VALIDATION - TEST, VALIDATION, TEST), generator)
        if self.train_size < len(train):
            train = train[stratified_sample(target[train], self.train_size, generator)]
        mean = pixels[train].mean(0)
        features = (pixels - mean) / MAX_INTENSITY
        columns = [
            {"name": f"pixel_{i}", "kind": "number", "mean": m, "scale": MAX_INTENSITY, "missing": False}
            for i, m in enumerate(mean.tolist())
        ]
        origin = Origin(torch.arange(len(target)), _image_name)
        parts = self.make_parts(features, origin, target, (train, validation, test), 10, generator)
        return Splits(*parts, tuple("0123456789"), {"columns": columns})

    @override
    def samples(self, examples: Examples, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """Dark strokes on a light background, as written."""
        mean = torch.tensor([column["mean"] for column in preprocessing["columns"]])
        intensity = (examples.features * MAX_INTENSITY + mean).round().clamp(0, MAX_INTENSITY)
        inverted = (255 - intensity * (255 / MAX_INTENSITY)).round().to(torch.uint8)
        return list(inverted.view(-1, 8, 8).numpy())


def _image_name(index: int) -> str:
    return f"image {index + 1}"


@lru_cache(maxsize=1)
def _load() -> tuple[Tensor, Tensor]:
    """Pixels (1797, 64) float32 and class indices (1797,), from the file that `sklearn.datasets.load_digits` reads.

    scikit-learn itself is not imported: that takes longer than training on the digits.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    file = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    table = torch.from_numpy(np.loadtxt(file, delimiter=","))
    return table[:, :-1].float(), table[:, -1].long()
