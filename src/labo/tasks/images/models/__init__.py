"""Image classifiers by name: float features (N, 3, H, W) to logits (N, C)."""

from labo.tasks.images.models.options import DEFAULTS
from labo.tasks.images.models.registry import available, build, describe, usual

__all__ = ["DEFAULTS", "available", "build", "describe", "usual"]
