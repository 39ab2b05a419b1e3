"""Image corruptions (Hendrycks and Dietterich, 2019), to measure calibration under distribution shift.

Source: Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*, ICLR
    2019: three of its corruptions (Gaussian noise, Gaussian blur, contrast) with its parameters for CIFAR and, above 64
    pixels, for ImageNet. Applied on the fly with a seed: results do not compare with those on its published files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from labo.errors import UserError, unknown

KINDS = ("noise", "blur", "contrast")
SEVERITIES = (1, 2, 3, 4, 5)
MAX_SMALL_SIZE = 64
# Severities 1 to 5 for small and for large images: standard deviation of the noise in [0, 1], of the blur in pixels,
# and the factor of the contrast.
_PARAMETERS = {
    "noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
}
_CHUNK = 256


class CorruptedImages:
    """Images corrupted on access, in place of a uint8 (N, C, H, W) tensor for prediction.

    Only one chunk is in memory at a time.

    Args:
        features: a uint8 (N, C, H, W) tensor, or `LazyImages`.
        kind, severity, seed: as in `corrupt`.
        device: where corruptions are computed; by default the device of the chunks.

    Raises:
        UserError: as `corrupt`.
    """

    dtype = torch.uint8

    def __init__(
        self, features: Any, kind: str, severity: int, seed: int, device: torch.device | str | None = None
    ) -> None:
        check(kind, severity)
        self.features, self.kind, self.severity, self.seed, self.device = features, kind, severity, seed, device

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return self.features.shape

    def __len__(self) -> int:
        return len(self.features)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, corrupted, in chunks of at most `size`."""
        first = 0
        for chunk in self.features.split(size):
            yield corrupt(chunk.to(self.device or chunk.device), self.kind, self.severity, self.seed, first=first)
            first += len(chunk)


def check(kind: str, severity: int) -> None:
    """Refuse an unknown kind, or a severity that is not from 1 to 5.

    Raises:
        UserError: one of them is wrong.
    """
    if kind not in KINDS:
        raise unknown("shift", kind, KINDS)
    if isinstance(severity, bool) or not isinstance(severity, int) or severity not in SEVERITIES:
        raise UserError(f"Expected argument `severity` to be a whole number from 1 to 5, but got {severity!r}.")


def corrupt(images: Tensor, kind: str, severity: int, seed: int, *, first: int = 0) -> Tensor:
    """Images with noise, blur or less contrast.

    The noise of an image depends on the seed and its index alone, so that chunks of a set get the noise of the whole.

    Args:
        images: (N, C, H, W) uint8.
        kind: "noise", "blur" or "contrast".
        severity: 1 to 5.
        seed: of the noise.
        first: the index of the first of these images in the whole set.

    Returns:
        Images of the same shape, dtype and device.

    Raises:
        UserError: an argument is out of range or of another dtype or shape.

    Example:
        >>> corrupt(torch.full((2, 3, 8, 8), 100, dtype=torch.uint8), "contrast", 3, seed=0).unique()
        tensor([100], dtype=torch.uint8)
    """
    check(kind, severity)
    if images.dim() != 4 or images.dtype != torch.uint8:
        raise UserError(
            f"Expected argument `images` to be uint8 of shape (N, C, H, W), but got {images.dtype} of shape "
            f"{tuple(images.shape)}."
        )
    parameter = _PARAMETERS[kind][max(images.shape[2:]) > MAX_SMALL_SIZE][severity - 1]
    corrupted = torch.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].float() / 255
        if kind == "noise":
            result = _noise(chunk, parameter, seed, first + start)
        else:
            result = (_blur if kind == "blur" else _contrast)(chunk, parameter)
        corrupted[start : start + _CHUNK] = (result.clamp(0, 1) * 255).round().to(torch.uint8)
    return corrupted


def _noise(images: Tensor, deviation: float, seed: int, first: int) -> Tensor:
    generator, noise = torch.Generator(), torch.empty(images.shape)
    for index in range(len(images)):
        generator.manual_seed(seed * 1_000_000_007 + first + index)
        torch.randn(images.shape[1:], generator=generator, out=noise[index])
    return images + deviation * noise.to(images.device)


def _blur(images: Tensor, deviation: float) -> Tensor:
    """A separable Gaussian, truncated at four standard deviations; the border is replicated."""
    radius = int(4 * deviation + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=images.shape[1])


def _contrast(images: Tensor, factor: float) -> Tensor:
    """Each channel of each image scaled around its mean."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + factor * (images - mean)
