"""Turns a matplotlib Figure into a small SVG string whose colours and font follow the page's theme."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Placeholders for roles while matplotlib draws; `render` replaces them by the theme's variables.
INK, MUTED, GRID, ABOVE, BELOW, BLANK = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
SERIES = tuple(f"#0700{index:02x}" for index in range(8))

# role -> (light, dark). The series are Okabe and Ito's colour-blind-safe palette, darkened or lightened for the ground.
THEME = {
    "ink": ("#1f2328", "#e8eaed"),
    "muted": ("#656d76", "#9aa3ad"),
    "grid": ("#e3e6ea", "#2f353d"),
    "above": ("#c2500a", "#f0904d"),
    "below": ("#0b62a4", "#62b0ea"),
    "blank": ("#eceef1", "#2a2f36"),
    "ground": ("#ffffff", "#15181c"),
    "series-0": ("#0068a8", "#5cb3ee"),
    "series-1": ("#c2500a", "#f0904d"),
    "series-2": ("#00805d", "#3fc9a0"),
    "series-3": ("#a94c84", "#e29ac3"),
    "series-4": ("#a97400", "#e8b33c"),
    "series-5": ("#5b53b5", "#a49df0"),
    "series-6": ("#3c7d8c", "#7fc4d3"),
    "series-7": ("#6b6f76", "#a7acb4"),
}
_ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", ABOVE: "above", BELOW: "below", BLANK: "blank"}
_ROLES |= {colour: f"series-{index}" for index, colour in enumerate(SERIES)}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def variables(theme: int) -> str:
    """The CSS variables of the figures for one theme, 0 light and 1 dark."""
    return " ".join(f"--fig-{role}: {colours[theme]};" for role, colours in THEME.items())


def render(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element for a page that defines `variables`; transparent, without outside references.

    `name` keeps its ids apart from those of the page's other figures; `description` is what a screen reader says.
    """
    import matplotlib

    buffer = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "axes.unicode_minus": True}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # matplotlib's own style sheet would apply to the whole page when the element stands inside it.
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"\bfont: ((?:\w+ )*)([\d.]+)px [^;\"]+", _font, text)
    for colour, role in _ROLES.items():
        text = text.replace(colour, f"var(--fig-{role})")
    width, height = (float(value) for value in _groups(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text))
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="figure" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width * 4 / 3:.0f}" height="{height * 4 / 3:.0f}" role="img" '
        f'aria-label={quoteattr(description)} style="stroke-linejoin: round; stroke-linecap: butt">'
    )
    return opening + re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]).strip()


def standalone(svg: str) -> str:
    """The element as a file of its own, with both themes and a background, so that it is readable on any page."""
    style = (
        f"<style>svg {{ {variables(0)} font-family: {FONT}; }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {variables(1)} }} }}</style>"
        '<rect width="100%" height="100%" rx="6" style="fill: var(--fig-ground)"/>'
    )
    end = svg.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:end]}{style}{svg[end:]}\n'


def _font(match: re.Match[str]) -> str:
    weight = " font-weight: 600;" if "bold" in match[1] or "600" in match[1] else ""
    return f"font-size: {match[2]}px;{weight} font-family: inherit"


def _groups(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"Expected matplotlib's SVG to match {pattern}, but it does not")
    return match.groups()
