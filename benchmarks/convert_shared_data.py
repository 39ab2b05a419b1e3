r"""Convert the project's shared CIFAR and Tiny-ImageNet archives to .npz files that the task `image` reads.

    python benchmarks/convert_shared_data.py SHARED --output FOLDER

    labo compare image --data FOLDER/cifar100.npz --train-size 10000

Writes FOLDER/NAME.npz for each set in SHARED, with the arrays train_images, train_labels, test_images, test_labels and
classes; images are uint8 (N, H, W, 3) in the order of the archive, so that a seed of `image` draws the splits of the
measurements in `results/`. The benchmarks that use the human labels of CIFAR-10N and CIFAR-100N read the archive itself
through `read_archive`.

The archive keeps CIFAR as uint8 differences modulo 256, `d` (3, N, H, W), with labels `y`, in up to three files:
NAME-train-a.npz and NAME-train-b.npz, class-balanced parts of the training set, and NAME-test.npz, with the names
`classes`. Tiny-ImageNet is one file of JPEG files end to end, `jpeg_PART`, with offsets `off_PART` and labels `y_PART`.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from labo.errors import UserError
from labo.tasks.images import npz

PARTS = ("a", "b")
CIFAR, TINY_IMAGENET = ("cifar10", "cifar100"), "tiny_imagenet"


@dataclass(frozen=True)
class Archive:
    """Images uint8 (N, H, W, 3) and class indices int64 (N,) to train and to test on, and the names of the classes."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]


def main() -> None:
    """Convert all sets in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder of the archives")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    for path in convert(arguments.shared, arguments.output):
        print(path)


def convert(shared: Path, output: Path) -> list[Path]:
    """Write an .npz file for each set in the folder `shared`; returns the files.

    Raises:
        UserError: there is no set, or a file is damaged.
    """
    names = [name for name in (*CIFAR, TINY_IMAGENET) if _files(shared, name, ())]
    if not names:
        raise UserError(f"Expected '{shared}' to hold cifar10-train-a.npz and the like, but there is no set.")
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in names:
        archive = read_archive(shared, name)
        arrays: dict[str, Any] = {**vars(archive), "classes": np.array(archive.classes)}
        paths.append(output / f"{name}.npz")
        np.savez_compressed(paths[-1], **arrays)
    return paths


def shared_folder(data: str | None) -> Path:
    """The folder of the archives: `data`, else the one that LABO_DATA names.

    Raises:
        UserError: neither is given.
    """
    folder = data or os.environ.get("LABO_DATA")
    if not folder:
        raise UserError("Expected --data or LABO_DATA to name the folder of the archives.")
    return Path(folder)


def read_archive(shared: Path, name: str, parts: Sequence[str] = ()) -> Archive:
    """The set `name` of the archive.

    Args:
        shared: the folder of the archives.
        name: "cifar10", "cifar100" or "tiny_imagenet".
        parts: the training files of CIFAR to read, of "a" and "b"; by default those that exist.

    Raises:
        UserError: a file is missing or damaged.
    """
    files = _files(shared, name, parts)
    if not files:
        wanted = f"{name}.npz" if name == TINY_IMAGENET else f"{name}-train-{'|'.join(parts or PARTS)}.npz and the test"
        raise UserError(f"Expected '{shared}' to hold {wanted}.")
    if name == TINY_IMAGENET:
        return _read_jpegs(files[0])
    loaded = [npz.load(path) for path in files]
    images = [from_differences(arrays["d"]) for arrays in loaded]
    labels = [arrays["y"].astype(np.int64) for arrays in loaded]
    classes = tuple(str(label) for label in loaded[-1]["classes"])
    return Archive(np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1], classes)


def from_differences(differences: np.ndarray) -> np.ndarray:
    """Images uint8 (N, H, W, 3) from uint8 (3, N, H, W), modulo 256.

    The planes are red - green, green and blue - green, differenced along rows and then along columns; cumulative sums
    undo both.
    """
    planes = np.cumsum(differences, axis=3, dtype=np.uint8)
    np.cumsum(planes, axis=2, dtype=np.uint8, out=planes)
    red, green, blue = planes
    return np.stack([red + green, green, blue + green], axis=-1)


def _files(shared: Path, name: str, parts: Sequence[str]) -> list[Path]:
    """The files of a set, the test file last; none if one is missing."""
    if name == TINY_IMAGENET:
        path = shared / f"{name}.npz"
        return [path] if path.is_file() else []
    train = [shared / f"{name}-train-{part}.npz" for part in parts or PARTS]
    existing = [path for path in train if path.is_file()]
    test = shared / f"{name}-test.npz"
    if not existing or (parts and existing != train) or not test.is_file():
        return []
    return [*existing, test]


def _read_jpegs(path: Path) -> Archive:
    from PIL import Image

    arrays = npz.load(path)

    def decode(part: str) -> np.ndarray:
        data, offsets = arrays[f"jpeg_{part}"], arrays[f"off_{part}"].tolist()
        files = [data[start:end].tobytes() for start, end in pairwise(offsets)]
        return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])

    labels = {part: arrays[f"y_{part}"].astype(np.int64) for part in ("train", "test")}
    classes = tuple(str(label) for label in arrays["classes"])
    return Archive(decode("train"), labels["train"], decode("test"), labels["test"], classes)


if __name__ == "__main__":
    main()
