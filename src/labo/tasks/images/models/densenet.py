"""DenseNet-121.

Source: Huang et al., *Densely Connected Convolutional Networks*, CVPR 2017 (bottlenecks and compression: DenseNet-BC).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labo.tasks.images.models.options import Options
from labo.tasks.images.models.parts import Classifier, convolution, initialise, normalised, stem

BLOCKS, GROWTH, BOTTLENECK = (6, 12, 24, 16), 32, 4


def densenet(name: str, classes: int, image_size: int, options: Options) -> nn.Module:
    """Four dense blocks with growth 32, halved in width and size between them; dropout after each layer of a block."""
    cifar = options.cifar_stem(image_size)
    width = 2 * GROWTH
    layers = stem(width, cifar=cifar)
    for block, count in enumerate(BLOCKS):
        if block:
            layers += [*normalised(width), convolution(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(count):
            layers.append(DenseLayer(width, options.dropout))
            width += GROWTH
    trunk = nn.Sequential(*layers, *normalised(width))
    network = Classifier(trunk, width, classes, stride=8 if cifar else 32)
    initialise(network)
    return network


class DenseLayer(nn.Module):
    """Gives its input and, beside it, GROWTH new channels."""

    def __init__(self, inputs: int, dropout: float) -> None:
        super().__init__()
        middle = BOTTLENECK * GROWTH
        self.branch = nn.Sequential(
            *normalised(inputs), convolution(inputs, middle, 1), *normalised(middle), convolution(middle, GROWTH)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, inputs + GROWTH, H, W)."""
        return torch.cat([features, self.dropout(self.branch(features))], 1)
