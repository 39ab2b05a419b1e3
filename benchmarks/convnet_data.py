r"""A few small CIFAR-10 images with true or human labels, on which a small convnet trains in a minute.

    LABO_DATA=DATA python benchmarks/convnet_data.py --output FOLDER

    labo compare image --data FOLDER/convnet-worse.npz --model convnet --epochs 20
    labo compare image --data FOLDER/convnet-worse.npz --model convnet --epochs 20 --set augment=none

Writes FOLDER/convnet-KIND.npz for each kind of labels, with the same images: train_images, train_labels, test_images,
test_labels and classes. Training images are drawn once, classes in proportion, and have the labels of that kind; all
10,000 test images have the true ones. There is no validation part: the task's seed draws a tenth of the training
images, which then have labels of the same kind (`--option validation_size=N` draws N). Images are 16 x 16 pixels, the
means of squares of 2 x 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cifar_labels
import numpy as np

NAME, FACTOR = "cifar10", 2


def main() -> None:
    """Write a file for each kind of labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the folder of the images; by default the one that LABO_DATA names")
    parser.add_argument("--images", type=int, default=5_000, help="of the training set")
    parser.add_argument("--labels", default="true,worse", help="kinds of labels with commas between them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    kinds = tuple(asked.labels.split(","))
    images = cifar_labels.read(NAME, asked.images, asked.seed, kinds=kinds, data=asked.data)
    asked.output.mkdir(parents=True, exist_ok=True)
    for kind, found in parts(images).items():
        path = asked.output / f"convnet-{kind}.npz"
        np.savez_compressed(path, **found)
        wrong = float((images.labels[kind] != images.true).mean())
        print(f"{path}: {len(images.train)} training images, {wrong:.1%} of their labels wrong")


def parts(images: cifar_labels.LabelledImages) -> dict[str, dict[str, Any]]:
    """The arrays of each kind's file, as the task `image` reads them."""
    train, test = (pooled(part, FACTOR) for part in (images.train, images.test))
    shared: dict[str, Any] = {"train_images": train, "test_images": test, "test_labels": images.test_labels}
    shared["classes"] = np.array(images.classes)
    return {kind: {**shared, "train_labels": labels} for kind, labels in images.labels.items()}


def pooled(images: np.ndarray, factor: int) -> np.ndarray:
    """Images uint8 (N, H, W, C), sides divided by `factor`: the rounded means of its squares."""
    count, height, width, channels = images.shape
    squares = images.reshape(count, height // factor, factor, width // factor, factor, channels)
    return np.rint(squares.mean((2, 4), dtype=np.float32)).astype(np.uint8)


if __name__ == "__main__":
    main()
