"""Implementations of the loss, and the one place that chooses among them."""

from __future__ import annotations

from labo.errors import unknown

IMPLEMENTATIONS = ("reference",)


def implementations() -> tuple[str, ...]:
    """The implementations that this machine can run, as `impl=` takes them.

    Example:
        >>> "reference" in implementations()
        True
    """
    return IMPLEMENTATIONS


def choose(impl: str) -> str:
    """The implementation that `impl` stands for ("auto" takes the best one here).

    Raises:
        ValueError: nothing has this name.
    """
    if impl == "auto":
        return "reference"
    if impl not in IMPLEMENTATIONS:
        raise unknown("impl", impl, ("auto", *IMPLEMENTATIONS))
    return impl
