"""CIFAR-10N and CIFAR-100N: labels of the CIFAR training images by human annotators.

Source: Wei et al., *Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations*, ICLR 2022;
github.com/UCSC-REAL/cifar-10-100n. The published files are CIFAR-10_human.pt and CIFAR-100_human.pt.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labo.errors import UserError, first_line, unknown
from labo.tasks import data_files, npz_files
from labo.tasks.images.dataset import ImageSet
from labo.wording import counted

# By data set, its kinds of labels with their keys in the published file.
KINDS: dict[str, dict[str, str]] = {
    "cifar10": {
        "aggre": "aggre_label",
        "random1": "random_label1",
        "random2": "random_label2",
        "random3": "random_label3",
        "worse": "worse_label",
    },
    "cifar100": {"noisy": "noisy_label"},
}
_CLEAN, _INDEX = "clean_label", "index"
_PUBLISHED = {"cifar10": "CIFAR-10_human.pt", "cifar100": "CIFAR-100_human.pt"}
# Labels of other images, or in another order, agree with the true ones by chance; the worst published ones by 60%.
_MIN_AGREEMENT = 0.5


def files(name: str, data: str | None) -> list[Path]:
    """The files with human labels of the set `name`: the published one, or arrays NAMEn-train-*.npz of its parts.

    Raises:
        UserError: there are none.
    """
    roots = [*data_files.search_roots(data), *(data_files.search_roots(None) if data else [])]
    roots = [root if root.is_dir() else root.parent for root in roots]
    for folder in [each for root in roots for each in (root, root / "cifarn", root.parent)]:
        if (published := folder / _PUBLISHED[name]).is_file():
            return [published]
        if parts := sorted(folder.glob(f"{name}n-train-*.npz")):
            return parts
    raise UserError(
        f"No human labels of {name} {data_files.describe_location(data)}: put {_PUBLISHED[name]} of "
        "github.com/UCSC-REAL/cifar-10-100n beside the images."
    )


def check_kind(name: str, kind: Any) -> None:
    """Refuse kinds of labels that the set does not have.

    Raises:
        UserError: it has no such kind.
    """
    if kind not in KINDS[name]:
        raise unknown("kind of label", str(kind), KINDS[name])


def relabelled(images: ImageSet, name: str, kind: str, paths: list[Path]) -> ImageSet:
    """The set with human labels of the training part as its `given` labels; images without one are left out.

    Args:
        images: with true labels, in the published order.
        name: of the set.
        kind: of the labels, a key of `KINDS`.
        paths: of `files`.

    Raises:
        UserError: a file is damaged, or its labels are not of these images.
    """
    train = images.parts["train"]
    index, given, clean = _read(paths, name, kind, len(train.labels))
    true = train.labels[index]
    if clean is not None and not np.array_equal(clean, true):
        raise UserError(
            f"The true labels in '{paths[0]}' are not those of the images (they differ for "
            f"{counted(int((clean != true).sum()), 'image')}): give the images in their published order."
        )
    if given.min() < 0 or given.max() >= len(images.classes):
        raise UserError(
            f"Expected labels `{kind}` in '{paths[0]}' from 0 to {len(images.classes) - 1}, but got {given.min()} to "
            f"{given.max()}."
        )
    if (agreement := float((given == true).mean())) < _MIN_AGREEMENT:
        raise UserError(
            f"Only {agreement:.0%} of the labels `{kind}` in '{paths[0]}' agree with the true ones: they are of other "
            "images, or the images are not in their published order."
        )
    notes = [f"Human labels `{kind}`: {1 - agreement:.1%} of them are wrong; the test labels are the true ones."]
    if len(index) < len(train.labels):
        notes.append(f"{len(train.labels) - len(index):,} training images have no human label and are left out.")
    part = replace(train, images=_rows(train.images, index), labels=true, given=given, source_indices=index)
    return replace(images, parts={**images.parts, "train": part}, notes=(*images.notes, *notes))


def _rows(images: Any, index: np.ndarray) -> Any:
    if len(index) == len(images):
        return images
    if not isinstance(images, np.ndarray):
        raise UserError("Human labels of a part of the images need the published archive, not a data set of the hub.")
    return images[index]


def _read(paths: list[Path], name: str, kind: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(positions in the training set, ascending, the labels there, the true labels if the file has them)."""
    if paths[0].suffix == ".pt":
        content = _load_published(paths[0])
        given, clean = (_labels(content, key, paths[0]) for key in (KINDS[name][kind], _CLEAN))
        if len(given) != count or len(clean) != count:
            raise UserError(f"'{paths[0]}' holds {counted(len(given), 'label')} of {counted(count, 'training image')}.")
        return np.arange(count), given, clean
    parts = [(path, npz_files.load(path)) for path in paths]
    index = np.concatenate([_labels(arrays, _INDEX, path) for path, arrays in parts])
    given = np.concatenate([_labels(arrays, kind, path) for path, arrays in parts])
    if len(index) != len(given) or len(np.unique(index)) != len(index) or index.min() < 0 or index.max() >= count:
        raise UserError(
            f"Expected `{_INDEX}` in '{paths[0]}' to be a position from 0 to {count - 1} in the training set for each "
            f"of {counted(len(given), 'label')}."
        )
    order = index.argsort()
    return index[order], given[order], None


def _labels(content: Mapping[str, Any], key: str, path: Path) -> np.ndarray:
    labels = np.asarray(content.get(key, []))
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise UserError(f"Expected '{path}' to hold whole numbers `{key}`, one for each image.")
    return labels.astype(np.int64)


def _load_published(path: Path) -> Mapping[str, Any]:
    """The arrays in a file of torch.save; nothing but plain arrays and tensors is unpickled.

    Raises:
        UserError: it holds anything else, or is damaged.
    """
    from numpy._core import multiarray  # what plain arrays are rebuilt with

    rebuild: Any = multiarray._reconstruct  # pyright: ignore[reportAttributeAccessIssue]
    named = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    kinds = [np.dtypes.Int64DType, np.dtypes.Int32DType, np.dtypes.Int16DType, np.dtypes.UInt8DType]
    allowed: list[Any] = [*named, np.ndarray, np.dtype, *kinds, (codecs.encode, "_codecs.encode")]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the error depends on where it is damaged
        raise UserError(f"Cannot read '{path}': {first_line(error)}.") from error
    if not isinstance(content, Mapping):
        raise UserError(f"Expected '{path}' to hold labels by name, but got {type(content).__name__}.")
    return content
