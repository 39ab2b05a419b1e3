"""Images made worse, to see whether a classifier still knows what it does not know.

Source: Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*, ICLR
    2019: three of its corruptions (Gaussian noise, Gaussian blur, contrast) with its strengths for CIFAR and, above 64
    pixels, for ImageNet. Made anew from a seed, so figures are not comparable with those on its published files.
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
LARGEST_SMALL = 64
# Strengths of severities 1 to 5 for small and for large images: standard deviation of the noise in [0, 1], of the blur
# in pixels, and the contrast that is left.
_STRENGTHS = {
    "noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
}
_PIECE = 256


class Shifted:
    """Pictures that are made worse when they are asked for; used where a uint8 (N, C, H, W) tensor is predicted from.

    Of them no more than a piece is in memory at a time, whatever `features` are.

    Args:
        features: a uint8 (N, C, H, W) tensor, or what is decoded piece by piece, as `Pictures` are.
        kind, severity, seed: as in `shifted`.
        device: where the work is done; by default where the pieces come.

    Raises:
        UserError: as `shifted`.
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
        """All of them in order, in pieces of at most `size`."""
        first = 0
        for piece in self.features.split(size):
            yield shifted(piece.to(self.device or piece.device), self.kind, self.severity, self.seed, first=first)
            first += len(piece)


def check(kind: str, severity: int) -> None:
    """Refuse a kind that there is not, or a severity that is none from 1 to 5.

    Raises:
        UserError: one is.
    """
    if kind not in KINDS:
        raise unknown("shift", kind, KINDS)
    if isinstance(severity, bool) or not isinstance(severity, int) or severity not in SEVERITIES:
        raise UserError(f"Expected argument `severity` to be a whole number from 1 to 5, but got {severity!r}.")


def shifted(images: Tensor, kind: str, severity: int, seed: int, *, first: int = 0) -> Tensor:
    """The images with noise, blur or less contrast.

    An image's noise depends on the seed and its place alone, so that pieces of a set get what the whole set would.

    Args:
        images: (N, C, H, W) uint8.
        kind: "noise", "blur" or "contrast".
        severity: 1 to 5.
        seed: of the noise.
        first: the place of the first of these images in the whole set.

    Returns:
        Images of the same shape, dtype and device.

    Raises:
        UserError: an argument is not of this kind.

    Example:
        >>> shifted(torch.full((2, 3, 8, 8), 100, dtype=torch.uint8), "contrast", 3, seed=0).unique()
        tensor([100], dtype=torch.uint8)
    """
    check(kind, severity)
    if images.dim() != 4 or images.dtype != torch.uint8:
        raise UserError(
            f"Expected argument `images` to be uint8 of shape (N, C, H, W), but got {images.dtype} of shape "
            f"{tuple(images.shape)}."
        )
    strength = _STRENGTHS[kind][max(images.shape[2:]) > LARGEST_SMALL][severity - 1]
    changed = torch.empty_like(images)
    for start in range(0, len(images), _PIECE):
        piece = images[start : start + _PIECE].float() / 255
        if kind == "noise":
            result = _noise(piece, strength, seed, first + start)
        else:
            result = (_blur if kind == "blur" else _contrast)(piece, strength)
        changed[start : start + _PIECE] = (result.clamp(0, 1) * 255).round().to(torch.uint8)
    return changed


def _noise(images: Tensor, strength: float, seed: int, first: int) -> Tensor:
    generator, noise = torch.Generator(), torch.empty(images.shape)
    for place in range(len(images)):
        generator.manual_seed(seed * 1_000_000_007 + first + place)
        torch.randn(images.shape[1:], generator=generator, out=noise[place])
    return images + strength * noise.to(images.device)


def _blur(images: Tensor, strength: float) -> Tensor:
    """A Gaussian in both directions, cut off at four standard deviations; the border goes on outside."""
    radius = int(4 * strength + 0.5)
    places = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (places / strength) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), groups=images.shape[1])


def _contrast(images: Tensor, strength: float) -> Tensor:
    """Each channel of each image drawn towards its mean."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + strength * (images - mean)
