"""The family of label regularizers: one base class, one file per member, one registry.

`create("labo", alpha=0.1, beta=2.0)` creates a member, and `labo.LabelRegularizedLoss` turns it into a loss. Listing
the names does not import torch; the module of a member is imported when it is created or described.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from labo.regularizers.registry import (
    available,
    candidates,
    costs,
    create,
    describe,
    document,
    is_tuned,
    ranges,
    register,
)

if TYPE_CHECKING:
    from labo.regularizers.base import Regularizer, SoftLabelRegularizer
    from labo.regularizers.same_class import SameClass

_LAZY_ATTRIBUTES = {"Regularizer": "base", "SoftLabelRegularizer": "base", "SameClass": "same_class"}

__all__ = [
    "Regularizer",
    "SameClass",
    "SoftLabelRegularizer",
    "available",
    "candidates",
    "costs",
    "create",
    "describe",
    "document",
    "is_tuned",
    "ranges",
    "register",
]


def __getattr__(name: str) -> Any:
    """Import names that need torch on first use."""
    if name in _LAZY_ATTRIBUTES:
        return getattr(importlib.import_module(f"labo.regularizers.{_LAZY_ATTRIBUTES[name]}"), name)
    raise AttributeError(f"module 'labo.regularizers' has no attribute {name!r}")
