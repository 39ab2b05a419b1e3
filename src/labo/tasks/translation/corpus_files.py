"""Reading a parallel corpus: files on disk in the common layouts, or a data set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labo.errors import UserError
from labo.tasks.data_files import VARIABLE, describe_location, load_hf_splits, search_roots
from labo.tasks.translation.corpora import HubDataset
from labo.tasks.translation.text_files import Pairs, match_lines, read_pairs, select_sides

# File names of each part, in order of preference: newstest is WMT's, test_2016_flickr Multi30k's.
STEMS = {
    "train": ("train",),
    "validation": ("valid", "validation", "val", "dev", "newstest2013"),
    "test": ("test", "test_2016_flickr", "newstest2014"),
}
# One of this many training pairs of IWSLT 2014 validates, as in fairseq's recipe.
HELD_OUT_EVERY = 23
# Files to read in order: of the source and the target, or one with both sides and None.
FilePairs = list[tuple[Path, Path | None]]


@dataclass(frozen=True)
class CorpusFiles:
    """The files of each part; `iwslt` says whether they are IWSLT's archive as published."""

    parts: dict[str, FilePairs]
    iwslt: bool = False

    def files(self) -> list[Path]:
        """All files."""
        pairs = [pair for files in self.parts.values() for pair in files]
        return [path for pair in pairs for path in pair if path is not None]

    def read(self, languages: tuple[str, str]) -> dict[str, Pairs]:
        """The pairs of each part; the files of a part are concatenated."""
        parts: dict[str, Pairs] = {}
        for part, files in self.parts.items():
            for source, target in files:
                pairs = read_pairs(source, target, languages)
                parts[part] = parts[part].joined(pairs) if part in parts else pairs
        return parts


def locate(name: str, folders: tuple[str, ...], source: str, target: str, data: str | None) -> CorpusFiles | None:
    """The files of a named corpus; None if there is no training file.

    Args:
        name: the task, for errors.
        folders: names that its folder may begin with, such as iwslt14; the languages may follow, as in iwslt14-de-en.
        source, target: language codes, the endings of its files.
        data: the folder of the corpus, or its parent; by default LABO_DATA.

    Raises:
        UserError: `data` does not exist, or a part is missing.
    """
    for root in search_roots(data):
        for folder in [*([root] if data else []), *_candidate_folders(root, folders, source, target)]:
            corpus = in_folder(folder, source, target)
            if "train" not in corpus.parts:
                continue
            for part in ("validation", "test"):
                if part not in corpus.parts and not (corpus.iwslt and part == "validation"):
                    names = ", ".join(STEMS[part])
                    raise UserError(
                        f"Task '{name}' finds train in '{folder}', but no {part} part: put files of one of the names "
                        f"{names} with the endings .{source} and .{target} beside it."
                    )
            return corpus
    return None


def not_found(name: str, folder: str, source: str, target: str, data: str | None, on_hub: bool) -> UserError:
    """The error for a corpus without files, with what to do about it."""
    fetch = ", or give the option fetch" if on_hub else ""
    return UserError(
        f"Task '{name}' finds no data {describe_location(data)}: put train, valid and test with the endings .{source} "
        f"and .{target} (.gz too) into a folder {folder} in one that --data or {VARIABLE} names{fetch}."
    )


def in_folder(folder: Path, source: str, target: str) -> CorpusFiles:
    """The files of a folder by part: lines of text, IWSLT's archive as published, or .parquet files."""
    if not folder.is_dir():
        return CorpusFiles({})
    parts: dict[str, FilePairs] = {}
    for part, stems in STEMS.items():
        pairs = (_line_files(folder, stem, source, target) for stem in stems)
        first = next((pair for pair in pairs if pair is not None), None)
        if first is not None:
            parts[part] = [first]
    if "train" in parts:
        return CorpusFiles(parts)
    return _iwslt_files(folder, source, target) or CorpusFiles(_parquet_files(folder))


def hold_out(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """(training pairs, validation pairs): every 23rd pair validates, spread over the talks."""
    count = len(pairs)
    train = [index for index in range(count) if (index + 1) % HELD_OUT_EVERY]
    return pairs.take(train), pairs.take(range(HELD_OUT_EVERY - 1, count, HELD_OUT_EVERY))


def load_hub(dataset: HubDataset) -> Mapping[Any, Any]:
    """The splits of a data set on the hub, downloaded if necessary.

    Raises:
        UserError: `datasets` cannot read it.
    """
    return load_hf_splits(
        dataset.name,
        lambda datasets: datasets.load_dataset(dataset.name, data_dir=dataset.folder, revision=dataset.revision),
    )


def read_hub(dataset: HubDataset, source: str, target: str) -> dict[str, Pairs]:
    """The pairs of each part of a data set on the hub.

    Raises:
        UserError: `datasets` cannot read it, or it has no columns of these languages.
    """
    parts = {}
    for name, rows in load_hub(dataset).items():
        part = next((part for part, stems in STEMS.items() if str(name).lower() in stems), None)
        if part is not None:
            table = rows.data.table if rows._indices is None else rows.flatten_indices().data.table
            columns = {column: table.column(column) for column in table.column_names}
            split = f"{dataset.name}, {name}"
            sides = select_sides(columns, (source, target), split)
            parts[part] = match_lines(*sides, f"{split}, {source}", f"{split}, {target}")
    if "train" not in parts:
        raise UserError(f"The data set '{dataset.name}' has no part train.")
    return parts


def _candidate_folders(root: Path, folders: tuple[str, ...], source: str, target: str) -> Iterator[Path]:
    for name in folders:
        for pair in (f"{source}-{target}", f"{target}-{source}", f"{source}_{target}", f"{target}_{source}"):
            for separator in ("-", ".", "_", ".tokenized.", "/"):
                yield root / f"{name}{separator}{pair}"
        yield root / name


def _line_files(folder: Path, stem: str, source: str, target: str) -> tuple[Path, Path] | None:
    for pair in ("", f".{source}-{target}", f".{target}-{source}"):
        files = [_existing(folder / f"{stem}{pair}.{language}") for language in (source, target)]
        if files[0] is not None and files[1] is not None:
            return files[0], files[1]
    return None


def _existing(path: Path) -> Path | None:
    gzipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else gzipped if gzipped.is_file() else None


def _iwslt_files(folder: Path, source: str, target: str) -> CorpusFiles | None:
    """IWSLT's archive: train.tags.de-en.de, and IWSLT14.TED.tst2010.de-en.de.xml and the like for the other parts.

    The tst sets test. In later years the dev sets validate; in 2014, as in fairseq's recipe, they test too and a part
    of the training file validates.
    """
    for pair in (f"{source}-{target}", f"{target}-{source}"):
        train = [_existing(folder / f"train.tags.{pair}.{language}") for language in (source, target)]
        if train[0] is None or train[1] is None:
            continue
        sets = sorted(folder.glob(f"IWSLT*.{pair}.{source}.xml"))
        both = [(path, path.with_name(path.name.removesuffix(f"{source}.xml") + f"{target}.xml")) for path in sets]
        dev: FilePairs = [(one, other) for one, other in both if ".dev" in one.name and other.is_file()]
        tst: FilePairs = [(one, other) for one, other in both if ".tst" in one.name and other.is_file()]
        parts: dict[str, FilePairs] = {"train": [(train[0], train[1])]}
        if any(path.name.startswith("IWSLT14") for path in sets):
            dev, tst = [], dev + tst
        return CorpusFiles({**parts, **({"validation": dev} if dev else {}), **({"test": tst} if tst else {})}, True)
    return None


def _parquet_files(folder: Path) -> dict[str, FilePairs]:
    """The .parquet files in a folder or in its folder data, by the part that their names begin with."""
    parts: dict[str, FilePairs] = {}
    for file in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        stem = file.name.lower().removesuffix(".parquet").partition("-")[0]
        part = next((part for part, stems in STEMS.items() if stem in stems), None)
        if part is not None:
            parts.setdefault(part, []).append((file, None))
    return parts
