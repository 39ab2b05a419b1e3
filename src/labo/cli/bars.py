"""Shares drawn as bars of text, their numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"
MAX_NAME, MAX_BAR, MIN_BAR = 24, 30, 4


def bar(share: float, width: int, *, blocks: bool = True) -> str:
    """A share from 0 to 1 of `width` columns, in eighths of a column; whole columns of # without `blocks`.

    Example:
        >>> bar(0.3125, 4), bar(0.5, 4, blocks=False)
        ('█▎', '##')
    """
    if not blocks:
        return "#" * round(share * width)
    whole, eighths = divmod(round(share * width * 8), 8)
    return _FULL * whole + (_EIGHTHS[eighths] if eighths else "")


def chart(
    names: Sequence[str], columns: Sequence[tuple[str, Sequence[float]]], width: int, *, blocks: bool = True
) -> list[str]:
    """One line a name: the name, then for each column its title, the share in percent and its bar.

    Lines are at most `width` wide where that leaves room for the numbers and bars of four columns; long names are cut.

    Args:
        names: (K,).
        columns: (title, K shares from 0 to 1) each.
        width: of the terminal.
        blocks: whether it can show block characters.
    """
    from rich.cells import cell_len, set_cell_size

    named = min(MAX_NAME, width // 4, max(map(cell_len, names)))
    taken = sum(len(title) + len(" 100.0% ") + 2 for title, _ in columns) + named + 2
    room = min(MAX_BAR, max(MIN_BAR, (width - taken) // len(columns)))
    lines = []
    for place, name in enumerate(names):
        cut = name if cell_len(name) <= named else set_cell_size(name, named - 1) + "…"
        cells = [
            f"{title} {share[place]:6.1%} {bar(share[place], room, blocks=blocks):<{room}}" for title, share in columns
        ]
        lines.append("  ".join(["  " + set_cell_size(cut, named), *cells]).rstrip())
    return lines


def likeliest(shares: Sequence[float], others: Sequence[float] | None, count: int) -> list[int]:
    """The places of the `count` largest shares, and of the largest of the others if it is not among them."""
    order = sorted(range(len(shares)), key=lambda place: -shares[place])[:count]
    if others is not None:
        top = max(range(len(others)), key=others.__getitem__)
        # A label that all classes share alike has no largest.
        if top not in order and others[top] > max(others[place] for place in order):
            order.append(top)
    return order


def rest(shares: Sequence[float], shown: Sequence[int]) -> float:
    """What is left of 1 beside the shown shares, never below 0."""
    return max(0.0, math.fsum(shares) - math.fsum(shares[place] for place in shown))
