"""Image classifiers by name: float features (N, 3, H, W) to logits (N, C)."""

from labo.tasks.images.models.build import available, build, describe, usual
from labo.tasks.images.models.options import DEFAULTS

__all__ = ["DEFAULTS", "available", "build", "describe", "usual"]
