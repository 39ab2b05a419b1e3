"""Classifiers of other libraries: ViT-S as a Transformers configuration, other Transformers models, and timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labo.errors import UserError, first_line, unknown
from labo.networks import logits_of
from labo.tasks.images.models.options import ModelOptions


class ExternalClassifier(nn.Module):
    """A network of another library, with input `features` and the logits as output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, 3, H, W)."""
        return logits_of(self.network(features))


def vit_small(name: str, classes: int, image_size: int, options: ModelOptions) -> nn.Module:
    """ViT-S: patches of 4 pixels for images below 64, of 8 below 128, of 16 above, or of `patch`; a class token.

    Raises:
        UserError: the image size is not a multiple of the patch size.

    Source: Dosovitskiy et al., *An Image is Worth 16x16 Words*, ICLR 2021; the small size is that of Touvron et al.,
        *Training data-efficient image transformers*, ICML 2021 (DeiT-S).
    """
    from transformers import ViTConfig, ViTForImageClassification

    patch = options.patch or (4 if image_size < 64 else 8 if image_size < 128 else 16)
    if image_size % patch:
        raise UserError(
            f"Model '{name}' needs images of a whole number of patches of {patch} pixels a side, but got {image_size} "
            "pixels; set `patch` to a divisor of it."
        )
    arguments: dict[str, Any] = {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-6,
        "hidden_dropout_prob": options.dropout,
        "image_size": image_size,
        "patch_size": patch,
        "num_labels": classes,
    }
    return ExternalClassifier(ViTForImageClassification(ViTConfig(**arguments)))


def from_transformers(name: str, classes: int, image_size: int, options: ModelOptions) -> nn.Module:
    """`name` is hf/NAME_OR_PATH: a folder or file of a configuration, a saved model, or a name on the hub.

    With fresh weights, the image size of the configuration becomes `image_size`; `pretrained` weights keep theirs, and
    get a new last layer where the number of classes differs.

    Raises:
        UserError: there is no such configuration, or not of an image classifier; the images do not fit.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    source = _parse_source(name)
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
    except Exception as error:  # Transformers raises many kinds of error for a bad configuration
        raise UserError(
            f"Model '{name}' is no image classifier that Transformers can build: {first_line(error)}."
        ) from error
    return _check_logits(name, network, classes, image_size)


def from_timm(name: str, classes: int, image_size: int, options: ModelOptions) -> nn.Module:
    """`name` is timm/NAME.

    Raises:
        UserError: timm cannot be imported or has no such model; the images do not fit.
    """
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except Exception as error:  # a torchvision built for another torch raises other errors than ImportError
        raise UserError(f"Model '{name}' needs timm, which does not import here: {first_line(error)}.") from error
    model = name.removeprefix("timm/")
    if not timm.is_model(model.partition(".")[0]):
        raise unknown("timm model", model, timm.list_models())
    arguments = {"pretrained": options.pretrained, "num_classes": classes, "drop_rate": options.dropout}
    try:
        try:
            network = timm.create_model(model, **arguments, img_size=image_size)
        except TypeError:  # convolutional networks take no image size
            network = timm.create_model(model, **arguments)
    except Exception as error:
        raise UserError(f"Model '{name}' cannot be built for {image_size} pixels: {first_line(error)}.") from error
    return _check_logits(name, network, classes, image_size)


def _parse_source(name: str) -> str:
    source = name.removeprefix("hf/")
    path = Path(source)
    # Names on the hub have at most one slash; anything else is a local path.
    local = path.is_absolute() or source.startswith(".") or source.count("/") > 1 or path.suffix == ".json"
    if not source or (local and not path.exists()):
        raise UserError(
            f"Expected a folder, a configuration file or a name on the hub after 'hf/', but got '{source}', which is "
            "not there."
        )
    return source


def _check_logits(name: str, network: nn.Module, classes: int, image_size: int) -> nn.Module:
    """`network` as a classifier in training mode, after a forward pass on an empty image."""
    classifier = ExternalClassifier(network).eval()
    image = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            shape = tuple(classifier(image).shape)
    except Exception as error:  # each library fails in its own way on images that do not fit
        raise UserError(
            f"Model '{name}' does not take colour images of {image_size} x {image_size} pixels: {first_line(error)}."
        ) from error
    if shape != (1, classes):
        raise UserError(
            f"Expected model '{name}' to give logits of shape (1, {classes}) for an image, but got {shape}."
        )
    return classifier.train()
