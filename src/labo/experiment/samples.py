"""Training examples as records show them: short names, thumbnails of images, rows of tables."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from labo.tasks.base import Sample

# Thumbnails are at most so many pixels a side, values of a table at most so many characters.
MAX_THUMBNAIL, MAX_VALUE_LENGTH = 96, 80


def short_names(names: Sequence[str], chosen: Sequence[int]) -> list[str]:
    """The `chosen` of the names; paths are relative to the folder that all of `names` have in common.

    Example:
        >>> short_names(["/data/cat/0.png", "/data/dog/7.png"], [1])
        ['dog/7.png']
    """
    if not all(os.path.isabs(name) for name in names):
        return [names[index] for index in chosen]
    folder = os.path.commonpath([os.path.dirname(name) for name in names])
    return [os.path.relpath(names[index], folder) for index in chosen]


def sample_as_json(sample: Sample) -> Mapping[str, Any]:
    """An image as {"picture": a data: URI of a PNG thumbnail}, a table row as {"row": {column: value}}."""
    if isinstance(sample, np.ndarray):
        return {"picture": _png(sample)}
    return {"row": {name: _truncated(value) for name, value in sample.items()}}


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((MAX_THUMBNAIL, MAX_THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _truncated(value: str) -> str:
    return value if len(value) <= MAX_VALUE_LENGTH else value[: MAX_VALUE_LENGTH - 1] + "…"
