"""What is done to a batch of training images: crops, flips, RandAugment, mixing, erasing.

Every draw is made on the CPU by torch's global generator, whatever device the images are on, so that a run that is
resumed with the state of that generator goes on as it would have. Crops and flips of small images are exact copies of
pixels and need nothing but torch; the rest of the changes to single images is kornia's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from labo.errors import UserError, unknown
from labo.tasks.images.randaugment import STRONGEST, RandAugment, kornia

AUGMENTATIONS = ("none", "standard", "randaugment")
# Images up to this size are padded by PADDING pixels of black and cropped; of larger ones a part is resized.
LARGEST_PADDED, PADDING = 64, 4
# What erased places become; black would be far from the average of normalised images.
GREY = 0.5

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Settings:
    """What `Augmentation` is told.

    Args:
        augment: "none", "standard" (a random crop and a horizontal flip) or "randaugment" (these, then RandAugment).
        randaugment_count: operations on each image.
        randaugment_magnitude: their strength, 1 to 29.
        mixup: the alpha of mixup's Beta(alpha, alpha); 0 is off.
        cutmix: the alpha of CutMix; 0 is off. With both on, a coin decides for each batch.
        erasing: the share of images a rectangle of which is erased.

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
        for name, least, most in (
            ("randaugment_count", 1, 14),
            ("randaugment_magnitude", 1, STRONGEST - 1),
            ("mixup", 0, 1000),
            ("cutmix", 0, 1000),
            ("erasing", 0, 1),
        ):
            value = getattr(self, name)
            whole = isinstance(getattr(Settings, name), int)
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else (int, float))
                or not (least <= value <= most)
            ):
                kind = "a whole number" if whole else "a number"
                raise UserError(f"Expected setting `{name}` to be {kind} from {least} to {most}, but got {value!r}.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Settings:
        """Those among `settings`; what else is there is not for augmentation."""
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})


DEFAULTS: dict[str, Any] = asdict(Settings())


class Augmentation:
    """Called with a training batch; gives another batch of the same size, float32 in [0, 1].

    Labels stay class indices (N,) unless mixup or CutMix is on (`soft`); then they are probabilities (N, C) float32.

    Args:
        settings: see `Settings`; whatever else is in it is not looked at.
        image_size: H = W, in pixels.
        classes: C.

    Raises:
        UserError: a setting is out of range, or kornia is needed and does not import.

    Sources: He et al., CVPR 2016 (padding by 4 and flips); Cubuk et al., *RandAugment*, 2020; Zhang et al., *mixup*,
        ICLR 2018; Yun et al., *CutMix*, ICCV 2019; Zhong et al., *Random Erasing*, AAAI 2020.

    Example:
        >>> augment = Augmentation({"augment": "standard", "mixup": 0.2}, image_size=32, classes=10)
        >>> features, labels = augment(torch.rand(4, 3, 32, 32), torch.tensor([1, 2, 3, 4]))
        >>> features.shape, labels.shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4, 10]))
    """

    def __init__(self, settings: Mapping[str, Any], image_size: int, classes: int) -> None:
        self.settings, self.image_size, self.classes = Settings.of(settings), image_size, classes
        self.soft = self.settings.mixup > 0 or self.settings.cutmix > 0
        self._steps = _steps(self.settings, image_size)

    @torch.no_grad()
    def __call__(self, features: Tensor, labels: Tensor) -> Batch:
        """The batch to train on.

        Args:
            features: images (N, 3, H, W), uint8, or floating point in [0, 1].
            labels: class indices (N,).

        Raises:
            UserError: features or labels are of another shape or kind.
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
        coin = bool(torch.rand(()) < 0.5) if both else self.settings.cutmix > 0
        mix, alpha = (cutmix, self.settings.cutmix) if coin else (mixup, self.settings.mixup)
        return mix(features, labels, alpha)

    def _check(self, features: Tensor, labels: Tensor) -> None:
        size = (3, self.image_size, self.image_size)
        if features.dim() != 4 or features.shape[1:] != size or features.dtype not in _IMAGES:
            raise UserError(
                f"Expected argument `features` to be uint8 or floating point of shape {('N', *size)}, but got "
                f"{features.dtype} of shape {tuple(features.shape)}."
            )
        if labels.shape != features.shape[:1] or labels.dtype.is_floating_point:
            raise UserError(
                f"Expected argument `labels` to be class indices of shape ({len(features)},), but got {labels.dtype} "
                f"of shape {tuple(labels.shape)}."
            )


_IMAGES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def mixup(features: Tensor, labels: Tensor, alpha: float) -> Batch:
    """Each image and label mixed with another's: lambda x + (1 - lambda) x', with one lambda from Beta(alpha, alpha).

    Args:
        features: (N, C, H, W).
        labels: probabilities (N, K).
        alpha: above 0.
    """
    share, partner = _beta(alpha), torch.randperm(len(features)).to(features.device)
    return features.lerp(features[partner], 1 - share), labels.lerp(labels[partner], 1 - share)


def cutmix(features: Tensor, labels: Tensor, alpha: float) -> Batch:
    """A rectangle of each image replaced by another's; the labels are mixed by the areas.

    The rectangle has the share 1 - lambda of the area, lambda from Beta(alpha, alpha), before its ends outside of the
    image are cut off; one rectangle for the batch. Arguments as in `mixup`.
    """
    share, partner = _beta(alpha), torch.randperm(len(features)).to(features.device)
    height, width = features.shape[2:]
    top, bottom = _span(height, share)
    left, right = _span(width, share)
    features = features.clone()
    features[:, :, top:bottom, left:right] = features[partner, :, top:bottom, left:right]
    return features, labels.lerp(labels[partner], (bottom - top) * (right - left) / (height * width))


def crop_and_flip(features: Tensor, padding: int = PADDING) -> Tensor:
    """Each image padded with black, cut to its size at a random place, and mirrored in half of the cases."""
    count, channels, height, width = features.shape
    top, left = torch.randint(2 * padding + 1, (2, count, 1))
    mirrored = torch.rand(count, 1) < 0.5
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    at = features.device
    return F.pad(features, (padding,) * 4)[
        torch.arange(count, device=at)[:, None, None, None],
        torch.arange(channels, device=at)[:, None, None],
        rows.to(at)[:, None, :, None],
        columns.to(at)[:, None, None, :],
    ]


def _beta(alpha: float) -> float:
    both = torch.tensor(float(alpha))
    return torch.distributions.Beta(both, both).sample().item()


def _span(size: int, share: float) -> tuple[int, int]:
    """The side of a square of 1 - share of the area, around a random place, within [0, size]."""
    half = int(size * (1 - share) ** 0.5) / 2
    centre = int(torch.randint(size, ()))
    return max(0, int(centre - half)), min(size, int(centre + half))


def _steps(settings: Settings, image_size: int) -> list[Callable[[Tensor], Tensor]]:
    """What is done to single images, in order."""
    steps: list[Callable[[Tensor], Tensor]] = []
    if settings.augment != "none":
        steps.append(crop_and_flip if image_size <= LARGEST_PADDED else _resized_crop(image_size))
    if settings.augment == "randaugment":
        steps.append(RandAugment(settings.randaugment_count, settings.randaugment_magnitude))
    if settings.erasing > 0:
        steps.append(kornia().RandomErasing(p=settings.erasing, value=GREY))
    return steps


def _resized_crop(image_size: int) -> Callable[[Tensor], Tensor]:
    made = kornia()
    crop = made.RandomResizedCrop((image_size, image_size), cropping_mode="resample")
    flip = made.RandomHorizontalFlip()
    return lambda features: flip(crop(features)).clamp(0, 1)
