"""The settings of image classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from labo.errors import UserError, unknown

STEMS = ("auto", "cifar", "imagenet")
# Larger images than this get the ImageNet stem, which shrinks them by 4 before the first stage.
LARGEST_CIFAR = 64


@dataclass(frozen=True)
class Options:
    """What a model may be told; each model takes some of these.

    Args:
        stem: "cifar" (3 x 3, stride 1, no pooling), "imagenet", or "auto": "cifar" for images up to 64 pixels.
        dropout: in [0, 1), where the model's paper puts it; before the last layer where the paper has none.
        width: channels of the first stage of `convnet`.
        patch: pixels of a side of a patch; 0 chooses by the image size.
        pretrained: start from published weights instead of fresh ones.

    Raises:
        UserError: a setting is out of range.
    """

    stem: str = "auto"
    dropout: float = 0.0
    width: int = 32
    patch: int = 0
    pretrained: bool = False

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise unknown("stem", self.stem, STEMS)
        if not _number(self.dropout) or not 0 <= self.dropout < 1:
            raise UserError(f"Expected setting `dropout` to be in [0, 1), but got {self.dropout!r}.")
        for name, least in (("width", 1), ("patch", 0)):
            value = getattr(self, name)
            if not _number(value) or value != int(value) or value < least:
                raise UserError(
                    f"Expected setting `{name}` to be a whole number of at least {least}, but got {value!r}."
                )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Options:
        """Those among `settings`; what else is there is not for models."""
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})

    def cifar_stem(self, image_size: int) -> bool:
        """Whether the stem is the one for small images."""
        return self.stem == "cifar" or (self.stem == "auto" and image_size <= LARGEST_CIFAR)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


DEFAULTS: dict[str, Any] = asdict(Options())
