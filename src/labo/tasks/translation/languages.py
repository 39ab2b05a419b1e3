"""Codes of languages."""

from __future__ import annotations

import difflib
import re

from labo.errors import UserError

# ISO 639-1, the codes of two letters.
_CODES = """
aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en
eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja
jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb
nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq
sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
TWO_LETTERS = frozenset(_CODES.split())
# A region or a script may follow, as in pt-BR and zh_Hans.
_CODE = re.compile(r"([a-z]{2,3})([-_][A-Za-z0-9]{2,8})*")


def is_code(text: str) -> bool:
    """Whether this is a code of ISO 639: one of the two-letter ones, or any three letters.

    Example:
        >>> [is_code(text) for text in ("de", "pt-BR", "gsw", "xx", "txt2")]
        [True, True, True, False, False]
    """
    found = _CODE.fullmatch(text)
    return found is not None and (len(found.group(1)) == 3 or found.group(1) in TWO_LETTERS)


def checked(text: object, option: str) -> str:
    """`text`, if it is a code.

    Raises:
        UserError: nobody knows it.
    """
    if not isinstance(text, str) or not is_code(text):
        near = difflib.get_close_matches(str(text), TWO_LETTERS, n=1, cutoff=0.5)
        hint = f"; the nearest is '{near[0]}'" if near else ""
        raise UserError(
            f"Expected option `{option}` to be a language code of ISO 639, such as de or gsw, but got {text!r}{hint}."
        )
    return text
