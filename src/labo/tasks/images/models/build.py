"""Which image classifiers there are. A model's module is imported when it is built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from labo.errors import UserError, unknown
from labo.tasks.images.models.options import DEFAULTS, Options

_ROOM = "labo.tasks.images.models."
# name or prefix -> ("module:function", the settings it takes, what it is); a model is added by its file and a line here
_HOMES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "convnet": ("convnet:convnet", ("width", "dropout"), "three convolutions, 0.1M parameters, for a CPU"),
    "resnet18": ("convolutional:resnet", ("stem", "dropout"), "ResNet-18, 11.7M parameters"),
    "resnet34": ("convolutional:resnet", ("stem", "dropout"), "ResNet-34, 21.8M parameters"),
    "resnet50": ("convolutional:resnet", ("stem", "dropout"), "ResNet-50, 25.6M parameters"),
    "wrn-28-10": ("wide_resnet:wide_resnet", ("dropout",), "wide ResNet, 36.5M parameters; any wrn-DEPTH-WIDTH"),
    "densenet121": ("densenet:densenet", ("stem", "dropout"), "DenseNet-121, 8.0M parameters"),
    "mobilenet_v2": ("mobilenet:mobilenet", ("stem", "dropout"), "MobileNetV2, 3.5M parameters"),
    "vit_small": ("vit:vit_small", ("patch", "dropout"), "ViT-S, 22M parameters"),
}
_PREFIXES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "wrn-": (*_HOMES["wrn-28-10"][:2], "a wide ResNet, wrn-DEPTH-WIDTH"),
    "hf/": ("external:from_transformers", ("pretrained",), "a Transformers image classifier, hf/NAME_OR_PATH"),
    "timm/": ("external:from_timm", ("pretrained", "dropout"), "a model of timm, timm/NAME"),
}

# What a model is trained with, where that is not what its task says.
_TRAINED: dict[str, dict[str, Any]] = {
    "vit_small": {"optimizer": "adamw", "learning_rate": 5e-4 * 128 / 512, "weight_decay": 0.05},
}


def available() -> tuple[str, ...]:
    """The names of all models; beside them are wrn-DEPTH-WIDTH, hf/NAME_OR_PATH and timm/NAME.

    Example:
        >>> "resnet18" in available()
        True
    """
    return tuple(_HOMES)


def describe(name: str) -> str:
    """What a model is, in one line; imports nothing."""
    return _home(name)[2]


def usual(name: Any) -> dict[str, Any]:
    """The settings of training that are the model's own, for batches of 128; the others are its task's.

    Source: Touvron et al., *Training data-efficient image transformers*, ICML 2021.

    Example:
        >>> usual("vit_small")["optimizer"], usual("resnet18")
        ('adamw', {})
    """
    return dict(_TRAINED.get(str(name), {}))


def build(name: str, classes: int, image_size: int, settings: Mapping[str, Any]) -> nn.Module:
    """The model `name` with fresh weights from torch's global generator: features (N, 3, H, W) to logits (N, C).

    Args:
        name: one of `available()`, wrn-DEPTH-WIDTH, hf/NAME_OR_PATH (a configuration or model on this machine or the
            hub) or timm/NAME.
        classes: C, at least 2.
        image_size: H = W, in pixels.
        settings: see `Options`; whatever else is in it is not looked at.

    Raises:
        UserError: unknown name, a setting that is out of range or that the model does not take, images that do not fit.

    Example:
        >>> import torch
        >>> build("convnet", 10, 32, {})(features=torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    for argument, value, least in (("classes", classes, 2), ("image_size", image_size, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(
                f"Expected argument `{argument}` to be a whole number of at least {least}, but got {value!r}."
            )
    home, taken, _ = _home(name)
    options = Options.of(settings)
    for option, default in DEFAULTS.items():
        if option not in taken and getattr(options, option) != default:
            raise UserError(f"Model '{name}' takes no `{option}`; it takes {', '.join(taken)}.")
    module, _, attribute = home.partition(":")
    network = getattr(importlib.import_module(_ROOM + module), attribute)(name, classes, image_size, options)
    stride = getattr(network, "stride", 1)
    if image_size < stride:
        hint = "; stem=cifar takes smaller ones" if "stem" in taken and stride == 32 else ""
        raise UserError(
            f"Model '{name}' needs images of at least {stride} x {stride} pixels, but got {image_size} x "
            f"{image_size}{hint}."
        )
    return network


def _home(name: str) -> tuple[str, tuple[str, ...], str]:
    if name in _HOMES:
        return _HOMES[name]
    for prefix, home in _PREFIXES.items():
        if name.startswith(prefix):
            return home
    raise unknown("model", name, (*_HOMES, "wrn-DEPTH-WIDTH", "hf/NAME_OR_PATH", "timm/NAME"))
