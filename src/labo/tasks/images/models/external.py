"""Classifiers of other libraries: Transformers and timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labo.errors import UserError, unknown
from labo.networks import logits_of
from labo.tasks.images.models.options import Options


class Outside(nn.Module):
    """A network whose input is called `features` and whose output is the logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, 3, H, W)."""
        return logits_of(self.network(features))


def from_transformers(name: str, classes: int, image_size: int, options: Options) -> nn.Module:
    """`name` is hf/NAME_OR_PATH: a folder or file of a configuration, a saved model, or a name on the hub.

    With fresh weights the configuration's image size becomes `image_size`; `pretrained` weights keep theirs, and get a
    new last layer where the number of classes differs.

    Raises:
        UserError: there is no such configuration or it is of no image classifier; the images do not fit.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    source = _source(name)
    try:
        config: Any = AutoConfig.from_pretrained(source, num_labels=classes)
        if options.pretrained:
            network = AutoModelForImageClassification.from_pretrained(
                source, config=config, ignore_mismatched_sizes=True, dtype=torch.float32
            )
        else:
            if hasattr(config, "image_size"):
                config.image_size = image_size
            network = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    except Exception as error:  # whatever a configuration of anyone's makes Transformers raise
        raise UserError(f"Model '{name}' is no image classifier that Transformers can build: {_line(error)}") from error
    return _fitted(name, network, classes, image_size)


def from_timm(name: str, classes: int, image_size: int, options: Options) -> nn.Module:
    """`name` is timm/NAME.

    Raises:
        UserError: timm does not import or has no such model; the images do not fit.
    """
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except Exception as error:  # a torchvision built for another torch fails in ways of its own
        raise UserError(f"Model '{name}' needs timm, which does not import here: {_line(error)}") from error
    wanted = name.removeprefix("timm/")
    if not timm.is_model(wanted.partition(".")[0]):
        raise unknown("timm model", wanted, timm.list_models())
    given = {"pretrained": options.pretrained, "num_classes": classes, "drop_rate": options.dropout}
    try:
        try:
            network = timm.create_model(wanted, **given, img_size=image_size)
        except TypeError:  # convolutional networks know no image size
            network = timm.create_model(wanted, **given)
    except Exception as error:
        raise UserError(f"Model '{name}' cannot be built for {image_size} pixels: {_line(error)}") from error
    return _fitted(name, network, classes, image_size)


def _source(name: str) -> str:
    source = name.removeprefix("hf/")
    path = Path(source)
    # The hub's names have at most one slash: anything else is a place on this machine.
    local = path.is_absolute() or source.startswith(".") or source.count("/") > 1 or path.suffix == ".json"
    if not source or (local and not path.exists()):
        raise UserError(
            f"Expected a folder, a configuration file or a name on the hub after 'hf/', but got '{source}', which is "
            "not there."
        )
    return source


def _fitted(name: str, network: nn.Module, classes: int, image_size: int) -> nn.Module:
    """`network` as a classifier in training mode, once it has given logits for an empty image."""
    outside = Outside(network).eval()
    image = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            shape = tuple(outside(image).shape)
    except Exception as error:  # each library says in its own way that an image does not fit
        raise UserError(
            f"Model '{name}' does not take colour images of {image_size} x {image_size} pixels: {_line(error)}"
        ) from error
    if shape != (1, classes):
        raise UserError(
            f"Expected model '{name}' to give logits of shape (1, {classes}) for an image, but got {shape}."
        )
    return outside.train()


def _line(error: Exception) -> str:
    """The first line of what an error says, as the end of a sentence."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
    return f"{text}."
