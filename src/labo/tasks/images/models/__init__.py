"""Image classifiers by name: float features (N, 3, H, W) to logits (N, C)."""

from labo.tasks.images.models.build import available, build, default_hyperparameters, describe
from labo.tasks.images.models.layers import Normalized
from labo.tasks.images.models.options import DEFAULTS

__all__ = ["DEFAULTS", "Normalized", "available", "build", "default_hyperparameters", "describe"]
