"""A report as HTML, as Markdown, and as text for a terminal.

The templates of HTML and Markdown escape whatever a report holds. The HTML page stands alone: it runs no script and
loads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from labo.report.model import Cell, Report, Table, Text, Verdicts
from labo.report.svg import FONT, variables
from labo.report.verdict import BASELINE, BETTER, EQUIVALENT, WORSE

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.console import Console, ConsoleOptions, Group
    from rich.table import Table as TerminalTable
    from rich.text import Text as TerminalText

_MARKS = {BETTER: "▲", WORSE: "▼", EQUIVALENT: "≈", BASELINE: "·"}
_UNKNOWN = "±"  # it may be either
_COLOURS = {BETTER: "green", WORSE: "red"}
# The width that a column of names is not folded below.
_MIN_NAME = 8


def html(report: Report) -> str:
    """The report as one self-contained page: no network, light and dark, readable on a phone."""
    from markupsafe import Markup

    # These go into the page's style sheet, where nothing comes from outside.
    style = {"light": Markup(variables(0)), "dark": Markup(variables(1)), "font": Markup(FONT)}
    return _environment().get_template("report.html.jinja").render(report=report, **style).lstrip() + "\n"


def markdown(report: Report) -> str:
    """The report as GitHub Markdown, without what is for HTML alone; figures are linked as figures/<name>.svg."""
    template = _environment(escaped_as_markdown=True).get_template("report.md.jinja")
    return re.sub(r"\n{3,}", "\n\n", template.render(report=report)).strip() + "\n"


def terminal(report: Report) -> Group:
    """The tables, verdicts and findings of a report, for `rich.console.Console.print`."""
    from rich.console import Group
    from rich.text import Text as TerminalText

    parts: list[_FittedTable | TerminalText] = []
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Table):
                parts.append(_FittedTable(section.title, block))
            elif isinstance(block, Verdicts):
                parts += [
                    TerminalText(f"{_MARKS.get(verdict, _UNKNOWN)} {sentence}", style=_COLOURS.get(verdict, ""))
                    for verdict, sentence in block.items
                ]
            elif isinstance(block, Text):
                parts.append(TerminalText(f"\n{block.text}", style="bold"))
    return Group(*parts)


@dataclass(frozen=True)
class _FittedTable:
    """A table whose columns give way to the width of the terminal without breaking a word, as far as that goes.

    Where they are too wide even so, optional columns are left out whole, and a line below names them.
    """

    title: str
    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[TerminalTable | TerminalText]:
        from rich import box
        from rich.table import Table as TerminalTable
        from rich.text import Text as TerminalText

        title = TerminalText(self.title)
        shown = TerminalTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        shown.padding, shown.show_edge = 0, False
        rows = [[_terminal_cell(cell) for cell in row] for row in self.table.rows]
        columns = {
            heading: [heading, *(row[index].plain for row in rows)] for index, heading in enumerate(self.table.columns)
        }
        hidden = _hidden(columns, self.table.optional, options.max_width)
        kept = [index for index, heading in enumerate(self.table.columns) if heading not in hidden]
        headings = [self.table.columns[index] for index in kept]
        widths = _widths([columns[heading] for heading in headings], options.max_width)
        excess = sum(widths) + len(widths) - 1 - options.max_width
        widths[0] = max(min(widths[0], _MIN_NAME), widths[0] - max(0, excess))  # a long name is folded, not cut
        for heading, width in zip(headings, widths, strict=True):
            shown.add_column(
                heading, justify="left" if heading is headings[0] else "right", width=width, overflow="fold"
            )
        for row in rows:
            shown.add_row(*(row[index] for index in kept))
        yield shown
        if hidden:
            names = "; ".join(heading for heading in self.table.columns if heading in hidden)
            yield TerminalText(f"Left out of this narrow terminal: {names}.", style="dim")


def _hidden(columns: Mapping[str, Sequence[str]], optional: Sequence[str], room: int) -> set[str]:
    """The first of the `optional` columns, as many as must go for the others to fit."""
    hidden: set[str] = set()
    for heading in optional:
        kept = [column for name, column in columns.items() if name not in hidden]
        if sum(_widths(kept, room)) + len(kept) - 1 <= room:
            break
        hidden.add(heading)
    return hidden


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """How wide each column is: as its longest line, but where the room is short not above its longest word."""
    from rich.cells import cell_len

    widths = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    smallest = [max(cell_len(word) for cell in column for word in cell.split()) for column in columns]
    smallest[0] = widths[0]
    while sum(widths) + len(widths) - 1 > room and widths != smallest:
        widest = max(range(len(widths)), key=lambda index: (widths[index] - smallest[index], widths[index]))
        widths[widest] -= 1
    return widths


def _terminal_cell(cell: Cell) -> TerminalText:
    from rich.text import Text as TerminalText

    mark = f"{_MARKS.get(cell.mark, _UNKNOWN)} " if cell.mark else ""
    style = "bold" if cell.emphasized else _COLOURS.get(cell.mark, "")
    text = TerminalText(f"{mark}{cell.text}", style=style)
    if cell.spread:
        text.append(f"\n±{cell.spread}", style="dim not bold")
    return text.append(f"\n{cell.note}") if cell.note else text


@cache
def _environment(*, escaped_as_markdown: bool = False) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("labo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escape_markdown if escaped_as_markdown else None,
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment


def _escape_markdown(value: object) -> object:
    """`value` on one line, with what Markdown or HTML would read as markup escaped; markup is left as it is."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    text = re.sub(r"\s+", " ", str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|\[\]#~$])", r"\\\1", text)
    return Markup(re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text))
