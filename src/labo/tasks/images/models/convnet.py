"""A small network for two CPU cores."""

from __future__ import annotations

from torch import nn

from labo.tasks.images.models.options import Options
from labo.tasks.images.models.parts import Classifier, activated, initialise


def convnet(name: str, classes: int, image_size: int, options: Options) -> nn.Module:
    """Three convolutions of width, 2 width and 4 width channels, pooling after the first two.

    106,372 parameters for 100 classes at width 32.
    """
    width = options.width
    trunk = nn.Sequential(
        *activated(3, width),
        nn.MaxPool2d(2),
        *activated(width, 2 * width),
        nn.MaxPool2d(2),
        *activated(2 * width, 4 * width),
    )
    network = Classifier(trunk, 4 * width, classes, stride=4, dropout=options.dropout)
    initialise(network)
    return network
