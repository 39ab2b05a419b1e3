r"""CIFAR images as fixed features, learnt without labels: tables on which a small network trains in seconds.

    LABO_DATA=DATA python benchmarks/patch_features.py cifar10 --output FOLDER
    LABO_DATA=DATA python benchmarks/patch_features.py cifar100 --images 12500 --output FOLDER

    labo compare table --data FOLDER/cifar10-worse.npz --target y --split split --epochs 30 --set hidden=512 \
        --set layers=1 --set batch_size=128 --set learning_rate=1e-3 --set schedule=cosine

The features are those of Coates, Lee and Ng, *An Analysis of Single-Layer Networks in Unsupervised Feature Learning*,
AISTATS 2011: patches of 6 x 6 pixels, each normalised in brightness and contrast, whitened (ZCA); their distances to
the centres of k-means through the "triangle" activation, summed over the four quadrants of an image. Whitening and
centres come from random patches of the training images.

Writes FOLDER/NAME-KIND.npz for each kind of labels, with the same features: x (N, 4 * centres) float32, y the class and
split. Training images come first and have the labels of that kind, human ones among them; test images always have the
true ones. The split column says train and test, so that the task's seed draws a fifth of the training images to
validate, which then have labels of the same kind; with --validation N, N of them are marked here and are the same for
every seed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cifar_labels
import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from labo import machine
from labo.splitting import stratified

PATCH = 6
# Added to the variance of a patch, in squared grey levels of 0 to 255, and to the eigenvalues, as the source has them.
CONTRAST_OFFSET, WHITENING_OFFSET = 10.0, 0.1
ITERATIONS = 50
# So few images at a time that the distances of all their patches stay in the processor's cache.
IMAGES_AT_ONCE = 2


@dataclass(frozen=True)
class Dictionary:
    """What is learnt from patches (N, D): their `mean` (D,), the `whitening` (D, D) and the `centres` (K, D)."""

    mean: Tensor
    whitening: Tensor
    centres: Tensor


def main() -> None:
    """Make the features once and write a table for each kind of labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(cifar_labels.KINDS))
    parser.add_argument("--data", help="the folder of the images; by default the one that LABO_DATA names")
    parser.add_argument("--images", type=int, default=10_000, help="of the training set")
    parser.add_argument("--labels", help="kinds of labels with commas between them; by default all there are")
    parser.add_argument("--centres", type=int, default=400)
    parser.add_argument("--patches", type=int, default=100_000, help="to learn whitening and centres from")
    parser.add_argument("--validation", type=int, default=0, help="training images to mark as validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    threadpool_limits(asked.threads)  # scikit-learn's
    kinds = tuple(asked.labels.split(",")) if asked.labels else None
    images = cifar_labels.read(asked.name, asked.images, asked.seed, kinds=kinds, data=asked.data)
    dictionary = learn(images.train, asked.patches, asked.centres, asked.seed)
    features = np.concatenate([encode(part, dictionary) for part in (images.train, images.test)])
    asked.output.mkdir(parents=True, exist_ok=True)
    for kind, table in tables(images, features, asked.validation, asked.seed).items():
        path = asked.output / f"{asked.name}-{kind}.npz"
        np.savez(path, **table)
        wrong = float((images.labels[kind] != images.true).mean())
        print(f"{path}: {len(features)} rows, {features.shape[1]} features, {wrong:.1%} of the training labels wrong")


def tables(
    images: cifar_labels.LabelledImages, features: np.ndarray, validation: int, seed: int
) -> dict[str, dict[str, Any]]:
    """The arrays of each kind's file: x (N, D), y (N,) and split (N,), training images first, then those to test.

    `validation` training images are marked as such, true classes in proportion; which ones depends on the seed alone,
    so that they are the same for all kinds.
    """
    split = np.array(["train"] * len(images.train) + ["test"] * len(images.test), dtype="U10")
    if validation:
        sizes = len(images.train) - validation, validation
        generator = torch.Generator().manual_seed(seed)
        split[stratified(torch.from_numpy(images.true), sizes, generator)[1].numpy()] = "validation"
    found = {}
    for kind, labels in images.labels.items():
        y = images.names(np.concatenate([labels, images.test_labels]))
        found[kind] = {"x": features, "y": y, "split": split}
    return found


def learn(images: np.ndarray, patches: int, centres: int, seed: int) -> Dictionary:
    """Whitening and centres from random patches of images uint8 (N, H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = normalised(random_patches(images, patches, generator))
    mean = drawn.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(drawn.T.double()))
    whitening = (vectors / (values + WHITENING_OFFSET).sqrt() @ vectors.T).float()
    fitted = KMeans(centres, n_init="auto", max_iter=ITERATIONS, random_state=seed).fit(
        ((drawn - mean) @ whitening).numpy()
    )
    return Dictionary(mean, whitening, torch.from_numpy(fitted.cluster_centers_))


def random_patches(images: np.ndarray, count: int, generator: torch.Generator) -> Tensor:
    """Patches (count, 3 * PATCH * PATCH) drawn with replacement, in the layout of `all_patches`."""
    height, width = images.shape[1:3]
    which, top, left = (
        torch.randint(size, (count, 1, 1), generator=generator)
        for size in (len(images), height - PATCH + 1, width - PATCH + 1)
    )
    step = torch.arange(PATCH)
    found = torch.from_numpy(images)[which, top + step[:, None], left + step]
    return found.permute(0, 3, 1, 2).reshape(count, -1).float()


def all_patches(images: Tensor) -> Tensor:
    """Every patch of images uint8 (N, H, W, 3): (N, places, 3 * PATCH * PATCH) float32, places row by row."""
    return F.unfold(images.permute(0, 3, 1, 2).float(), PATCH).transpose(1, 2)


def normalised(patches: Tensor) -> Tensor:
    """Patches (…, D) of mean 0 and about the same contrast."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return (patches - mean) / (variance + CONTRAST_OFFSET).sqrt()


def encode(images: np.ndarray, dictionary: Dictionary) -> np.ndarray:
    """The features (N, 4 * K) float32 of images uint8 (N, H, W, 3): the quadrants one after the other."""
    pixels, centres = torch.from_numpy(images), dictionary.centres
    rows, columns = (size - PATCH + 1 for size in images.shape[1:3])
    middle, centre = (rows + 1) // 2, (columns + 1) // 2
    lengths = centres.square().sum(1)
    found = torch.empty(len(images), 4, len(centres))
    for start in range(0, len(images), IMAGES_AT_ONCE):
        white = (
            normalised(all_patches(pixels[start : start + IMAGES_AT_ONCE])) - dictionary.mean
        ) @ dictionary.whitening
        squares = torch.baddbmm(
            white.square().sum(2, keepdim=True) + lengths, white, centres.T.expand(len(white), -1, -1), alpha=-2
        )
        distance = squares.clamp_(min=0).sqrt_()
        # "Triangle": how much nearer than the average centre, 0 for the far half.
        near = (distance.mean(2, keepdim=True) - distance).relu_()
        places = near.view(len(white), rows, columns, -1)
        quadrants = [part for half in places.tensor_split([middle], 1) for part in half.tensor_split([centre], 2)]
        found[start : start + IMAGES_AT_ONCE] = torch.stack([part.sum((1, 2)) for part in quadrants], 1)
    return found.flatten(1).numpy()


if __name__ == "__main__":
    main()
