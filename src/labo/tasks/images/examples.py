"""Examples whose features are bytes of pictures, and the channel statistics of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labo.tasks.base import Examples
from labo.tasks.images.decoding import Pictures


@dataclass(frozen=True)
class ImageExamples(Examples):
    """Pictures uint8 (N, 3, H, W) and class indices (N,) int64.

    The features are a tensor, or `Pictures`, which are decoded when they are asked for. Batches, evaluation and
    prediction see the bytes; the network's first layer, `Normalised`, makes numbers of them.
    """

    features: Any

    def __post_init__(self) -> None:
        shape, kind = tuple(self.features.shape), self.features.dtype
        if kind != torch.uint8 or len(shape) != 4 or shape[1] != 3 or len(self.features) != len(self.target):
            raise ValueError(
                f"Expected argument `features` to be uint8 (N, 3, H, W) with N = {len(self.target)}, but got {kind} "
                f"{shape}."
            )

    def _features_of(self, chosen: Tensor) -> Any:
        return self.features.subset(chosen) if isinstance(self.features, Pictures) else self.features[chosen]


class Normalised(nn.Module):
    """A network behind (pixels - mean) / deviation, by channel.

    Args:
        network: float (N, C, H, W) to logits.
        mean, deviation: of the training pixels, 0 to 1, for each of the C channels. They are saved with the weights.
        channels_last: whether weights and batches lie in memory with the channels last, which GPUs' convolutions take
            faster, above all in bfloat16; the numbers are the same up to rounding.

    `features` are uint8, or floats from 0 to 1 where an augmentation has been at work on bytes / 255.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float], *, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.layout = torch.channels_last if channels_last else torch.preserve_format
        self.network = network.to(memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))

    def forward(self, features: Tensor) -> Any:
        """What the network says of `features` (N, C, H, W)."""
        pixels = features.to(self.mean.dtype, memory_format=self.layout)
        if features.dtype == torch.uint8:
            pixels = pixels / 255
        return self.network((pixels - self.mean) / self.deviation)


def channel_statistics(features: Tensor | Pictures) -> tuple[list[float], list[float]]:
    """Means and deviations of the channels of uint8 (N, C, H, W), bytes / 255; exact, from counts of the 256 values.

    A channel that never changes has deviation 1, so that dividing by it is harmless.
    """
    channels = features.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for piece in features.split(4096):
        for channel in range(channels):
            counts[channel] += torch.bincount(piece[:, channel].flatten(), minlength=256)
    share = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    deviation = (share * (values - mean.unsqueeze(1)) ** 2).sum(1).sqrt()
    return mean.tolist(), torch.where(deviation < 1e-6, 1.0, deviation).tolist()
