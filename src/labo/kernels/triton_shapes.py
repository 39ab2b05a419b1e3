"""How the Triton kernels lie on the device: rows held in registers or swept by lanes, lanes and warps of a program.

`benchmarks/gpu.py --section shapes` times the candidates and prints a table to put in `TABLE`.
"""

from __future__ import annotations

from typing import NamedTuple

# Classes up to which a row can be held in registers.
MAX_HELD = 4096
# Programs that keep a large GPU busy: fewer rows than this are cut into parts.
ENOUGH_PROGRAMS = 256


class Shape(NamedTuple):
    """`rows` that a program holds, or 0 where it sweeps one; groups of 16 bytes that a lane reads at once; warps."""

    rows: int
    groups: int
    warps: int


# (classes up to which it holds, shape) by the bytes of a logit; chosen by instruction counts and occupancy.
TABLE: dict[int, tuple[tuple[int, Shape], ...]] = {
    4: (
        (16, Shape(16, 1, 1)),
        (64, Shape(8, 1, 1)),
        (256, Shape(2, 1, 1)),
        (1024, Shape(1, 1, 1)),
        (2048, Shape(1, 1, 2)),
        (4096, Shape(1, 1, 4)),
        (16384, Shape(0, 2, 8)),
        (65536, Shape(0, 2, 16)),
        (2**62, Shape(0, 2, 32)),
    ),
    2: (
        (16, Shape(16, 1, 1)),
        (64, Shape(8, 1, 1)),
        (256, Shape(2, 1, 1)),
        (1024, Shape(1, 1, 1)),
        (2048, Shape(1, 1, 2)),
        (4096, Shape(1, 1, 4)),
        (16384, Shape(0, 2, 8)),
        (65536, Shape(0, 2, 16)),
        (2**62, Shape(0, 2, 32)),
    ),
}


def shape_of(classes: int, itemsize: int) -> Shape:
    """The shape for rows of so many classes, of so many bytes each."""
    return next(shape for limit, shape in TABLE[itemsize] if classes <= limit)


def tile_of(shape: Shape, unit: int, itemsize: int) -> tuple[int, int]:
    """(groups, lanes) of a tile of a swept row whose lanes read `unit` classes at a time."""
    # Rows that are not aligned are read a class at a time, in as many groups as 16 bytes hold.
    return shape.groups * max(1, 16 // itemsize // unit), 32 * shape.warps


def parts_of(rows: int, classes: int, tile: int) -> int:
    """Tiles a part of a row has, so that few rows make enough programs; 0 where rows stay whole."""
    parts = min(-(-ENOUGH_PROGRAMS // rows), classes // (2 * tile))
    return 0 if parts < 2 else -(-classes // (parts * tile))


def power_of_2(count: int) -> int:
    """The least that is no less than `count`."""
    return 1 << (count - 1).bit_length()
