"""Codes of languages."""

from __future__ import annotations

import re

from labo.errors import UserError

# A region or a script may follow, as in pt-BR and zh_Hans.
_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
# Withdrawn from ISO 639-1: still codes, but `train.in` and `train.sh` are files of another kind.
_WITHDRAWN = frozenset({"bh", "in", "iw", "ji", "jw", "mo", "sh"})


def is_code(text: str) -> bool:
    """Whether this is a code of ISO 639, of two or three letters, that the registry of language tags has.

    Source: the IANA language subtag registry, as the package langcodes has it.

    Example:
        >>> [is_code(text) for text in ("de", "pt-BR", "gsw", "xx", "xyz")]
        [True, True, True, False, False]
    """
    import langcodes

    return _CODE.fullmatch(text) is not None and langcodes.tag_is_valid(text)


def of_ending(text: str) -> str | None:
    """The language that the ending of a file tells: two letters that are a code.

    Example:
        >>> of_ending("de"), of_ending("txt"), of_ending("in")
        ('de', None, None)
    """
    return text if len(text) == 2 and text not in _WITHDRAWN and is_code(text) else None


def checked(text: object, option: str) -> str:
    """`text`, if it is a code.

    Raises:
        UserError: nobody knows it.
    """
    if not isinstance(text, str) or not is_code(text):
        raise UserError(
            f"Expected option `{option}` to be a language code of ISO 639, such as de or gsw, but got {text!r}."
        )
    return text
