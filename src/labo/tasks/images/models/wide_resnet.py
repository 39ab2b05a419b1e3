"""Wide residual networks.

Source: Zagoruyko and Komodakis, *Wide Residual Networks*, BMVC 2016.
"""

from __future__ import annotations

from torch import Tensor, nn

from labo.errors import UserError
from labo.tasks.images.models.options import Options
from labo.tasks.images.models.parts import Classifier, convolution, initialise, normalised


def wide_resnet(name: str, classes: int, image_size: int, options: Options) -> nn.Module:
    """`name` is wrn-DEPTH-WIDTH; dropout lies between the two convolutions of a block.

    Raises:
        UserError: the depth is not 6 n + 4, or the name is not of this form.
    """
    depth, width = _size(name)
    layers: list[nn.Module] = [convolution(3, 16)]
    inputs = 16
    for stage in range(3):
        outputs = 16 * width * 2**stage
        for block in range((depth - 4) // 6):
            stride = 2 if stage and not block else 1
            layers.append(WideBlock(inputs, outputs, stride, options.dropout))
            inputs = outputs
    network = Classifier(nn.Sequential(*layers, *normalised(inputs)), inputs, classes, stride=4)
    initialise(network)
    return network


def _size(name: str) -> tuple[int, int]:
    depth, _, width = name.removeprefix("wrn-").partition("-")
    if not (depth.isdecimal() and width.isdecimal() and int(width) and int(depth) >= 10 and int(depth) % 6 == 4):
        raise UserError(
            f"Expected a wide ResNet as wrn-DEPTH-WIDTH with a depth of 10, 16, 22, 28, … and a width of at least 1, "
            f"but got '{name}'."
        )
    return int(depth), int(width)


class WideBlock(nn.Module):
    """Normalisation and ReLU before each of two convolutions; a shortcut that widens starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.before = nn.Sequential(*normalised(inputs))
        middle = [nn.Dropout(dropout)] if dropout else []
        self.branch = nn.Sequential(
            convolution(inputs, outputs, stride=stride), *normalised(outputs), *middle, convolution(outputs, outputs)
        )
        self.shortcut = convolution(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        active = self.before(features)
        return self.branch(active) + (features if self.shortcut is None else self.shortcut(active))
