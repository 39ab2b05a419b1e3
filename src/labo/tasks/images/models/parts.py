"""What convolutional classifiers share: convolutions, stems, the last layers, the initialisation."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Classifier(nn.Module):
    """A trunk of convolutions, the average over places, dropout, a linear layer.

    Args:
        trunk: features (N, 3, H, W) to (N, width, H / stride, W / stride).
        width: channels that the trunk gives.
        classes: C.
        stride: how much smaller the trunk makes the images; smaller ones than this do not fit.
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


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size up to its stride; without a bias, which the normalisation after it has."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)


def activated(
    inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, *, limit: bool = False
) -> list[nn.Module]:
    """Convolution, batch normalisation, ReLU (`limit`: ReLU6)."""
    activation = nn.ReLU6(inplace=True) if limit else nn.ReLU(inplace=True)
    return [convolution(inputs, outputs, size, stride, groups), nn.BatchNorm2d(outputs), activation]


def normalised(width: int) -> list[nn.Module]:
    """Batch normalisation and ReLU, as networks have them whose activation comes before the convolution."""
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def stem(width: int, *, cifar: bool) -> list[nn.Module]:
    """The first layers of ResNet and DenseNet: 7 x 7 and pooling, a quarter of the size, or 3 x 3 at full size."""
    if cifar:
        return activated(3, width)
    return [*activated(3, width, size=7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)]


def initialise(network: nn.Module) -> None:
    """Weights of convolutions from N(0, 2 / fan_out), linear layers as torch has them, with no bias at first.

    A convolution in groups has the fan of one group.

    Source: He et al., *Delving Deep into Rectifiers*, ICCV 2015, equation 14.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.out_channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
