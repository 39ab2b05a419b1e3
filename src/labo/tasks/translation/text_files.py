"""Sentence pairs, and the files they are read from: lines of text (plain, gzipped, IWSLT's XML), .tsv and .parquet.

Source of IWSLT's formats: Cettolo et al., *WIT3: Web Inventory of Transcribed and Translated Talks*, EAMT 2012.
"""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labo.errors import UserError, first_line
from labo.tasks.file_limits import check_unpacked, gunzip, require_file
from labo.tasks.translation import side_names

_GZIP, _BOM = b"\x1f\x8b", "\ufeff"
# Files with both sides of each pair.
PAIR_SUFFIXES = (".tsv", ".tsv.gz", ".parquet")

_SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg>", re.DOTALL)
# Markup between the sentences of a train.tags file; titles and descriptions are sentences too.
_TITLE = re.compile(r"^<(title|description)>(.*)</\1>$")
_METADATA = re.compile(r"^</?(url|keywords|speaker|talkid|reviewer|translator|transcript|doc)\b")


@dataclass(frozen=True)
class Pairs:
    """N sentences and their N translations.

    `source_indices` are their line numbers in the files, counted from 0; None stands for 0 to N - 1. `notes` are
    sentences for the user about how they were read.
    """

    source: list[str]
    target: list[str]
    source_indices: list[int] | None = field(default=None, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: Sequence[int]) -> Pairs:
        """The pairs at `indices`, in this order."""
        lines = self.source_indices
        taken = list(indices) if lines is None else [lines[i] for i in indices]
        return Pairs([self.source[i] for i in indices], [self.target[i] for i in indices], taken, self.notes)

    def joined(self, other: Pairs) -> Pairs:
        """These pairs followed by the others, as if from one file."""
        return Pairs(self.source + other.source, self.target + other.target, notes=self.notes + other.notes)

    def without_empty(self) -> tuple[Pairs, int]:
        """(the pairs with text on both sides, the number of pairs left out).

        Example:
            >>> Pairs(["eins", " "], ["one", "two"]).without_empty()
            (Pairs(source=['eins'], target=['one']), 1)
        """
        sides = zip(self.source, self.target, strict=True)
        kept = [i for i, (source, target) in enumerate(sides) if source.strip() and target.strip()]
        return (self if len(kept) == len(self) else self.take(kept)), len(self) - len(kept)


def match_lines(source: list[str], target: list[str], source_name: str, target_name: str) -> Pairs:
    """The pairs of two files, line by line.

    Raises:
        UserError: the files differ in length, or one has only empty lines.

    Example:
        >>> match_lines(["eins", "zwei"], ["one"], "a.de", "a.en")
        Traceback (most recent call last):
        labo.errors.UserError: Expected 'a.de' and 'a.en' to have as many lines, but got 2 and 1: line 2 of 'a.de' has \
no partner.
    """
    if len(source) != len(target):
        longer = source_name if len(source) > len(target) else target_name
        raise UserError(
            f"Expected '{source_name}' and '{target_name}' to have as many lines, but got {len(source)} and "
            f"{len(target)}: line {min(len(source), len(target)) + 1} of '{longer}' has no partner."
        )
    for lines, name in ((source, source_name), (target, target_name)):
        if not any(line.strip() for line in lines):
            raise UserError(f"Expected '{name}' to hold sentences, but got {len(lines)} empty lines.")
    return Pairs(source, target)


def holds_both_sides(path: Path) -> bool:
    """Whether a file of this name holds both sides: a .tsv, .tsv.gz or .parquet file."""
    return path.name.lower().endswith(PAIR_SUFFIXES)


def read_pairs(source: Path, target: Path | None, languages: tuple[str, str]) -> Pairs:
    """The pairs in two files, or in one that holds both sides.

    `languages` are the columns of a .parquet file, or of a .tsv file with a header.

    Raises:
        UserError: a file is missing, damaged or not UTF-8, or the sides do not match.
    """
    if target is not None:
        return match_lines(read_lines(source), read_lines(target), str(source), str(target))
    if source.suffix.lower() != ".parquet":
        return read_tsv(source, languages)
    sides = _read_parquet(source, languages)
    return match_lines(*sides, f"{source}, the first column", f"{source}, the second column")


def read_lines(path: str | Path) -> list[str]:
    r"""The lines of a UTF-8 file, plain or gzipped, without a byte-order mark and without \n or \r\n.

    Only \n ends a line: Unicode's other line ends, such as U+2028, occur inside sentences. Of the XML and tagged files
    of IWSLT, the sentences.

    Raises:
        UserError: the file is missing, damaged, or not UTF-8 (the message gives the line and the byte).
    """
    path = Path(path)
    content = _read_bytes(path)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise UserError(
            f"Expected '{path}' to be UTF-8 text, but got the byte 0x{content[error.start]:02x} at offset "
            f"{error.start}, line {line}, byte {column} of it."
        ) from error
    lines = text.removeprefix(_BOM).split("\n")
    if lines[-1] == "":
        lines.pop()
    lines = [line[:-1] if line.endswith("\r") else line for line in lines]
    return iwslt_sentences(lines, path.name)


def read_tsv(path: str | Path, languages: tuple[str, str]) -> Pairs:
    """The pairs in a tab-separated file of two columns, or of those that its header names as `languages`.

    A first line is a header if it names both languages, or if its two cells are names of sides (`source`, `tgt`) or of
    languages (`de`, `German`); a note says so.

    Raises:
        UserError: as `read_lines`, or a line has other columns.
    """
    lines = read_lines(path)
    header = [cell.strip() for cell in lines[0].split("\t")]
    named = set(languages) <= set(header) and languages[0] != languages[1]
    columns = (header.index(languages[0]), header.index(languages[1])) if named else (0, 1)
    width = len(header) if named else 2
    has_header = named or side_names.is_header(header)
    notes = ()
    if has_header:
        names = " and ".join(f"'{header[column]}'" for column in columns)
        notes = (f"The first line of '{path}' is a header: {names} are no pair.",)
    source, target = [], []
    for number, line in enumerate(lines[has_header:], 1 + has_header):
        cells = line.split("\t")
        if len(cells) != width:
            many = {2: "two columns divided by a tab"}.get(width, f"{width} columns divided by tabs")
            raise UserError(f"Expected {many} in line {number} of '{path}', but got {len(cells)}.")
        source.append(cells[columns[0]])
        target.append(cells[columns[1]])
    pairs = match_lines(source, target, f"{path}, the first column", f"{path}, the second column")
    indices = list(range(1, 1 + len(pairs))) if has_header else None
    return replace(pairs, source_indices=indices, notes=notes)


def iwslt_sentences(lines: list[str], name: str) -> list[str]:
    """The sentences in the lines of an IWSLT file; the lines of any other file.

    Example:
        >>> iwslt_sentences(["<url>http://x</url>", "<title>On bees</title>", "Bees hum."], "train.tags.de-en.en")
        ['On bees', 'Bees hum.']
        >>> iwslt_sentences(['<doc><seg id="1"> Tom &amp; Ann </seg>', "</doc>"], "IWSLT14.TED.tst2010.de-en.en.xml")
        ['Tom & Ann']
    """
    name = name.lower().removesuffix(".gz")
    if name.endswith(".xml"):
        return [html.unescape(text).strip() for text in _SEGMENT.findall("\n".join(lines))]
    if not name.startswith("train.tags."):
        return lines
    sentences = []
    for line in lines:
        stripped = line.strip()
        title = _TITLE.match(stripped)
        if title:
            sentences.append(title.group(2).strip())
        elif not _METADATA.match(stripped):
            sentences.append(stripped)
    return sentences


def select_sides(table: dict[str, Any], languages: tuple[str, str], name: str) -> tuple[list[str], list[str]]:
    """The two sides of a table with a column per language, or one column `translation` of dicts by language.

    `table` maps names to pyarrow columns.

    Raises:
        UserError: it has no such columns.
    """
    nested = table.get("translation")
    if nested is not None and set(languages) - set(table):
        fields = [nested.type.field(i).name for i in range(nested.type.num_fields)]
        rows = nested.to_pylist() if not set(languages) - set(fields) else []
        table = {field: [(row or {}).get(field) for row in rows] for field in fields}
    missing = [language for language in languages if language not in table]
    if missing:
        raise UserError(f"Expected '{name}' to have a column '{missing[0]}', but got {', '.join(table)}.")
    source, target = (table[language] for language in languages)
    return _column_lines(source), _column_lines(target)


def _read_bytes(path: Path) -> bytes:
    require_file(path)
    try:
        with open(path, "rb") as file:
            is_gzipped = file.read(2) == _GZIP
        content = gunzip(path) if is_gzipped else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"Cannot read '{path}': {error}.") from error
    if not content:
        raise UserError(f"The file '{path}' is empty.")
    return content


def _read_parquet(path: Path, languages: tuple[str, str]) -> tuple[list[str], list[str]]:
    import pyarrow
    from pyarrow import parquet

    require_file(path)
    try:
        with open(path, "rb") as handle:  # pyarrow opens no path that is not UTF-8
            file = parquet.ParquetFile(handle)
            groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
            check_unpacked(path, sum(group.total_byte_size for group in groups))
            table = file.read()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"Cannot read '{path}': {first_line(error)}.") from error
    return select_sides({name: table.column(name) for name in table.column_names}, languages, str(path))


def _column_lines(column: Any) -> list[str]:
    """Cells as lines: line ends become spaces, a missing value becomes an empty line."""
    cells = column.to_pylist() if hasattr(column, "to_pylist") else column
    return ["" if cell is None else str(cell).replace("\r\n", " ").replace("\n", " ") for cell in cells]
