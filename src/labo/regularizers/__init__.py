"""The family of label regularizers: one base, one file a member, one registry.

`create("labo", alpha=0.1, beta=2.0)` makes a member, `labo.LabelRegularizedLoss` turns it into a loss. Names and
options cost no import of torch; a member's module is imported when it is created or described.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from labo.regularizers.registry import available, candidates, create, describe, register

if TYPE_CHECKING:
    from labo.regularizers.base import Regularizer, SoftLabelRegularizer

__all__ = ["Regularizer", "SoftLabelRegularizer", "available", "candidates", "create", "describe", "register"]


def __getattr__(name: str) -> Any:
    """The base classes, which need torch, when they are first used."""
    if name in ("Regularizer", "SoftLabelRegularizer"):
        from labo.regularizers import base

        return getattr(base, name)
    raise AttributeError(f"module 'labo.regularizers' has no attribute {name!r}")
