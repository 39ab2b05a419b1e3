"""Codes of languages."""

from __future__ import annotations

import re

from labo.errors import UserError

# A region or a script may follow, as in pt-BR and zh_Hans.
_CODE = re.compile(r"([a-z]{2,3})([-_][A-Za-z0-9]{2,8})*")
# A withdrawn code that is still known; `train.sh` is a file of another kind.
_NO_ENDINGS = frozenset({"sh"})


def is_code(text: str) -> bool:
    """Whether this is a code of ISO 639, of two or three letters, of a language or a family of them.

    Source: ISO 639-1, -2, -3 and -5, as the package pycountry has them.

    Example:
        >>> [is_code(text) for text in ("de", "pt-BR", "gsw", "xx", "xyz")]
        [True, True, True, False, False]
    """
    import pycountry

    found = _CODE.fullmatch(text)
    if found is None:
        return False
    code = found.group(1)
    if len(code) == 2:
        return pycountry.languages.get(alpha_2=code) is not None
    languages, families = pycountry.languages, pycountry.language_families
    known = languages.get(alpha_3=code), languages.get(bibliographic=code), families.get(alpha_3=code)
    return any(each is not None for each in known)


def of_ending(text: str) -> str | None:
    """The language that the ending of a file tells: two letters that are a code.

    Example:
        >>> of_ending("de"), of_ending("txt"), of_ending("in")
        ('de', None, None)
    """
    return text if len(text) == 2 and text not in _NO_ENDINGS and is_code(text) else None


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
