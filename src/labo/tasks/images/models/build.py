"""All image classifiers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from labo.errors import UserError, unknown
from labo.tasks.images.models.convolutional import convnet, resnet, wide_resnet
from labo.tasks.images.models.external import from_timm, from_transformers, vit_small
from labo.tasks.images.models.options import DEFAULTS, ModelOptions


@dataclass(frozen=True)
class _Model:
    """A function of (name, classes, image size, options), the options that it takes, and one line on it."""

    build: Callable[[str, int, int, ModelOptions], nn.Module]
    options: tuple[str, ...]
    description: str


_WIDE_RESNET = _Model(wide_resnet, ("dropout",), "wide ResNet, 36.5M parameters; any wrn-DEPTH-WIDTH")
_REGISTRY = {
    "convnet": _Model(convnet, ("width", "dropout"), "three convolutions, 0.1M parameters, for a CPU"),
    "resnet18": _Model(resnet, ("stem", "dropout"), "ResNet-18, 11.7M parameters"),
    "resnet34": _Model(resnet, ("stem", "dropout"), "ResNet-34, 21.8M parameters"),
    "resnet50": _Model(resnet, ("stem", "dropout"), "ResNet-50, 25.6M parameters"),
    "wrn-28-10": _WIDE_RESNET,
    "vit_small": _Model(vit_small, ("patch", "dropout"), "ViT-S, 22M parameters"),
}
_PREFIXES = {
    "wrn-": _WIDE_RESNET,
    "hf/": _Model(from_transformers, ("pretrained",), "a Transformers image classifier, hf/NAME_OR_PATH"),
    "timm/": _Model(from_timm, ("pretrained", "dropout"), "a model of timm, timm/NAME"),
}
# Models of earlier versions and where else they are.
_REMOVED = {"densenet121": "timm/densenet121", "mobilenet_v2": "timm/mobilenetv2_100"}

# Training settings of a model, where they differ from its task's.
_HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "vit_small": {"optimizer": "adamw", "learning_rate": 5e-4 * 128 / 512, "weight_decay": 0.05},
}


def available() -> tuple[str, ...]:
    """The names of all models; wrn-DEPTH-WIDTH, hf/NAME_OR_PATH and timm/NAME are models too.

    Example:
        >>> "resnet18" in available()
        True
    """
    return tuple(_REGISTRY)


def describe(name: str) -> str:
    """One line on a model."""
    return _find(name).description


def default_hyperparameters(name: Any) -> dict[str, Any]:
    """The training settings of a model that differ from its task's, for batches of 128.

    Source: Touvron et al., *Training data-efficient image transformers*, ICML 2021.

    Example:
        >>> default_hyperparameters("vit_small")["optimizer"], default_hyperparameters("resnet18")
        ('adamw', {})
    """
    return dict(_HYPERPARAMETERS.get(str(name), {}))


def build(name: str, classes: int, image_size: int, settings: Mapping[str, Any]) -> nn.Module:
    """The model `name` initialised from torch's global generator: features (N, 3, H, W) to logits (N, C).

    Args:
        name: one of `available()`, wrn-DEPTH-WIDTH, hf/NAME_OR_PATH (a configuration or model on disk or the hub) or
            timm/NAME.
        classes: C, at least 2.
        image_size: H = W, in pixels.
        settings: see `ModelOptions`; other keys are ignored.

    Raises:
        UserError: unknown name, an option that is out of range or that the model does not take, images that do not fit.

    Example:
        >>> import torch
        >>> build("convnet", 10, 32, {})(features=torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    for argument, value, minimum in (("classes", classes, 2), ("image_size", image_size, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise UserError(
                f"Expected argument `{argument}` to be a whole number of at least {minimum}, but got {value!r}."
            )
    model = _find(name)
    options = ModelOptions.of(settings)
    for option, default in DEFAULTS.items():
        if option not in model.options and getattr(options, option) != default:
            raise UserError(f"Model '{name}' takes no `{option}`; it takes {', '.join(model.options)}.")
    network = model.build(name, classes, image_size, options)
    stride = getattr(network, "stride", 1)
    if image_size < stride:
        hint = "; stem=cifar takes smaller ones" if "stem" in model.options and stride == 32 else ""
        raise UserError(
            f"Model '{name}' needs images of at least {stride} x {stride} pixels, but got {image_size} x "
            f"{image_size}{hint}."
        )
    return network


def _find(name: str) -> _Model:
    if name in _REGISTRY:
        return _REGISTRY[name]
    for prefix, model in _PREFIXES.items():
        if name.startswith(prefix):
            return model
    if name in _REMOVED:
        raise UserError(f"Model '{name}' is no longer part of labo: use {_REMOVED[name]}.")
    raise unknown("model", name, (*_REGISTRY, "wrn-DEPTH-WIDTH", "hf/NAME_OR_PATH", "timm/NAME"))
