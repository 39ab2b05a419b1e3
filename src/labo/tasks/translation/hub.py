"""Parallel corpora of the Hugging Face hub, as .parquet files; asked only when the user asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labo.errors import UserError
from labo.tasks.translation.corpus_files import STEMS
from labo.tasks.translation.pairs import Pairs, matched
from labo.tasks.translation.text_files import columns_of

# Where the hub keeps the .parquet files that it makes of data sets which come with code.
CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class Corpus:
    """A data set on the hub: its name, the folder of the pair in it, and the revision that has .parquet files."""

    name: str
    folder: str | None = None
    revision: str | None = None


def read(corpus: Corpus, source: str, target: str) -> dict[str, Pairs]:
    """The pairs of a data set by part, downloaded if they were not before.

    Raises:
        UserError: `datasets` cannot read it, or it has no columns of these languages.
    """
    found = {}
    for name, rows in _load(corpus).items():
        part = next((part for part, stems in STEMS.items() if str(name).lower() in stems), None)
        if part is not None:
            table = rows.data.table if rows._indices is None else rows.flatten_indices().data.table
            columns = {column: table.column(column) for column in table.column_names}
            where = f"{corpus.name}, {name}"
            sides = columns_of(columns, (source, target), where)
            found[part] = matched(*sides, f"{where}, {source}", f"{where}, {target}")
    if "train" not in found:
        raise UserError(f"The data set '{corpus.name}' has no part train.")
    return found


def fingerprint(corpus: Corpus) -> str:
    """What `datasets` itself tells one state of a data set by."""
    return "-".join(str(rows._fingerprint) for _, rows in sorted(_load(corpus).items()))


def _load(corpus: Corpus) -> Mapping[Any, Any]:
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(corpus.name, data_dir=corpus.folder, revision=corpus.revision)
    except Exception as error:  # the library raises whatever lies beneath it
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"Cannot read the data set '{corpus.name}': {reason}.") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    return found if isinstance(found, Mapping) else {"train": found}
