"""MobileNetV2.

Source: Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018, table 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from labo.tasks.images.models.options import Options
from labo.tasks.images.models.parts import Classifier, activated, convolution, initialise

# (expansion, channels, blocks, stride of the first block)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
LAST = 1280


def mobilenet(name: str, classes: int, image_size: int, options: Options) -> nn.Module:
    """At width 1; small images are not shrunk by the stem and the second stage, so by 8 in all instead of 32."""
    cifar = options.cifar_stem(image_size)
    layers = activated(3, 32, stride=1 if cifar else 2, limit=True)
    inputs = 32
    for number, (expansion, outputs, count, first) in enumerate(STAGES):
        for block in range(count):
            stride = 1 if block or (cifar and number == 1) else first
            layers.append(InvertedResidual(inputs, outputs, stride, expansion))
            inputs = outputs
    trunk = nn.Sequential(*layers, *activated(inputs, LAST, 1, limit=True))
    network = Classifier(trunk, LAST, classes, stride=8 if cifar else 32, dropout=options.dropout)
    initialise(network)
    nn.init.normal_(network.head.weight, std=0.01)
    return network


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow without an activation; a shortcut where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = expansion * inputs
        widen = activated(inputs, middle, 1, limit=True) if expansion > 1 else []
        self.branch = nn.Sequential(
            *widen,
            *activated(middle, middle, stride=stride, groups=middle, limit=True),
            convolution(middle, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return features + self.branch(features) if self.residual else self.branch(features)
