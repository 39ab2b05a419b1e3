"""Errors whose message is one sentence for the user."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class UserError(ValueError):
    """An error that the user can fix; the command line prints its message, one sentence, unchanged."""


class NonFiniteLogitsError(Exception):
    """The logits of a network are NaN or infinite."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown name, with the closest match and the list of known names.

    Example:
        >>> print(unknown("method", "lab", ["labo", "none"]))
        Unknown method 'lab'; the nearest is 'labo'. Known methods: labo, none.
    """
    names = sorted(known)
    closest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    hint = f"; the nearest is '{closest[0]}'" if closest else ""
    return UserError(f"Unknown {kind} '{shorten(str(name), 200)}'{hint}. Known {kind}s: {', '.join(names)}.")


def one_line(error: BaseException) -> str:
    r"""The message of an error on one line, without a full stop at its end; its type where it has no message.

    Example:
        >>> one_line(ValueError("two\n  lines."))
        'two lines'
    """
    return " ".join(str(error).split()).rstrip(" .:") or type(error).__name__


def shorten(text: str, length: int = 60) -> str:
    """A text of at most `length` characters, to quote it in a sentence.

    Example:
        >>> shorten("1" * 5000, 8)
        '1111111…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def not_found(data: object) -> UserError:
    """The error for data that are not on the disk, and may be the name of a data set on the Hugging Face hub."""
    if os.path.islink(str(data)):
        return UserError(f"The link '{data}' leads to no file or folder.")
    return UserError(
        f"No such file or folder: '{data}'; a Hugging Face data set of this name is read with the option fetch."
    )


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message without its full stop, to quote it in a sentence; else the error's class.

    Example:
        >>> first_line(OSError("No space left.\nMore."))
        'No space left'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")
