"""Every table of a report as CSV, for programs, and as LaTeX, for papers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from labo.errors import UserError
from labo.records.storage import write_text
from labo.report.model import Cell, Report, Table

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "±": r"$\pm$", "×": r"$\times$",
    "≤": r"$\leq$", "≥": r"$\geq$", "<": "$<$", ">": "$>$", "…": r"\ldots{}", "“": "``", "”": "''",
}  # fmt: skip


def write_tables(report: Report, *, csv_folder: Path | None = None, latex_folder: Path | None = None) -> list[Path]:
    """Write each table of a report into a folder as NAME.csv or NAME.tex; returns the paths, in order.

    Raises:
        UserError: a folder cannot be written.
    """
    targets: list[tuple[Path, str, Callable[[Table], str]]] = []
    if csv_folder is not None:
        targets.append((csv_folder, "csv", as_csv))
    if latex_folder is not None:
        targets.append((latex_folder, "tex", as_latex))
    paths = []
    for folder, ending, text in targets:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths += [
                write_text(folder / f"{name}.{ending}", text(table)) for name, table in _named_tables(report).items()
            ]
        except OSError as error:
            raise UserError(f"Cannot write tables into '{folder}': {error.strerror or error}.") from error
    return paths


def _named_tables(report: Report) -> dict[str, Table]:
    """The tables by a file name each."""
    named: dict[str, Table] = {}
    for title, table in report.tables():
        stem = re.sub(r"[^a-z0-9]+", "-", f"{title} {table.name}".lower()).strip("-")
        name, number = stem, 2
        while name in named:
            name, number = f"{stem}-{number}", number + 1
        named[name] = table
    return named


def as_csv(table: Table) -> str:
    """The table with numbers as plain text: no percent signs, and columns of their own for spreads and notes."""
    columns = [list(column) for column in zip(*table.rows, strict=True)]
    headings: list[str] = []
    values: list[list[str]] = []
    for heading, cells in zip(table.columns, columns, strict=True):
        unit = " (%)" if any(_is_percentage(cell.text) for cell in cells) else ""
        parts = {
            heading + unit: [_plain(cell.text) for cell in cells],
            f"{heading} half-width of the 95% interval": [_plain(cell.spread) for cell in cells],
            f"{heading} note": [_plain(cell.note) for cell in cells],
        }
        for index, (name, own) in enumerate(parts.items()):
            if index == 0 or any(own):
                headings.append(name)
                values.append(own)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(zip(*values, strict=True))
    return out.getvalue()


def as_latex(table: Table) -> str:
    """The table as a `tabular` of booktabs, with the best values in bold and the caption as a comment."""
    alignment = "l" + "r" * (len(table.columns) - 1)
    if table.has_prose:
        alignment = alignment[:-1] + "l"
    lines = [f"% {line}" for line in [table.name, " ".join(table.caption.split())] if line]
    lines += [r"\begin{tabular}{" + alignment + "}", r"\toprule", _row(map(_escape, table.columns)), r"\midrule"]
    lines += [_row(map(_latex_cell, row)) for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _row(cells: Sequence[str] | map[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = _escape(cell.text)
    text = rf"\textbf{{{text}}}" if cell.emphasized else text
    text += rf" $\pm$ {_escape(cell.spread)}" if cell.spread else ""
    return text + (rf" ({_escape(cell.note)})" if cell.note else "")


def _escape(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _is_percentage(text: str) -> bool:
    return re.fullmatch(r"[+−-]?[\d.]+%", text) is not None


def _plain(text: str) -> str:
    """A number as programs read it; the dash of a missing value is empty."""
    if text == "–":
        return ""
    text = " ".join(text.split()).replace("−", "-")
    return text[:-1] if _is_percentage(text) else text
