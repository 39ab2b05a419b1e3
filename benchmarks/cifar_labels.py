"""CIFAR images with several labels each: the true ones, and those of human annotators.

Read by `patch_features.py` and `convnet_data.py` from the archive that `convert_shared_data.py` describes. Source of
the labels: Wei et al., *Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations*, ICLR 2022
(CIFAR-10N and CIFAR-100N).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from convert_shared_data import read_archive, shared_folder

from labo.errors import UserError, unknown
from labo.splitting import stratified_sample
from labo.tasks.images import npz

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
    folder = shared_folder(data)
    archive = read_archive(folder, name, [PART])
    true, classes = archive.train_labels, archive.classes
    labels = {kind: true if kind == TRUE else _human(folder, name, kind, len(true)) for kind in wanted}
    if not len(classes) <= size <= len(true):
        raise UserError(f"Expected a size from {len(classes)} to {len(true)}, but got {size}.")
    generator = torch.Generator().manual_seed(seed)
    kept = stratified_sample(torch.from_numpy(true), size, generator).sort().values.numpy()
    kept_labels = {kind: values[kept] for kind, values in labels.items()}
    return LabelledImages(
        archive.train_images[kept], true[kept], kept_labels, archive.test_images, archive.test_labels, classes
    )


def _human(folder: Path, name: str, kind: str, count: int) -> np.ndarray:
    """The labels `kind` of all `count` training images of the part."""
    path = folder / "cifarn" / f"{name}n-train-{PART}.npz"
    labels = npz.load(path).get(kind)
    if labels is None or labels.shape != (count,):
        got = "none" if labels is None else f"an array of shape {labels.shape}"
        raise UserError(f"Expected '{path}' to hold {count} labels `{kind}`, but got {got}.")
    return labels.astype(np.int64)
