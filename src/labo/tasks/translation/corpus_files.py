"""Where the files of a parallel corpus lie, in the layouts that are common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labo.errors import UserError
from labo.tasks.data_files import VARIABLE, roots, told

# What the parts are called in files, the first that is there counts: newstest is WMT's, test_2016_flickr Multi30k's.
STEMS = {
    "train": ("train",),
    "validation": ("valid", "validation", "val", "dev", "newstest2013"),
    "test": ("test", "test_2016_flickr", "newstest2014"),
}
# Files to read one after another: of the source and the target, or one that holds both and None.
Files = list[tuple[Path, Path | None]]


@dataclass(frozen=True)
class Found:
    """The files of each part, and whether they are IWSLT's as published."""

    parts: dict[str, Files]
    published: bool = False

    def files(self) -> list[Path]:
        """All of them."""
        pairs = [pair for files in self.parts.values() for pair in files]
        return [path for pair in pairs for path in pair if path is not None]


def locate(name: str, bases: tuple[str, ...], source: str, target: str, data: str | None) -> Found | None:
    """The files of a named corpus; None if no training file is there.

    Args:
        name: the task, for errors.
        bases: names that its folder may begin with, such as iwslt14; the languages may follow, as in iwslt14-de-en.
        source, target: language codes, the endings of its files.
        data: the folder of the corpus, or one that holds that folder; by default the one that LABO_DATA names.

    Raises:
        UserError: `data` is not there, or a part is missing.
    """
    for root in roots(data):
        for folder in [*([root] if data else []), *_folders(root, bases, source, target)]:
            found = in_folder(folder, source, target)
            if "train" not in found.parts:
                continue
            for part in ("validation", "test"):
                if part not in found.parts and not (found.published and part == "validation"):
                    names = ", ".join(STEMS[part])
                    raise UserError(
                        f"Task '{name}' finds train in '{folder}', but no {part} part: put files of one of the names "
                        f"{names} with the endings .{source} and .{target} beside it."
                    )
            return found
    return None


def not_there(name: str, base: str, source: str, target: str, data: str | None, hub: bool) -> UserError:
    """The sentence that a corpus is not there, and what would mend it."""
    fetch = ", or give the option fetch" if hub else ""
    return UserError(
        f"Task '{name}' finds no data {told(data)}: put train, valid and test with the endings .{source} and .{target} "
        f"(.gz too) into a folder {base} in one that --data or {VARIABLE} names{fetch}."
    )


def in_folder(folder: Path, source: str, target: str) -> Found:
    """The files of a folder by part: of sentences, .parquet files, or IWSLT's as published."""
    if not folder.is_dir():
        return Found({})
    parts: dict[str, Files] = {}
    for part, stems in STEMS.items():
        pairs = (_pair(folder, stem, source, target) for stem in stems)
        found = next((pair for pair in pairs if pair is not None), None)
        if found is not None:
            parts[part] = [found]
    return Found(parts) if "train" in parts else _published(folder, source, target) or Found(_parquet(folder))


def _folders(root: Path, bases: tuple[str, ...], source: str, target: str) -> Iterator[Path]:
    for base in bases:
        for pair in (f"{source}-{target}", f"{target}-{source}", f"{source}_{target}", f"{target}_{source}"):
            for divider in ("-", ".", "_", ".tokenized.", "/"):
                yield root / f"{base}{divider}{pair}"
        yield root / base


def _pair(folder: Path, stem: str, source: str, target: str) -> tuple[Path, Path] | None:
    for middle in ("", f".{source}-{target}", f".{target}-{source}"):
        found = [_file(folder / f"{stem}{middle}.{language}") for language in (source, target)]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    return None


def _file(path: Path) -> Path | None:
    zipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else zipped if zipped.is_file() else None


def _published(folder: Path, source: str, target: str) -> Found | None:
    """IWSLT's archive: train.tags.de-en.de, and IWSLT14.TED.tst2010.de-en.de.xml and its like to validate and test.

    Those of tst test. Those of dev validate in later years; in 2014, as in the recipe that is in use, they test too,
    and part of the training file validates.
    """
    for pair in (f"{source}-{target}", f"{target}-{source}"):
        train = [_file(folder / f"train.tags.{pair}.{language}") for language in (source, target)]
        if train[0] is None or train[1] is None:
            continue
        sets = sorted(folder.glob(f"IWSLT*.{pair}.{source}.xml"))
        both = [(path, path.with_name(path.name.removesuffix(f"{source}.xml") + f"{target}.xml")) for path in sets]
        dev: Files = [(one, other) for one, other in both if ".dev" in one.name and other.is_file()]
        tst: Files = [(one, other) for one, other in both if ".tst" in one.name and other.is_file()]
        parts: dict[str, Files] = {"train": [(train[0], train[1])]}
        if any(path.name.startswith("IWSLT14") for path in sets):
            dev, tst = [], dev + tst
        return Found({**parts, **({"validation": dev} if dev else {}), **({"test": tst} if tst else {})}, True)
    return None


def _parquet(folder: Path) -> dict[str, Files]:
    """The .parquet files in a folder or in its folder data, by what their names begin with."""
    parts: dict[str, Files] = {}
    for file in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        begins = file.name.lower().removesuffix(".parquet").partition("-")[0]
        part = next((part for part, stems in STEMS.items() if begins in stems), None)
        if part is not None:
            parts.setdefault(part, []).append((file, None))
    return parts
