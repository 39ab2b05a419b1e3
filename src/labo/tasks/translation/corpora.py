"""The translation tasks over corpora with names, and over number names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from labo.errors import UserError
from labo.tasks.data_files import fingerprint
from labo.tasks.translation import corpus_files as places
from labo.tasks.translation import hub, iwslt, numbers
from labo.tasks.translation.custom import texts
from labo.tasks.translation.pairs import Pairs
from labo.tasks.translation.task import TranslationTask


class Named(TranslationTask):
    """A corpus with a name, in one direction, with its own validation and test parts; see `TranslationTask`."""

    bases: ClassVar[tuple[str, ...]]
    direction: ClassVar[tuple[str, str]]
    corpus: ClassVar[hub.Corpus | None] = None

    def __init__(self, *, data: str | None = None, fetch: bool = False, **options: Any) -> None:
        data = None if data is None else str(Path(data).resolve())
        super().__init__(data=data, fetch=fetch, **options)

    @property
    def languages(self) -> tuple[str, str]:
        """See `TranslationTask.languages`."""
        return self.direction

    def read(self, seed: int) -> dict[str, Pairs]:
        """See `TranslationTask.read`."""
        found = self._found()
        if found is None:
            return hub.read(self._corpus(), *self.direction)
        read = texts(found.parts, self.direction)
        if found.published and "validation" not in read:
            read["train"], read["validation"] = iwslt.held_out(read["train"])
        return read

    def fingerprint(self) -> str:
        """See `Task.fingerprint`."""
        found = self._found()
        if found is None:
            return hub.fingerprint(self._corpus())
        files = found.files()
        return fingerprint(files, files[0].parent)

    def _found(self) -> places.Found | None:
        """The files on this disk; None if there are none and the hub is to be asked."""
        found = places.locate(self.name, self.bases, *self.direction, self.data)
        if found is None and (not self.fetch or self.corpus is None):
            raise places.not_there(self.name, self.bases[0], *self.direction, self.data, self.corpus is not None)
        return found

    def _corpus(self) -> hub.Corpus:
        assert self.corpus is not None
        return self.corpus


class Iwslt14DeEn(Named):
    """IWSLT 2014, German to English: talks."""

    name, direction, bases = "iwslt14-de-en", ("de", "en"), ("iwslt14", "iwslt2014")
    size, tokens = 10_000, 4_096
    corpus = hub.Corpus("bbaaaa/iwslt14-de-en", revision=hub.CONVERTED)


class Iwslt14EnDe(Iwslt14DeEn):
    """IWSLT 2014, English to German."""

    name, direction = "iwslt14-en-de", ("en", "de")


class Iwslt17FrEn(Named):
    """IWSLT 2017, French to English: talks."""

    name, direction, bases = "iwslt17-fr-en", ("fr", "en"), ("iwslt17", "iwslt2017")
    size, tokens = 10_000, 4_096
    corpus = hub.Corpus("IWSLT/iwslt2017", "iwslt2017-fr-en", hub.CONVERTED)


class Iwslt17EnFr(Iwslt17FrEn):
    """IWSLT 2017, English to French."""

    name, direction = "iwslt17-en-fr", ("en", "fr")
    corpus = hub.Corpus("IWSLT/iwslt2017", "iwslt2017-en-fr", hub.CONVERTED)


class Wmt14EnDe(Named):
    """WMT 2014, English to German: news and parliament; newstest2013 validates, newstest2014 tests."""

    name, direction, bases = "wmt14-en-de", ("en", "de"), ("wmt14",)
    size, tokens, epochs = 32_000, 4_096, 10
    corpus = hub.Corpus("wmt/wmt14", "de-en")


class Wmt14DeEn(Wmt14EnDe):
    """WMT 2014, German to English."""

    name, direction = "wmt14-de-en", ("de", "en")


class Wmt14EnFr(Wmt14EnDe):
    """WMT 2014, English to French."""

    name, direction = "wmt14-en-fr", ("en", "fr")
    corpus = hub.Corpus("wmt/wmt14", "fr-en")


class Multi30kDeEn(Named):
    """Multi30k, German to English: captions of pictures; test_2016_flickr tests.

    Source: Elliott et al., *Multi30K: Multilingual English-German Image Descriptions*, 2016.
    """

    name, direction, bases = "multi30k-de-en", ("de", "en"), ("multi30k",)
    epochs = 8
    corpus = hub.Corpus("bentrevett/multi30k")


class Multi30kEnDe(Multi30kDeEn):
    """Multi30k, English to German."""

    name, direction = "multi30k-en-de", ("en", "de")


class Multi30kFrEn(Multi30kDeEn):
    """Multi30k, French to English."""

    name, direction, corpus = "multi30k-fr-en", ("fr", "en"), None


class Multi30kEnFr(Multi30kFrEn):
    """Multi30k, English to French."""

    name, direction = "multi30k-en-fr", ("en", "fr")


class TatoebaDeEn(Named):
    """Tatoeba, German to English: short sentences by volunteers, tatoeba.org."""

    name, direction, bases = "tatoeba-de-en", ("de", "en"), ("tatoeba",)
    epochs = 8


class TatoebaEnDe(TatoebaDeEn):
    """Tatoeba, English to German."""

    name, direction = "tatoeba-en-de", ("en", "de")


class TatoebaFrEn(TatoebaDeEn):
    """Tatoeba, French to English."""

    name, direction = "tatoeba-fr-en", ("fr", "en")


class Numbers(TranslationTask):
    """Number names from German to English, or of any two languages of num2words; see `numbers.draw`.

    English is the target, because a German number is one word, and BLEU counts up to four of them in a row. The default
    of 400 pairs is few enough that a small network does not learn every number.

    Args:
        source_language, target_language: codes of num2words.
        train_size: how many pairs to train on, up to 100,000.
        options: see `TranslationTask`.
    """

    name = "numbers"
    seeded = True
    size, epochs, tokens, tiny_rate = 160, 30, 256, 1e-3

    def __init__(
        self,
        *,
        source_language: str = "de",
        target_language: str = "en",
        train_size: int = 400,
        **options: Any,
    ) -> None:
        if type(train_size) is not int or not 1 <= train_size <= numbers.MOST_TRAINED:
            raise UserError(
                f"Expected a train size from 1 to {numbers.MOST_TRAINED:,} for 'numbers', but got {train_size!r}."
            )
        self._languages = (source_language, target_language)
        options |= {"source_language": source_language, "target_language": target_language}
        super().__init__(train_size=train_size, **options)

    @property
    def languages(self) -> tuple[str, str]:
        """See `TranslationTask.languages`."""
        return self._languages

    def read(self, seed: int) -> dict[str, Pairs]:
        """See `TranslationTask.read`."""
        assert self.train_size is not None
        return numbers.draw(seed, self.train_size, *self.languages)

    def fingerprint(self) -> str:
        """See `Task.fingerprint`: the names are those of one version of num2words."""
        return f"num2words-{numbers.version()}"
