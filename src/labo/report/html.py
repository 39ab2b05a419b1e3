"""What the pages share: the document with its style and policy, tables and lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from labo.report.svg import FONT, variables

# The page runs no script and loads nothing: the policy makes a browser hold it to that.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, body: Sequence[str]) -> str:
    """A whole page around pieces of HTML: no network, no script, light and dark, readable on a phone."""
    # An inline empty icon keeps a browser from asking the server for /favicon.ico.
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{_style()}</style>\n</head>\n'
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def _style() -> str:
    text = resources.files("labo.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    return text.replace("@LIGHT@", variables(0)).replace("@DARK@", variables(1)).replace("@FONT@", FONT)


def table(headings: list[str], rows: list[list[str]], name: str, *, wide: bool = False, escaped: bool = False) -> str:
    """A table in a box that scrolls by itself; the cells are HTML already, the headings text unless `escaped`."""
    head = "".join(f'<th scope="col">{text if escaped else escape(text)}</th>' for text in headings)
    last = '<td class="wide">' if wide else "<td>"
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{text}</td>" for text in row[1:-1])}{last}{row[-1]}</td></tr>'
        for row in rows
    )
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">'
    kind = ' class="wide"' if wide else ""
    return f"{box}<table{kind}><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"


def pairs(found: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for, as a list; both are escaped."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in found) + "</dl>"
