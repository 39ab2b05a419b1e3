"""ResNet-18, -34 and -50.

Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016. Downsampling blocks shrink in their 3 x 3
    convolution and have a 1 x 1 convolution as shortcut (option B), as the published parameter counts have it; the stem
    for small images is the one customary for CIFAR, not the thinner networks of the paper's section 4.2.
"""

from __future__ import annotations

from torch import Tensor, nn

from labo.tasks.images.models.options import Options
from labo.tasks.images.models.parts import Classifier, activated, convolution, initialise, stem

# name -> (blocks of each stage, whether they are bottlenecks)
_DEPTHS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
}


def resnet(name: str, classes: int, image_size: int, options: Options) -> nn.Module:
    """The ResNet `name`: four stages of 64, 128, 256 and 512 channels, four times as many with bottlenecks."""
    blocks, bottleneck = _DEPTHS[name]
    cifar = options.cifar_stem(image_size)
    layers = stem(64, cifar=cifar)
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(Residual(inputs, width, stride, bottleneck=bottleneck))
            inputs = width * (4 if bottleneck else 1)
    trunk = nn.Sequential(*layers)
    network = Classifier(trunk, inputs, classes, stride=8 if cifar else 32, dropout=options.dropout)
    initialise(network)
    return network


class Residual(nn.Module):
    """ReLU(branch(x) + shortcut(x)) with two convolutions in the branch, or three as a bottleneck."""

    def __init__(self, inputs: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            before = [*activated(inputs, width, size=1), *activated(width, width, stride=stride)]
            last = convolution(width, outputs, size=1)
        else:
            before = activated(inputs, width, stride=stride)
            last = convolution(width, outputs)
        self.branch = nn.Sequential(*before, last, nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return self.activation(self.branch(features) + self.shortcut(features))
