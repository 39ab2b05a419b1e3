"""Sentences in files: one a line, plain or gzipped; two columns of a .tsv file; the columns of a .parquet file."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

from labo.errors import UserError
from labo.tasks.translation import iwslt
from labo.tasks.translation.pairs import Pairs, matched

_GZIP, _BOM = b"\x1f\x8b", "\ufeff"
COLUMNS = (".tsv", ".tsv.gz", ".parquet")


def holds_both(path: Path) -> bool:
    """Whether a file of this name holds both sides: a .tsv, .tsv.gz or .parquet file."""
    return path.name.lower().endswith(COLUMNS)


def read_pairs(source: Path, target: Path | None, languages: tuple[str, str]) -> Pairs:
    """The pairs in two files, or in the one that holds both sides; `languages` name the columns of a .parquet file.

    Raises:
        UserError: a file is missing, damaged or no UTF-8, or the sides do not match.
    """
    if target is not None:
        return matched(read_lines(source), read_lines(target), str(source), str(target))
    is_parquet = source.suffix.lower() == ".parquet"
    columns = _parquet(source, languages) if is_parquet else read_columns(source)
    return matched(*columns, f"{source}, the first column", f"{source}, the second column")


def read_lines(path: str | Path) -> list[str]:
    r"""The lines of a UTF-8 file, plain or gzipped, without a byte-order mark and without \n or \r\n.

    Only \n ends a line: the other line ends of Unicode, such as U+2028, stand inside sentences. In the XML and tagged
    files of IWSLT, the sentences.

    Raises:
        UserError: the file is missing, damaged, or not UTF-8; the latter with the line and the byte.
    """
    path = Path(path)
    content = _content(path)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        within = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise UserError(
            f"Expected '{path}' to be UTF-8 text, but got the byte 0x{content[error.start]:02x} at offset "
            f"{error.start}, line {line}, byte {within} of it."
        ) from error
    lines = text.removeprefix(_BOM).split("\n")
    if lines[-1] == "":
        lines.pop()
    lines = [line[:-1] if line.endswith("\r") else line for line in lines]
    return iwslt.sentences(lines, path.name)


def read_columns(path: str | Path) -> tuple[list[str], list[str]]:
    """The two columns of a tab-separated file.

    Raises:
        UserError: as `read_lines`, or a line has other than two columns.
    """
    source, target = [], []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.split("\t")
        if len(cells) != 2:
            raise UserError(
                f"Expected two columns divided by a tab in line {number} of '{path}', but got {len(cells)}."
            )
        source.append(cells[0])
        target.append(cells[1])
    return source, target


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"No such file: '{path}'.")
    try:
        content = path.read_bytes()
        if content[:2] == _GZIP:
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"Cannot read '{path}': {error}.") from error
    if not content:
        raise UserError(f"The file '{path}' is empty.")
    return content


def _parquet(path: Path, languages: tuple[str, str]) -> tuple[list[str], list[str]]:
    import pyarrow
    from pyarrow import parquet

    if not path.is_file():
        raise UserError(f"No such file: '{path}'.")
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"Cannot read '{path}': {str(error).splitlines()[0]}.") from error
    return columns_of({name: table.column(name) for name in table.column_names}, languages, str(path))


def columns_of(table: dict[str, Any], languages: tuple[str, str], name: str) -> tuple[list[str], list[str]]:
    """The two sides of a table: columns named by `languages`, or a column `translation` of such mappings.

    `table` holds columns of pyarrow by name.

    Raises:
        UserError: it has no such columns.
    """
    inner = table.get("translation")
    if inner is not None and set(languages) - set(table):
        fields = [inner.type.field(i).name for i in range(inner.type.num_fields)]
        rows = inner.to_pylist() if not set(languages) - set(fields) else []
        table = {field: [(row or {}).get(field) for row in rows] for field in fields}
    missing = [language for language in languages if language not in table]
    if missing:
        raise UserError(f"Expected '{name}' to have a column '{missing[0]}', but got {', '.join(table)}.")
    source, target = (table[language] for language in languages)
    return _lines_of(source), _lines_of(target)


def _lines_of(column: Any) -> list[str]:
    """Cells as lines: a sentence has no line ends, and a missing one is empty."""
    cells = column.to_pylist() if hasattr(column, "to_pylist") else column
    return ["" if cell is None else str(cell).replace("\r\n", " ").replace("\n", " ") for cell in cells]
