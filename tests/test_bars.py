"""Bars of text: their length, their numbers, and terminals that cannot show them."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from labo.cli.bars import bar, chart, remainder, top_indices


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, ""), (1.0, "████"), (0.5, "██"), (1 / 32, "▏"), (0.999, "████"), (0.46875, "█▉")]
)
def test_bars_are_drawn_in_eighths(share: float, expected: str):
    assert bar(share, 4) == expected


def test_a_terminal_without_blocks_gets_plain_marks():
    lines = chart(["a", "b"], [("p", [0.75, 0.25])], 40, blocks=False)
    assert [bar(share, 8, blocks=False) for share in (0.75, 0.25, 0.0)] == ["######", "##", ""]
    assert lines[0].count("#") > 2 * lines[1].count("#") > 0
    assert "75.0%" in lines[0]
    assert "\n".join(lines).isascii()


@pytest.mark.parametrize("width", [50, 80, 100])
def test_long_and_wide_names_are_cut_and_stay_in_line(width: int):
    names = ["a", "a name that is longer than there is room for it", "猫" * 30]
    lines = chart(names, [("p", [0.2, 0.3, 0.5]), ("q*", [0.1, 0.1, 0.8])], width)
    assert all(cell_len(line) <= width for line in lines)
    assert lines[1].split("  p ")[0].strip().endswith("…")
    assert len({cell_len(line[: line.index("q*")]) for line in lines}) == 1


def test_the_class_that_the_label_prefers_is_shown_too():
    shares = [0.5, 0.3, 0.1, 0.06, 0.04]
    assert top_indices(shares, None, 2) == [0, 1]
    assert top_indices(shares, [0.2, 0.2, 0.2, 0.2, 0.2], 2) == [0, 1]
    assert top_indices(shares, [0.1, 0.1, 0.1, 0.1, 0.6], 2) == [0, 1, 4]
    assert remainder(shares, [0, 1, 4]) == pytest.approx(0.16)
