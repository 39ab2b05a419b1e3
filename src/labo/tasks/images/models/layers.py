"""Layers shared by image classifiers, and input normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """A network behind (pixels - mean) / deviation, per channel.

    Args:
        network: float (N, C, H, W) to logits.
        mean, deviation: of the training pixels, 0 to 1, per channel (C values); buffers, saved with the weights.
        channels_last: store weights and batches in channels-last memory format, in which convolutions on GPUs are
            faster, above all in bfloat16; results are equal up to rounding.

    `features` are uint8, or floats from 0 to 1 after an augmentation.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float], *, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        self.network = network.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))

    def forward(self, features: Tensor) -> Any:
        """The network's output for `features` (N, C, H, W)."""
        pixels = features.to(self.mean.dtype, memory_format=self.memory_format)
        if features.dtype == torch.uint8:
            pixels = pixels / 255
        return self.network((pixels - self.mean) / self.deviation)


class Classifier(nn.Module):
    """A convolutional trunk, global average pooling, dropout, a linear layer.

    Args:
        trunk: features (N, 3, H, W) to (N, width, H / stride, W / stride).
        width: output channels of the trunk.
        classes: C.
        stride: total downsampling of the trunk; smaller images do not fit.
        dropout: before the linear layer.
    """

    def __init__(self, trunk: nn.Module, width: int, classes: int, *, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.trunk, self.stride = trunk, stride
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, 3, H, W)."""
        return self.head(self.dropout(self.trunk(features).mean((2, 3))))


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution with "same" padding, without bias, because a batch normalisation follows."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def conv_norm_relu(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Convolution, batch normalisation, ReLU."""
    return [conv(inputs, outputs, size, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def norm_relu(width: int) -> list[nn.Module]:
    """Batch normalisation and ReLU, as in pre-activation networks."""
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def initialize(network: nn.Module) -> None:
    """Convolutions from N(0, 2 / fan_out); linear layers as in torch, with zero bias.

    Source: He et al., *Delving Deep into Rectifiers*, ICCV 2015, equation 14.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
