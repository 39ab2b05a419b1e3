"""Augmentation of training batches: crops, flips, RandAugment, mixup, CutMix, random erasing.

All random numbers come from torch's global generator on the CPU, whatever device the images are on, so that a run
resumed with the state of that generator continues exactly. Crops and flips of small images need torch alone; the other
operations on single images use kornia.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from labo.errors import UserError, unknown
from labo.tasks.base import copy_to

AUGMENTATIONS = ("none", "standard", "randaugment")
# Images up to this size are padded by PADDING black pixels and cropped; larger ones get a random resized crop.
MAX_PADDED_SIZE, PADDING = 64, 4
# The value of erased pixels; black would be far from the mean of normalised images.
GREY = 0.5
# RandAugment's scale of magnitudes.
MAX_MAGNITUDE = 30

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class AugmentationSettings:
    """The settings of `Augmentation`.

    Args:
        augment: "none", "standard" (a random crop and a horizontal flip) or "randaugment" (these, then RandAugment).
        randaugment_count: number of operations per image.
        randaugment_magnitude: their magnitude, 1 to 29.
        mixup: the alpha of mixup's Beta(alpha, alpha); 0 is off.
        cutmix: the alpha of CutMix; 0 is off. With both on, each batch gets one of them, with equal probability.
        erasing: the probability that a rectangle of an image is erased.

    Raises:
        UserError: a setting is out of range.
    """

    augment: str = "none"
    randaugment_count: int = 2
    randaugment_magnitude: int = 9
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.augment not in AUGMENTATIONS:
            raise unknown("augment", self.augment, AUGMENTATIONS)
        for name, low, high in (
            ("randaugment_count", 1, 14),
            ("randaugment_magnitude", 1, MAX_MAGNITUDE - 1),
            ("mixup", 0, 1000),
            ("cutmix", 0, 1000),
            ("erasing", 0, 1),
        ):
            value = getattr(self, name)
            is_int = isinstance(getattr(AugmentationSettings, name), int)
            if (
                isinstance(value, bool)
                or not isinstance(value, int if is_int else (int, float))
                or not (low <= value <= high)
            ):
                kind = "a whole number" if is_int else "a number"
                raise UserError(f"Expected setting `{name}` to be {kind} from {low} to {high}, but got {value!r}.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> AugmentationSettings:
        """From a run's settings; other keys are ignored."""
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})


DEFAULTS: dict[str, Any] = asdict(AugmentationSettings())


class Augmentation:
    """Maps a training batch to an augmented batch of the same size, float32 in [0, 1].

    Labels stay class indices (N,) unless mixup or CutMix is on (`soft`); then they are probabilities (N, C) float32.

    Args:
        settings: see `AugmentationSettings`; other keys are ignored.
        image_size: H = W, in pixels.
        classes: C.

    Raises:
        UserError: a setting is out of range, or kornia is needed and cannot be imported.

    Sources: He et al., CVPR 2016 (padding by 4 and flips); Cubuk et al., *RandAugment*, 2020; Zhang et al., *mixup*,
        ICLR 2018; Yun et al., *CutMix*, ICCV 2019; Zhong et al., *Random Erasing*, AAAI 2020.

    Example:
        >>> augment = Augmentation({"augment": "standard", "mixup": 0.2}, image_size=32, classes=10)
        >>> features, labels = augment(torch.rand(4, 3, 32, 32), torch.tensor([1, 2, 3, 4]))
        >>> features.shape, labels.shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4, 10]))
    """

    def __init__(self, settings: Mapping[str, Any], image_size: int, classes: int) -> None:
        self.settings, self.image_size, self.classes = AugmentationSettings.of(settings), image_size, classes
        self.soft = self.settings.mixup > 0 or self.settings.cutmix > 0
        self._steps = _steps(self.settings, image_size)

    @torch.no_grad()
    def __call__(self, features: Tensor, labels: Tensor) -> Batch:
        """The batch to train on.

        Args:
            features: images (N, 3, H, W), uint8, or floating point in [0, 1].
            labels: class indices (N,).

        Raises:
            UserError: features or labels have another shape or dtype.
        """
        self._check(features, labels)
        features = features.float() / 255 if features.dtype == torch.uint8 else features.float()
        for step in self._steps:
            features = step(features)
        if not self.soft:
            return features, labels
        return self._mix(features, F.one_hot(labels.long(), self.classes).float())

    def _mix(self, features: Tensor, labels: Tensor) -> Batch:
        both = self.settings.mixup > 0 and self.settings.cutmix > 0
        use_cutmix = bool(torch.rand(()) < 0.5) if both else self.settings.cutmix > 0
        mix, alpha = (cutmix, self.settings.cutmix) if use_cutmix else (mixup, self.settings.mixup)
        return mix(features, labels, alpha)

    def _check(self, features: Tensor, labels: Tensor) -> None:
        size = (3, self.image_size, self.image_size)
        if features.dim() != 4 or features.shape[1:] != size or features.dtype not in _IMAGE_DTYPES:
            raise UserError(
                f"Expected argument `features` to be uint8 or floating point of shape {('N', *size)}, but got "
                f"{features.dtype} of shape {tuple(features.shape)}."
            )
        if labels.shape != features.shape[:1] or labels.dtype.is_floating_point:
            raise UserError(
                f"Expected argument `labels` to be class indices of shape ({len(features)},), but got {labels.dtype} "
                f"of shape {tuple(labels.shape)}."
            )


_IMAGE_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def mixup(features: Tensor, labels: Tensor, alpha: float) -> Batch:
    """mixup: lambda x + (1 - lambda) x' of each image and label with another's, one lambda from Beta(alpha, alpha).

    Args:
        features: (N, C, H, W).
        labels: probabilities (N, K).
        alpha: above 0.
    """
    lam, partner = _sample_beta(alpha), copy_to(torch.randperm(len(features)), features.device)
    return features.lerp(features[partner], 1 - lam), labels.lerp(labels[partner], 1 - lam)


def cutmix(features: Tensor, labels: Tensor, alpha: float) -> Batch:
    """CutMix: a rectangle of each image is replaced by another image's; labels are mixed in proportion to the areas.

    The rectangle, one for the batch, has 1 - lambda of the area before it is clipped to the image, lambda from
    Beta(alpha, alpha). Arguments as in `mixup`.
    """
    lam, partner = _sample_beta(alpha), copy_to(torch.randperm(len(features)), features.device)
    height, width = features.shape[2:]
    top, bottom = _random_span(height, lam)
    left, right = _random_span(width, lam)
    features = features.clone()
    features[:, :, top:bottom, left:right] = features[partner, :, top:bottom, left:right]
    return features, labels.lerp(labels[partner], (bottom - top) * (right - left) / (height * width))


def crop_and_flip(features: Tensor, padding: int = PADDING) -> Tensor:
    """Each image padded with black, cropped to its size at a random position, and flipped with probability 1/2."""
    count, channels, height, width = features.shape
    top, left = torch.randint(2 * padding + 1, (2, count, 1))
    flip = torch.rand(count, 1) < 0.5
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(flip, columns.flip(1), columns)
    device = features.device
    return F.pad(features, (padding,) * 4)[
        torch.arange(count, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        copy_to(rows, device)[:, None, :, None],
        copy_to(columns, device)[:, None, None, :],
    ]


class RandAugment:
    """`count` operations per image, drawn from the paper's fourteen (identity included), at one magnitude.

    A larger magnitude is always a larger change: colour, contrast, brightness and sharpness are raised or lowered by it
    (by 0.9 of 1 at 30), and the solarization threshold falls. kornia's own class draws the operations once per batch,
    and its colour operations change nothing at the middle of its scale; here its operations are applied to the images
    that drew them. Colour, contrast and brightness are blends with grey, with the mean and with black, as in Pillow.

    Source: Cubuk et al., *RandAugment: Practical Automated Data Augmentation*, 2020, figure 2.
    """

    # kornia's names, with its parameters at magnitudes 0 and 30.
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
        # Each operation has two slots in the draw; the signed ones have one slot per sign.
        self.operations: list[Callable[[Tensor], Tensor]] = []
        for entry in self.PLAIN:
            self.operations += [make(n=1, m=magnitude, policy=[[entry]])] * 2
        self.operations += [make(n=1, m=MAX_MAGNITUDE - magnitude, policy=[[("solarize", 0.0, 1.0)]])] * 2
        signs = (-1, 1)
        middles = [(MAX_MAGNITUDE + sign * magnitude) / 2 for sign in signs]  # on kornia's scale, 15 is no change
        self.operations += [make(n=1, m=middle, policy=[[("sharpness", 0.1, 1.9)]]) for middle in middles]
        factors = [1 + 0.9 * sign * magnitude / MAX_MAGNITUDE for sign in signs]
        self.operations += [
            partial(blend, factor=factor)
            for blend in (_adjust_color, _adjust_contrast, _adjust_brightness)
            for factor in factors
        ]

    def __call__(self, features: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to the same."""
        features = features.clone()
        for _ in range(self.count):
            drawn = torch.randint(len(self.operations) + 2, (len(features),))  # the last two slots are the identity
            for operation in dict.fromkeys(self.operations):
                slots = torch.tensor([slot for slot, other in enumerate(self.operations) if other is operation])
                rows = torch.nonzero(torch.isin(drawn, slots)).flatten()
                if len(rows):
                    rows = copy_to(rows, features.device)
                    features[rows] = operation(features[rows]).clamp(0, 1)
        return features


def _to_grey(features: Tensor) -> Tensor:
    red, green, blue = features.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def _adjust_color(features: Tensor, factor: float) -> Tensor:
    return torch.lerp(_to_grey(features), features, factor)


def _adjust_contrast(features: Tensor, factor: float) -> Tensor:
    return torch.lerp(_to_grey(features).mean((2, 3), keepdim=True), features, factor)


def _adjust_brightness(features: Tensor, factor: float) -> Tensor:
    return factor * features


def kornia() -> Any:
    """The module `kornia.augmentation`.

    Raises:
        UserError: it cannot be imported, or is older than 0.9, whose RandAugment skips half of the rotations.
    """
    message = "This augmentation needs kornia 0.9 or newer, {}; the extra `image` has it under Python 3.11 or newer."
    try:
        import kornia
        import kornia.augmentation.auto
    except Exception as error:  # a binary built for another torch raises other errors than ImportError
        raise UserError(message.format(f"which does not import here ({' '.join(str(error).split())})")) from error
    if tuple(map(int, kornia.__version__.split(".")[:2])) < (0, 9):
        raise UserError(message.format(f"but {kornia.__version__} is here"))
    return kornia.augmentation


def _sample_beta(alpha: float) -> float:
    concentration = torch.tensor(float(alpha))
    return torch.distributions.Beta(concentration, concentration).sample().item()


def _random_span(size: int, lam: float) -> tuple[int, int]:
    """The side of a square of 1 - lam of the area, around a random centre, clipped to [0, size]."""
    half = int(size * (1 - lam) ** 0.5) / 2
    centre = int(torch.randint(size, ()))
    return max(0, int(centre - half)), min(size, int(centre + half))


def _steps(settings: AugmentationSettings, image_size: int) -> list[Callable[[Tensor], Tensor]]:
    """The operations on single images, in order."""
    steps: list[Callable[[Tensor], Tensor]] = []
    if settings.augment != "none":
        steps.append(crop_and_flip if image_size <= MAX_PADDED_SIZE else _resized_crop(image_size))
    if settings.augment == "randaugment":
        steps.append(RandAugment(settings.randaugment_count, settings.randaugment_magnitude))
    if settings.erasing > 0:
        steps.append(kornia().RandomErasing(p=settings.erasing, value=GREY))
    return steps


def _resized_crop(image_size: int) -> Callable[[Tensor], Tensor]:
    augmentations = kornia()
    crop = augmentations.RandomResizedCrop((image_size, image_size), cropping_mode="resample")
    flip = augmentations.RandomHorizontalFlip()
    return lambda features: flip(crop(features)).clamp(0, 1)
