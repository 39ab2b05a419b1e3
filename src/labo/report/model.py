"""A report as data: sections of text, tables and figures, which `render` makes HTML, Markdown or a terminal's text of.

Strings here are plain text: escaping is the business of the renderers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Cell:
    """A cell of a table: `text`, followed in small print by ± `spread` and a `note`.

    `emphasized` is for the best value of a column, `mark` is the verdict on the method that a row is about.
    """

    text: str
    spread: str = ""
    note: str = ""
    emphasized: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph; `term` is a bold word before it."""

    text: str
    style: Literal["body", "finding", "caption", "missing"] = "body"
    term: str = ""


@dataclass(frozen=True)
class Verdicts:
    """(verdict, sentence) of each method."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of which names the row; `name` is for screen readers.

    `has_prose` says that the last column holds sentences, which wrap; the other columns hold numbers. `optional` names
    columns that a narrow terminal leaves out, the first to go first.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    has_prose: bool = False
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A drawing: `name` is its file name without ending, `svg` an element for a page, `description` its text."""

    name: str
    description: str
    svg: str


@dataclass(frozen=True)
class Figures:
    """Figures side by side, which share a caption."""

    figures: tuple[Figure, ...]
    caption: str


@dataclass(frozen=True)
class Properties:
    """Names and their values."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Literal text, such as a command line."""

    text: str


@dataclass(frozen=True)
class Bar:
    """A labelled bar: `value` is the number as text, `percent` (0 to 100) its width.

    `is_given` tells the given label or the reference's token from the alternatives.
    """

    label: str
    value: str
    percent: float
    is_given: bool


@dataclass(frozen=True)
class Card:
    """An image of the data (a data URI), its name and the bars beside it; `tag` is set off in colour."""

    image: str
    name: str
    rank: int
    bars: tuple[Bar, ...]
    tag: str = ""


@dataclass(frozen=True)
class Cards:
    """Images of the data side by side; for HTML alone."""

    cards: tuple[Card, ...]


@dataclass(frozen=True)
class TokenBars:
    """The bars of each token of a sentence, under a heading with a note; for HTML alone.

    `text` comes between the heading and the boxes.
    """

    title: str
    note: str
    text: str
    boxes: tuple[tuple[Bar, ...], ...]


@dataclass(frozen=True)
class Details:
    """Blocks under a summary that opens them."""

    summary: str
    blocks: tuple[Block, ...]
    is_open: bool = False
    html_only: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what is under it, sections included."""

    title: str
    blocks: tuple[Block, ...]
    html_only: bool = False


Block: TypeAlias = "Text | Verdicts | Table | Figures | Properties | Code | Cards | TokenBars | Details | Section"


@dataclass(frozen=True)
class Report:
    """A title, an introduction and sections; `footer` is for HTML alone."""

    title: str
    lead: str
    sections: tuple[Section, ...]
    footer: str = ""

    def figures(self) -> Iterator[Figure]:
        """All figures, in order."""
        for block in _leaves(self.sections):
            if isinstance(block, Figures):
                yield from block.figures

    def tables(self) -> Iterator[tuple[str, Table]]:
        """All tables, in order, each with the title of the outermost section that it is in."""
        for section in self.sections:
            for block in _leaves(section.blocks):
                if isinstance(block, Table):
                    yield section.title, block


def _leaves(blocks: tuple[Block, ...]) -> Iterator[Block]:
    """The blocks that hold no others."""
    for block in blocks:
        if isinstance(block, Section | Details):
            yield from _leaves(block.blocks)
        else:
            yield block
