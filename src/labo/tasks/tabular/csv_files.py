"""Tables in .csv files of other programs: the separator is found, and every line has the cells of the header."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from labo.errors import UserError, first_line

SEPARATORS = (",", ";", "\t", "|")
# What separators are called that are hard to type.
SEPARATOR_NAMES = {"\\t": "\t", "tab": "\t", "space": " "}
# The separator is found in so many rows; rows become columns in chunks, which bounds the memory.
SNIFFED_ROWS, CHUNK_ROWS = 200, 50_000
MAX_CELL_LETTERS = 2**30

_SEPARATOR_LINE = re.compile(r"\"?sep=(.)\"?\s*", re.IGNORECASE | re.DOTALL)


def read_csv(path: Path, separator: str | None) -> Any:
    """The table in a .csv file with a header, as a pandas DataFrame of strings.

    Space around a cell is dropped; an empty cell is missing. A column without a name is called "Unnamed: 0" after its
    place, as pandas calls it. An empty line is a row of a table with one column, and no row of others. At the end of a
    line there may be a separator too many. The first line `sep=;` of a spreadsheet program names the separator.

    Args:
        path: UTF-8 text.
        separator: a character; None to find it in the file.

    Raises:
        UserError: a line has other cells than the header, a quote does not end, or several separators fit.
        UnicodeDecodeError, OSError: the file cannot be read.
    """
    import pandas as pd

    csv.field_size_limit(MAX_CELL_LETTERS)
    with open(path, encoding="utf-8-sig", newline="") as file:
        named = _SEPARATOR_LINE.fullmatch(file.readline())
        start = file.tell() if named else 0
        file.seek(start)
        found = separator or (named.group(1) if named else _find_separator(file, path))
        file.seek(start)
        rows = _rows(file, path, found, lines_before=int(start > 0))
        header = next(rows, [])
        names = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(header)]
        chunks = [_columns(chunk) for chunk in iter(lambda: list(islice(rows, CHUNK_ROWS)), [])]
    refuse_duplicates(names, path)
    frame = pd.concat(chunks, ignore_index=True) if chunks else pd.DataFrame(columns=range(len(names)))
    return frame.set_axis(names, axis=1)


def parse_separator(text: str) -> str:
    r"""The character that `--separator` names.

    Raises:
        UserError: it is no single character.

    Example:
        >>> parse_separator("tab"), parse_separator(";")
        ('\t', ';')
    """
    separator = SEPARATOR_NAMES.get(text, text)
    if len(separator) != 1 or separator in '"\r\n':
        raise UserError(f"Expected --separator to be one character, or tab or space, but got '{text}'.")
    return separator


def refuse_duplicates(names: Sequence[str], path: Path) -> None:
    """Refuse two columns of one name.

    Raises:
        UserError: there are.
    """
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise UserError(f"The file '{path}' has two columns named '{name}': rename or remove one.")


def _find_separator(file: IO[str], path: Path) -> str:
    """The separator that gives every line the cells of the header, and the most of them.

    Where none does, a line is wrong, and the header decides: reading then says which line.
    """
    lines = list(islice(file, SNIFFED_ROWS))
    widths: dict[str, int] = {}
    header_widths: dict[str, int] = {}
    for separator in SEPARATORS:
        try:
            rows = [row for row in csv.reader(lines, delimiter=separator, skipinitialspace=True) if any(row)]
        except csv.Error:
            continue
        # The last row may go on beyond these lines.
        header, body = (rows or [[]])[0], rows[1 : -1 if len(lines) == SNIFFED_ROWS else None]
        header_widths[separator] = len(header)
        if len(header) > 1 and all(_fits(row, len(header)) for row in body):
            widths[separator] = len(header)
    widths = widths or header_widths or {",": 1}
    best = [separator for separator, width in widths.items() if width == max(widths.values())]
    if len(best) > 1 and widths[best[0]] > 1:
        shown = " and ".join(repr(separator) for separator in best)
        raise UserError(f"The lines of '{path}' are cells between {shown} alike: choose one with --separator.")
    return best[0]


def _fits(row: Sequence[str], width: int) -> bool:
    return len(row) >= width and not any(row[width:])


def _rows(file: IO[str], path: Path, separator: str, lines_before: int) -> Iterator[list[str]]:
    """The header and the rows, each with the cells of the header; errors give the line in the file."""
    reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
    width, empty_rows, line = 0, 0, lines_before + 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"Cannot read line {line} of '{path}': {first_line(error)}.") from error
        if row is None:
            return
        if not width:
            width = len(row)  # an empty line is no header
            if row:
                yield row
        elif len(row) < 2 and width > 1 and not any(cell.strip() for cell in row):
            pass
        elif not row:
            empty_rows += 1  # rows only if another follows: a file may end with empty lines
        elif _fits(row, width):
            yield from ([""] for _ in range(empty_rows))
            empty_rows = 0
            yield row[:width]
        else:
            raise UserError(
                f"Line {line} of '{path}' has {len(row)} cell{'s' * (len(row) > 1)}, but its header has {width}; cells "
                f"are between {separator!r}: tell another with --separator."
            )
        line = lines_before + reader.line_num + 1


def _columns(rows: list[list[str]]) -> Any:
    import pandas as pd

    columns = ([cell.strip() or None for cell in column] for column in zip(*rows, strict=True))
    return pd.DataFrame({index: pd.Series(column, dtype="str") for index, column in enumerate(columns)})
