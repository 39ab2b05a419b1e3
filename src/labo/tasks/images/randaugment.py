"""RandAugment, and where kornia comes in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from labo.errors import UserError

STRONGEST = 30  # the scale of magnitudes


class RandAugment:
    """Operations drawn for each image by itself from the paper's fourteen, identity among them, at one strength.

    More magnitude is always more change: colour, contrast, brightness and sharpness go up or down by it (0.9 of 1 at
    30), and solarizing starts at darker pixels. kornia's class would draw the operations once for a batch, and leave
    colours as they are at half of its scale; here its operations are each done to the images that drew them. Colour,
    contrast and brightness are blends with grey, with the mean and with black, as Pillow has them and kornia has not.

    Source: Cubuk et al., *RandAugment: Practical Automated Data Augmentation*, 2020, figure 2.
    """

    # kornia's names, with what it is to make of magnitudes 0 and 30.
    PLAIN = (
        ("auto_contrast", 0, 1),
        ("equalize", 0, 1),
        ("rotate", -30.0, 30.0),
        ("posterize", 4.0, 8.0),
        ("shear_x", -0.3, 0.3),
        ("shear_y", -0.3, 0.3),
        ("translate_x", -0.3, 0.3),
        ("translate_y", -0.3, 0.3),
    )
    NAMES = (*(name for name, _, _ in PLAIN), "solarize", "sharpness", "color", "contrast", "brightness")

    def __init__(self, count: int, magnitude: int) -> None:
        make = kornia().auto.RandAugment
        self.count = count
        # Each operation has two places in the draw; those that go up or down differ in the two.
        self.operations: list[Callable[[Tensor], Tensor]] = []
        for entry in self.PLAIN:
            self.operations += [make(n=1, m=magnitude, policy=[[entry]])] * 2
        self.operations += [make(n=1, m=STRONGEST - magnitude, policy=[[("solarize", 0.0, 1.0)]])] * 2
        signs = (-1, 1)
        middles = [(STRONGEST + sign * magnitude) / 2 for sign in signs]  # of kornia's scale, where 15 changes nothing
        self.operations += [make(n=1, m=middle, policy=[[("sharpness", 0.1, 1.9)]]) for middle in middles]
        factors = [1 + 0.9 * sign * magnitude / STRONGEST for sign in signs]
        self.operations += [
            partial(blend, factor=factor) for blend in (_color, _contrast, _brightness) for factor in factors
        ]

    def __call__(self, features: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to the same."""
        features = features.clone()
        for _ in range(self.count):
            drawn = torch.randint(len(self.operations) + 2, (len(features),))  # past the last two lies the identity
            for operation in dict.fromkeys(self.operations):
                places = torch.tensor([place for place, other in enumerate(self.operations) if other is operation])
                rows = torch.nonzero(torch.isin(drawn, places)).flatten().to(features.device)
                if len(rows):
                    features[rows] = operation(features[rows]).clamp(0, 1)
        return features


def _grey(features: Tensor) -> Tensor:
    red, green, blue = features.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def _color(features: Tensor, factor: float) -> Tensor:
    return torch.lerp(_grey(features), features, factor)


def _contrast(features: Tensor, factor: float) -> Tensor:
    return torch.lerp(_grey(features).mean((2, 3), keepdim=True), features, factor)


def _brightness(features: Tensor, factor: float) -> Tensor:
    return factor * features


def kornia() -> Any:
    """Kornia's augmentations.

    Raises:
        UserError: they do not import, or are older than 0.9, whose RandAugment turns half of the rotations off.
    """
    needed = "This augmentation needs kornia 0.9 or newer, {}; the extra `image` has it under Python 3.11 or newer."
    try:
        import kornia
        import kornia.augmentation.auto
    except Exception as error:  # a part of it built for another torch fails in ways of its own
        raise UserError(needed.format(f"which does not import here ({' '.join(str(error).split())})")) from error
    if tuple(map(int, kornia.__version__.split(".")[:2])) < (0, 9):
        raise UserError(needed.format(f"but {kornia.__version__} is here"))
    return kornia.augmentation
