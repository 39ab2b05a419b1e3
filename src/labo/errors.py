"""Errors that are told to the user in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend; its message is one clear sentence, which the command line prints as it is."""


class NonFiniteLogitsError(Exception):
    """A network whose logits are NaN or infinite."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that nothing has, with the nearest one and the whole list.

    Example:
        >>> print(unknown("method", "lab", ["labo", "none"]))
        Unknown method 'lab'; the nearest is 'labo'. Known methods: labo, none.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    hint = f"; the nearest is '{near[0]}'" if near else ""
    return UserError(f"Unknown {kind} '{name}'{hint}. Known {kind}s: {', '.join(names)}.")


def not_here(data: object) -> UserError:
    """Data that do not lie on this disk, where the name of a data set on the Hugging Face hub may be meant."""
    return UserError(
        f"No such file or folder: '{data}'; a Hugging Face data set of this name is read with the option fetch."
    )
