"""The settings of image classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from labo import numeric
from labo.errors import unknown

STEMS = ("auto", "cifar", "imagenet")
# Larger images get the ImageNet stem, which downsamples by 4 before the first stage.
MAX_CIFAR_SIZE = 64


@dataclass(frozen=True)
class ModelOptions:
    """The options of models; each model takes some of them.

    Args:
        stem: "cifar" (3 x 3, stride 1, no pooling), "imagenet", or "auto": "cifar" for images up to 64 pixels.
        dropout: probability in [0, 1), where the model's paper has it; before the last layer where the paper has none.
        width: channels of the first stage of `convnet`.
        patch: side of a patch in pixels; 0 chooses by the image size.
        pretrained: start from published weights.

    Raises:
        UserError: an option is out of range.
    """

    stem: str = "auto"
    dropout: float = 0.0
    width: int = 32
    patch: int = 0
    pretrained: bool = False

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise unknown("stem", self.stem, STEMS)
        numeric.setting("dropout", self.dropout, minimum=0, below=1)
        numeric.setting("width", self.width, minimum=1, maximum=4_096, whole=True)
        numeric.setting("patch", self.patch, minimum=0, maximum=4_096, whole=True)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ModelOptions:
        """From a run's settings; other keys are ignored."""
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})

    def cifar_stem(self, image_size: int) -> bool:
        """Whether the stem is the one for small images."""
        return self.stem == "cifar" or (self.stem == "auto" and image_size <= MAX_CIFAR_SIZE)


DEFAULTS: dict[str, Any] = asdict(ModelOptions())
