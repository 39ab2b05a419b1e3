"""Launch configurations of the Triton kernels: rows per program or lanes, and warps.

`benchmarks/gpu.py --section shapes` times candidates and prints a new `TABLE`.
"""

from __future__ import annotations

from typing import NamedTuple

# Classes up to which a row can be held in registers.
MAX_HELD = 4096
# Programs that keep a large GPU busy: with fewer rows than this, rows are split into parts.
ENOUGH_PROGRAMS = 256


class Shape(NamedTuple):
    """Rows that a program holds (0 if it sweeps one row), groups of 16 bytes that a lane reads at once, and warps."""

    rows: int
    groups: int
    warps: int


# (maximum number of classes, shape), chosen by instruction counts and occupancy: the same for every size of logits.
_BY_CLASSES = (
    (16, Shape(16, 1, 1)),
    (64, Shape(8, 1, 1)),
    (256, Shape(2, 1, 1)),
    (1024, Shape(1, 1, 1)),
    (2048, Shape(1, 1, 2)),
    (4096, Shape(1, 1, 4)),
    (16384, Shape(0, 2, 8)),
    (65536, Shape(0, 2, 16)),
    (2**62, Shape(0, 2, 32)),
)
# By bytes per logit.
TABLE: dict[int, tuple[tuple[int, Shape], ...]] = {4: _BY_CLASSES, 2: _BY_CLASSES}


def shape_of(classes: int, itemsize: int) -> Shape:
    """The shape for rows of `classes` logits of `itemsize` bytes each."""
    return next(shape for limit, shape in TABLE[itemsize] if classes <= limit)


def tile_of(shape: Shape, unit: int, itemsize: int) -> tuple[int, int]:
    """(groups, lanes) of a tile of a swept row whose lanes read `unit` classes at a time."""
    # Rows that are not aligned are read a class at a time, in as many groups as 16 bytes hold.
    return shape.groups * max(1, 16 // itemsize // unit), 32 * shape.warps


def parts_of(rows: int, classes: int, tile: int) -> int:
    """Tiles per part of a row, so that few rows make enough programs; 0 if rows are not split."""
    parts = min(-(-ENOUGH_PROGRAMS // rows), classes // (2 * tile))
    return 0 if parts < 2 else -(-classes // (parts * tile))


def power_of_2(count: int) -> int:
    """The smallest power of 2 that is at least `count`."""
    return 1 << (count - 1).bit_length()
