"""Numbers that users give: reading them, and checking their range. Needs no torch."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from labo.errors import UserError, shorten


def is_number(value: Any) -> bool:
    """Whether a value is a real number; a boolean is not, nor is a tensor."""
    return isinstance(value, Real) and not isinstance(value, bool)


def parse(text: str) -> int | float | None:
    """The number that a text is, such as 3, 1e-3, inf or .nan; None where it is none.

    Raises:
        UserError: it is too large for a floating-point number.

    Example:
        >>> parse("012"), parse("1e-3"), parse("-.inf"), parse("1:30")
        (12, 0.001, -inf, None)
    """
    words = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
    try:
        number = words[text.lower()] if text.lower() in words else float(text)
    except ValueError:
        return None
    if math.isinf(number) and any(letter.isdigit() for letter in text):
        raise UserError(f"The number {shorten(text)} is too large.")
    try:
        return int(text)
    except ValueError:
        return number


def number(name: str, value: float, interval: str) -> None:
    """Check that the argument `name` is a number (not a tensor) in an interval such as "[0, 1]" or "(0, inf)"."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    if is_number(value):
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if above and below:
            return
    raise UserError(f"Expected argument `{name}` to be a number in {interval}, but got {_show(value)}.")


def integer(name: str, value: int, minimum: int = 1, maximum: int | None = None) -> None:
    """Check that the argument `name` is an integer from `minimum` to `maximum`, inclusive."""
    whole = isinstance(value, Integral) and is_number(value)
    if whole and minimum <= value and (maximum is None or value <= maximum):
        return
    expected = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    raise UserError(f"Expected argument `{name}` to be a whole number {expected}, but got {_show(value)}.")


def setting(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Check that the setting `name` is a finite number within its bounds.

    Args:
        name, value: of the setting.
        minimum, maximum: inclusive bounds.
        above, below: exclusive bounds.
        whole: whether the number must be whole; 64.0 is.

    Raises:
        UserError: it is not.

    Example:
        >>> setting("momentum", 1.0, minimum=0, below=1)
        Traceback (most recent call last):
        labo.errors.UserError: Expected setting `momentum` to be in [0, 1), but got 1.0.
    """
    finite = is_number(value) and -math.inf < value < math.inf  # of an integer too large for math.isfinite as well
    if finite and maximum is not None and value > maximum:
        raise UserError(f"Expected setting `{name}` to be at most {maximum:,}, but got {_show(value)}.")
    fits = finite and (not whole or value == int(value)) and (minimum is None or value >= minimum)
    if fits and (above is None or value > above) and (below is None or value < below):
        return
    expected = "a whole number" if whole else "a finite number"
    if minimum is not None and below is not None:
        expected = f"in [{minimum:g}, {below:g})"
    elif above is not None:
        expected += f" above {above:g}"
    elif minimum is not None:
        expected += f" of at least {minimum:g}"
    raise UserError(f"Expected setting `{name}` to be {expected}, but got {_show(value)}.")


def _show(value: Any) -> str:
    try:
        return shorten(repr(value))
    except (RecursionError, ValueError):  # nested too deeply, or too many digits to print
        return f"a value of type {type(value).__name__}"
