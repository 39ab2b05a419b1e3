"""Number names in two languages: real words, and nothing to download.

Source: the rules of the num2words package.
"""

from __future__ import annotations

from typing import Any

import torch

from labo.errors import UserError, unknown
from labo.tasks.translation.pairs import Pairs

LARGEST = 999_999
VALIDATION, TEST = 300, 500
MOST_TRAINED = 100_000


def draw(seed: int, count: int, source: str, target: str) -> dict[str, Pairs]:
    """Names of different whole numbers from 0 to 999,999: `count` to train, 300 to validate, 500 to test.

    The seed draws them; those that validate and test are the same whatever `count` is.

    Args:
        seed: draws.
        count: from 1 to 100,000.
        source, target: languages of num2words.

    Raises:
        UserError: a language that num2words does not know, or the same twice.

    Example:
        >>> found = draw(0, 10, "en", "de")
        >>> [len(found[part]) for part in ("train", "validation", "test")]
        [10, 300, 500]
    """
    for language in (source, target):
        _known(language)
    if source == target:
        raise UserError(f"Expected two languages, but got '{source}' twice.")
    order = torch.randperm(LARGEST + 1, generator=torch.Generator().manual_seed(seed))[: TEST + VALIDATION + count]
    test, validation, train = order.split((TEST, VALIDATION, count))
    parts = {"train": train, "validation": validation, "test": test}
    return {part: _named(numbers.tolist(), source, target) for part, numbers in parts.items()}


def _named(numbers: list[int], source: str, target: str) -> Pairs:
    return Pairs([name(number, source) for number in numbers], [name(number, target) for number in numbers])


def name(number: int, language: str) -> str:
    """What a number is called.

    Example:
        >>> name(321, "en"), name(321, "de")
        ('three hundred and twenty-one', 'dreihunderteinundzwanzig')
    """
    import num2words

    try:
        return num2words.num2words(number, lang=language)
    except (NotImplementedError, OverflowError, IndexError, KeyError) as error:
        raise UserError(f"num2words cannot name {number:,} in the language '{language}'.") from error


def version() -> str:
    """The version of num2words: another may call numbers otherwise."""
    from importlib import metadata

    return metadata.version("num2words")


def _known(language: Any) -> None:
    import num2words

    if language not in num2words.CONVERTER_CLASSES:
        raise unknown("language", language, num2words.CONVERTER_CLASSES)
