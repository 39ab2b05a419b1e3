"""CIFAR images with several labels each: the true ones, and those that people gave them.

Read by `patch_features.py` and `convnet_data.py`. Source of the labels: Wei et al., *Learning with Noisy Labels
Revisited: A Study Using Real-World Human Annotations*, ICLR 2022 (CIFAR-10N and CIFAR-100N).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from labo import tasks
from labo.errors import UserError, unknown
from labo.splitting import some
from labo.tasks import data_files as places
from labo.tasks.images import npz as arrays
from labo.tasks.images.custom import Cifar10

# The human labels are stored row by row for this part of the training images.
PART = "a"
TRUE = "true"
KINDS = {"cifar10": (TRUE, "aggre", "random1", "worse"), "cifar100": (TRUE, "noisy")}


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 (N, H, W, 3) and class indices int64 (N,): for training images the `true` ones and each kind's."""

    train: np.ndarray
    true: np.ndarray
    labels: dict[str, np.ndarray]
    test: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]

    def names(self, labels: np.ndarray) -> np.ndarray:
        """The names (N,) of class indices (N,)."""
        return np.array(self.classes)[labels]


def read(
    name: str, size: int, seed: int, *, kinds: tuple[str, ...] | None = None, data: str | None = None
) -> LabelledImages:
    """`size` training images, classes in proportion by their true labels, and all test images.

    Args:
        name: "cifar10" or "cifar100".
        size: how many training images to draw.
        seed: of the draw.
        kinds: of the labels; all in `KINDS` by default.
        data: the folder of the files; by default the one that LABO_DATA names.

    Returns:
        `LabelledImages`; the test labels are the true ones.

    Raises:
        UserError: a file is missing or does not fit the others, or a kind or the size is not one there is.
    """
    wanted = KINDS[name] if kinds is None else kinds
    for kind in wanted:
        if kind not in KINDS[name]:
            raise unknown("kind of label", kind, KINDS[name])
    task = tasks.create(name, parts=PART, data=data)
    assert isinstance(task, Cifar10)
    images = task.read()
    train, test = images.parts["train"], images.parts["test"]
    assert isinstance(train.images, np.ndarray)
    assert isinstance(test.images, np.ndarray)
    labels = {kind: train.labels if kind == TRUE else _human(name, kind, data, len(train.labels)) for kind in wanted}
    if not len(images.classes) <= size <= len(train.labels):
        raise UserError(f"Expected a size from {len(images.classes)} to {len(train.labels)}, but got {size}.")
    generator = torch.Generator().manual_seed(seed)
    kept = some(torch.from_numpy(train.labels), size, generator).sort().values.numpy()
    chosen = {kind: values[kept] for kind, values in labels.items()}
    return LabelledImages(train.images[kept], train.labels[kept], chosen, test.images, test.labels, images.classes)


def _human(name: str, kind: str, data: str | None, count: int) -> np.ndarray:
    """The labels `kind` of all `count` training images of the part."""
    names = [root / "cifarn" / f"{name}n-train-{PART}.npz" for root in places.roots(data)]
    path = next((path for path in names if path.is_file()), names[0])
    labels = arrays.load(path).get(kind)
    if labels is None or labels.shape != (count,):
        found = "none" if labels is None else f"an array of shape {labels.shape}"
        raise UserError(f"Expected '{path}' to hold {count} labels `{kind}`, but got {found}.")
    return labels.astype(np.int64)
