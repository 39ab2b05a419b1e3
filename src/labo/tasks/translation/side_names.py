"""Names of the two sides of a corpus: which column headings they are, and how BLEU splits their language."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice

from labo.errors import UserError, first_line, unknown

# Headings of columns that name no language.
_SIDES = {"source", "src", "target", "tgt", "trg", "translation", "original", "input", "output", "text", "sentence"}
_NAMES = (
    "arabic bengali bulgarian burmese catalan chinese croatian czech danish dutch english estonian finnish french "
    "german greek hebrew hindi hungarian indonesian irish italian japanese khmer korean lao latvian lithuanian malay "
    "norwegian persian polish portuguese romanian russian serbian slovak slovenian spanish swedish thai tibetan "
    "turkish ukrainian urdu vietnamese"
)
_CODES = (
    "af am ar as az be bg bn bo br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he hi hr hu hy id ig "
    "is it ja jv ka kk km kn ko ku ky la lb lo lt lv mg mi mk ml mn mr ms mt my nb ne nl nn no oc or pa pl ps pt ro ru "
    "rw sd si sk sl so sq sr su sv sw ta te tg th ti tk tl tr tt ug uk ur uz vi xh yi yo zh zu"
)
_LANGUAGES = {*_CODES.split(), *_NAMES.split()}

# BLEU counts words. Text without spaces between words, and Korean, whose words carry their endings, are split otherwise
# by sacreBLEU. Codes are those of ISO 639, of two letters and of three; `char` needs no dictionary.
_CHARACTERS = "char"
_TOKENIZER_OF_CODES = {
    "zh zho chi cmn yue": "zh",
    "ja jpn ko kor th tha km khm lo lao my mya bur bo bod tib": _CHARACTERS,
}
_TOKENIZERS = {code: name for codes, name in _TOKENIZER_OF_CODES.items() for code in codes.split()}
DEFAULT_TOKENIZER = "13a"
# Scripts of these languages, by ranges of letters: Chinese is what has no kana; Thai and Lao, Tibetan, Burmese, Khmer.
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")
_UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u1100-\u11ff\uac00-\ud7af]")
_INSPECTED = 1_000


def is_header(cells: Sequence[str]) -> bool:
    """Whether the first line of a table of pairs names its two columns.

    Example:
        >>> is_header(["source", "target"]), is_header(["de", "English"]), is_header(["ja", "yes"])
        (True, True, False)
    """
    first = [cell.lower() for cell in cells]
    return len(first) == 2 and first[0] != first[1] and all(_names_side(cell) for cell in first)


def _names_side(cell: str) -> bool:
    if re.fullmatch(r"[a-z]{2,3}[-_][a-z]{2}", cell):  # a language of a region, such as en-GB
        return cell[:-3] in _LANGUAGES
    words = re.split(r"[\W_]+|(?<=[a-z])(?=\d)", cell)
    named = any(word in _SIDES or word in _LANGUAGES for word in words)
    return named and all(word in _SIDES or word in _LANGUAGES or word.isdigit() for word in words if word)


def bleu_tokenizer(language: str, lines: Iterable[str]) -> str:
    """The name of sacreBLEU's tokenizer for a language, or, where its code decides nothing, for the script of `lines`.

    Example:
        >>> bleu_tokenizer("ja", []), bleu_tokenizer("zh-TW", []), bleu_tokenizer("en", ["a dog"])
        ('char', 'zh', '13a')
        >>> bleu_tokenizer("target", ["三百二十一"]), bleu_tokenizer("target", ["สามร้อย"])
        ('zh', 'char')
    """
    code = re.split(r"[-_]", language.lower())[0]
    if code in _TOKENIZERS:
        return _TOKENIZERS[code]
    letters = "".join(filter(str.isalpha, "".join(islice(lines, _INSPECTED))))
    han, others = len(_HAN.findall(letters)), len(_UNSPACED.findall(letters))
    if 2 * (han + others) <= len(letters):
        return DEFAULT_TOKENIZER
    return _CHARACTERS if others else "zh"


def check_tokenizer(name: str) -> None:
    """Check that sacreBLEU can split text with this tokenizer.

    Raises:
        UserError: it has no such tokenizer, or lacks a package or a file for it.
    """
    from sacrebleu.metrics.bleu import BLEU

    if name not in BLEU.TOKENIZERS:
        raise unknown("tokenizer", name, BLEU.TOKENIZERS)
    try:
        BLEU(tokenize=name)
    except Exception as error:  # some download their model
        raise UserError(f"sacreBLEU's tokenizer '{name}' does not work here: {first_line(error)}.") from error
