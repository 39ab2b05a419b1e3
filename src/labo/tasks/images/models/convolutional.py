"""Convolutional classifiers: a small convnet, ResNet-18, -34 and -50, and wide ResNets.

Sources: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016. Bottleneck blocks downsample in their
    3 x 3 convolution and shortcuts are 1 x 1 convolutions (option B), as in the published parameter counts; the stem
    for small images is the one customary for CIFAR, not the thinner networks of the paper's section 4.2.
    Zagoruyko and Komodakis, *Wide Residual Networks*, BMVC 2016.
"""

from __future__ import annotations

from torch import Tensor, nn

from labo.errors import UserError
from labo.tasks.images.models.layers import Classifier, conv, conv_norm_relu, initialize, norm_relu
from labo.tasks.images.models.options import ModelOptions

# name -> (blocks per stage, whether they are bottlenecks)
_RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
}


def convnet(name: str, classes: int, image_size: int, options: ModelOptions) -> nn.Module:
    """Three convolutions of width, 2 width and 4 width channels, with max pooling after the first two.

    106,372 parameters for 100 classes at width 32.
    """
    width = options.width
    trunk = nn.Sequential(
        *conv_norm_relu(3, width),
        nn.MaxPool2d(2),
        *conv_norm_relu(width, 2 * width),
        nn.MaxPool2d(2),
        *conv_norm_relu(2 * width, 4 * width),
    )
    network = Classifier(trunk, 4 * width, classes, stride=4, dropout=options.dropout)
    initialize(network)
    return network


def resnet(name: str, classes: int, image_size: int, options: ModelOptions) -> nn.Module:
    """The ResNet `name`: four stages of 64, 128, 256 and 512 channels, times four with bottlenecks."""
    blocks, bottleneck = _RESNETS[name]
    cifar = options.cifar_stem(image_size)
    if cifar:
        layers = conv_norm_relu(3, 64)
    else:
        layers = [*conv_norm_relu(3, 64, size=7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)]
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(ResidualBlock(inputs, width, stride, bottleneck=bottleneck))
            inputs = width * (4 if bottleneck else 1)
    trunk = nn.Sequential(*layers)
    network = Classifier(trunk, inputs, classes, stride=8 if cifar else 32, dropout=options.dropout)
    initialize(network)
    return network


def wide_resnet(name: str, classes: int, image_size: int, options: ModelOptions) -> nn.Module:
    """The wide ResNet wrn-DEPTH-WIDTH; dropout is between the two convolutions of a block.

    Raises:
        UserError: the depth is not 6 n + 4, or the name is not of this form.
    """
    depth, width = _parse_wide(name)
    layers: list[nn.Module] = [conv(3, 16)]
    inputs = 16
    for stage in range(3):
        outputs = 16 * width * 2**stage
        for block in range((depth - 4) // 6):
            stride = 2 if stage and not block else 1
            layers.append(WideBlock(inputs, outputs, stride, options.dropout))
            inputs = outputs
    network = Classifier(nn.Sequential(*layers, *norm_relu(inputs)), inputs, classes, stride=4)
    initialize(network)
    return network


class ResidualBlock(nn.Module):
    """ReLU(branch(x) + shortcut(x)) with two convolutions in the branch, or three as a bottleneck."""

    def __init__(self, inputs: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            first = [*conv_norm_relu(inputs, width, size=1), *conv_norm_relu(width, width, stride=stride)]
            last = conv(width, outputs, size=1)
        else:
            first = conv_norm_relu(inputs, width, stride=stride)
            last = conv(width, outputs)
        self.branch = nn.Sequential(*first, last, nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return self.activation(self.branch(features) + self.shortcut(features))


class WideBlock(nn.Module):
    """Pre-activation block of two convolutions; a widening shortcut starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.before = nn.Sequential(*norm_relu(inputs))
        middle = [nn.Dropout(dropout)] if dropout else []
        self.branch = nn.Sequential(
            conv(inputs, outputs, stride=stride), *norm_relu(outputs), *middle, conv(outputs, outputs)
        )
        self.shortcut = conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        activated = self.before(features)
        return self.branch(activated) + (features if self.shortcut is None else self.shortcut(activated))


def _parse_wide(name: str) -> tuple[int, int]:
    depth, _, width = name.removeprefix("wrn-").partition("-")
    if not (depth.isdecimal() and width.isdecimal() and int(width) and int(depth) >= 10 and int(depth) % 6 == 4):
        raise UserError(
            f"Expected a wide ResNet as wrn-DEPTH-WIDTH with a depth of 10, 16, 22, 28, … and a width of at least 1, "
            f"but got '{name}'."
        )
    return int(depth), int(width)
