"""Horizontal bar charts as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"
MAX_NAME, MAX_BAR, MIN_BAR = 24, 30, 4


def bar(share: float, width: int, *, blocks: bool = True) -> str:
    """A bar that fills `share` (0 to 1) of `width` columns, in eighths of a column; whole # columns without `blocks`.

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
    """One line per name: the name, then for each column its title, the share in percent and its bar.

    Lines are at most `width` wide if that leaves room for the numbers and four-column bars; long names are truncated.

    Args:
        names: (K,).
        columns: a (title, K shares from 0 to 1) pair each.
        width: columns of the terminal.
        blocks: whether the terminal can show block characters.
    """
    from rich.cells import cell_len, set_cell_size

    name_width = min(MAX_NAME, width // 4, max(map(cell_len, names)))
    taken = sum(len(title) + len(" 100.0% ") + 2 for title, _ in columns) + name_width + 2
    bar_width = min(MAX_BAR, max(MIN_BAR, (width - taken) // len(columns)))
    lines = []
    for index, name in enumerate(names):
        label = name if cell_len(name) <= name_width else set_cell_size(name, name_width - 1) + "…"
        cells = [
            f"{title} {shares[index]:6.1%} {bar(shares[index], bar_width, blocks=blocks):<{bar_width}}"
            for title, shares in columns
        ]
        lines.append("  ".join(["  " + set_cell_size(label, name_width), *cells]).rstrip())
    return lines


def top_indices(shares: Sequence[float], others: Sequence[float] | None, count: int) -> list[int]:
    """Indices of the `count` largest of `shares`, plus the index of the largest of `others` if it is missing."""
    order = sorted(range(len(shares)), key=lambda index: -shares[index])[:count]
    if others is not None:
        top = max(range(len(others)), key=others.__getitem__)
        # A uniform label has no largest class.
        if top not in order and others[top] > max(others[index] for index in order):
            order.append(top)
    return order


def remainder(shares: Sequence[float], shown: Sequence[int]) -> float:
    """1 minus the shown shares, at least 0."""
    return max(0.0, math.fsum(shares) - math.fsum(shares[index] for index in shown))
