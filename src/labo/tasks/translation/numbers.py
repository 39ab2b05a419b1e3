"""The task `numbers`: number names in two languages, real words without a download.

Source: the rules of the num2words package.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
from typing_extensions import override

from labo.errors import UserError, unknown
from labo.tasks.translation.task import TranslationTask
from labo.tasks.translation.text_files import Pairs

MAX_NUMBER = 999_999
VALIDATION, TEST = 300, 500
MAX_TRAIN_SIZE = 100_000


class Numbers(TranslationTask):
    """Number names from German to English, or of any two languages of num2words; see `draw`.

    English is the target because a German number is one word, and BLEU counts n-grams of up to four words. The default
    of 400 pairs is few enough that a small network does not learn every number.

    Args:
        source_language, target_language: codes of num2words.
        train_size: number of training pairs, up to 100,000.
        options: see `TranslationTask`.
    """

    name = "numbers"
    seeded = True
    default_vocabulary_size, epochs, tokens, tiny_learning_rate = 160, 30, 256, 1e-3

    def __init__(
        self,
        *,
        source_language: str = "de",
        target_language: str = "en",
        train_size: int = 400,
        **options: Any,
    ) -> None:
        if type(train_size) is not int or not 1 <= train_size <= MAX_TRAIN_SIZE:
            raise UserError(
                f"Expected a train size from 1 to {MAX_TRAIN_SIZE:,} for 'numbers', but got {train_size!r}."
            )
        self._languages = (source_language, target_language)
        options |= {"source_language": source_language, "target_language": target_language}
        super().__init__(train_size=train_size, **options)

    @property
    @override
    def languages(self) -> tuple[str, str]:
        return self._languages

    @override
    def read(self, seed: int) -> dict[str, Pairs]:
        assert self.train_size is not None
        return draw(seed, self.train_size, *self.languages)

    @override
    def fingerprint(self) -> str:
        """The version of num2words, which determines the names."""
        return f"num2words-{metadata.version('num2words')}"


def draw(seed: int, count: int, source: str, target: str) -> dict[str, Pairs]:
    """Names of distinct whole numbers from 0 to 999,999: `count` to train, 300 to validate, 500 to test.

    The validation and test numbers do not depend on `count`.

    Args:
        seed: of the draw.
        count: from 1 to 100,000.
        source, target: languages of num2words.

    Raises:
        UserError: a language that num2words does not have, or the same twice.

    Example:
        >>> parts = draw(0, 10, "en", "de")
        >>> [len(parts[part]) for part in ("train", "validation", "test")]
        [10, 300, 500]
    """
    for language in (source, target):
        _check_language(language)
    if source == target:
        raise UserError(f"Expected two languages, but got '{source}' twice.")
    order = torch.randperm(MAX_NUMBER + 1, generator=torch.Generator().manual_seed(seed))[: TEST + VALIDATION + count]
    test, validation, train = order.split((TEST, VALIDATION, count))
    parts = {"train": train, "validation": validation, "test": test}
    return {part: _name_pairs(numbers.tolist(), source, target) for part, numbers in parts.items()}


def _name_pairs(numbers: list[int], source: str, target: str) -> Pairs:
    return Pairs([name(number, source) for number in numbers], [name(number, target) for number in numbers])


def name(number: int, language: str) -> str:
    """The name of a number.

    Example:
        >>> name(321, "en"), name(321, "de")
        ('three hundred and twenty-one', 'dreihunderteinundzwanzig')
    """
    import num2words

    try:
        return num2words.num2words(number, lang=language)
    except (NotImplementedError, OverflowError, IndexError, KeyError) as error:  # what its languages raise
        raise UserError(f"num2words cannot name {number:,} in the language '{language}'.") from error


def _check_language(language: Any) -> None:
    import num2words

    if language not in num2words.CONVERTER_CLASSES:
        raise unknown("language", language, num2words.CONVERTER_CLASSES)
