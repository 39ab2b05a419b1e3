"""The table of parallel corpora that have a task each: names, languages, sizes, and where the hub has them.

Sources: Cettolo et al., *WIT3: Web Inventory of Transcribed and Translated Talks*, 2012 (IWSLT); Elliott et al.,
*Multi30K: Multilingual English-German Image Descriptions*, 2016; tatoeba.org; the shared task of WMT 2014.
"""

from __future__ import annotations

from dataclasses import dataclass

# The revision with the .parquet files that the hub makes of data sets that come with code.
_CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hugging Face hub: its name, the folder of the language pair, a revision with .parquet files."""

    name: str
    folder: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Corpus:
    """A corpus in one direction.

    Args:
        description: one line on it.
        source, target: language codes, the endings of its files.
        folders: names that its folder may begin with.
        hub: where the Hugging Face hub has it, if it does.
        vocabulary_size: pieces of the vocabulary, if the text supports as many.
        tokens: budget of a batch.
        epochs: default number of epochs.
    """

    description: str
    source: str
    target: str
    folders: tuple[str, ...]
    hub: HubDataset | None = None
    vocabulary_size: int = 8_000
    tokens: int = 2_048
    epochs: int = 8


def _corpora(name: str, description: str, directions: dict[str, HubDataset | None], **settings) -> dict[str, Corpus]:
    corpora = {}
    for direction, hub in directions.items():
        source, target = direction.split("-")
        corpora[f"{name}-{direction}"] = Corpus(description, source, target, hub=hub, **settings)
    return corpora


_TALKS = {"vocabulary_size": 10_000, "tokens": 4_096, "epochs": 20}
_MULTI30K = HubDataset("bentrevett/multi30k")
_IWSLT14 = HubDataset("bbaaaa/iwslt14-de-en", revision=_CONVERTED)

CORPORA: dict[str, Corpus] = {
    **_corpora(
        "iwslt14", "IWSLT 2014, talks",
        {"de-en": _IWSLT14, "en-de": _IWSLT14},
        folders=("iwslt14", "iwslt2014"), **_TALKS,
    ),
    **_corpora(
        "iwslt17", "IWSLT 2017, talks",
        {pair: HubDataset("IWSLT/iwslt2017", f"iwslt2017-{pair}", _CONVERTED) for pair in ("fr-en", "en-fr")},
        folders=("iwslt17", "iwslt2017"), **_TALKS,
    ),
    **_corpora(
        "wmt14", "WMT 2014, news and parliament",
        {pair: HubDataset("wmt/wmt14", "fr-en" if "fr" in pair else "de-en") for pair in ("en-de", "de-en", "en-fr")},
        folders=("wmt14",), vocabulary_size=32_000, tokens=4_096, epochs=10,
    ),
    **_corpora(
        "multi30k", "Multi30k, 29,000 captions of images",
        {"de-en": _MULTI30K, "en-de": _MULTI30K, "fr-en": None, "en-fr": None},
        folders=("multi30k",),
    ),
    **_corpora(
        "tatoeba", "Tatoeba, short sentences by volunteers",
        {"de-en": None, "en-de": None, "fr-en": None},
        folders=("tatoeba",),
    ),
}  # fmt: skip
