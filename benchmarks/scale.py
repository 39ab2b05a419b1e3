"""What a step exchanges when the classes are split over ranks: measured bytes and time of a row, and what follows.

    python benchmarks/scale.py --output results/bench/scale.csv

Bytes are counted at the collectives of one process; a ring of P ranks sends 2 * (P - 1) / P times as many from each.
Times are medians of alternating rounds on one thread.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from labo import linear_labo_cross_entropy, vocab_parallel_linear_labo_cross_entropy

CLASSES, TOKENS, RANKS, WIDTH = 256_000, 2**23, 1024, 4096
HALF = 2  # bytes of a number in bfloat16
SLICES = (250, 4000, 32_000)  # classes of a rank, of 1,024, 64 and 8
ROWS, MEASURED_WIDTH = 256, 256


def exchanged(rows: int, width: int) -> tuple[float, float]:
    """(bytes that a row exchanges in the forward pass, and in the backward pass), float32 hidden states."""
    sizes: list[int] = []
    reduce: Any = dist.all_reduce

    def counted(tensor: torch.Tensor, *rest: Any, **options: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *rest, **options)

    hidden = torch.randn(rows, width, requires_grad=True)
    with patch.object(dist, "all_reduce", counted):
        loss: Any = vocab_parallel_linear_labo_cross_entropy(hidden, torch.randn(9, width), torch.zeros(rows).long())
        agreement, *forward = sizes
        sizes.clear()
        loss.backward()
    del agreement  # once a call
    return sum(forward) / rows, sum(sizes) / rows


def seconds(function: Callable[[], Any]) -> float:
    """The seconds of a forward and backward pass."""
    start = time.perf_counter()
    function().backward()
    return time.perf_counter() - start


def measured(classes: int, rounds: int) -> tuple[float, float]:
    """(microseconds of a row with a slice of so many classes, ratio to the same head in one process)."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, MEASURED_WIDTH, generator=draw).requires_grad_()
    weight = torch.randn(classes, MEASURED_WIDTH, generator=draw).requires_grad_()
    target = torch.randint(classes, (ROWS,), generator=draw)

    def split() -> Any:
        return vocab_parallel_linear_labo_cross_entropy(hidden, weight, target)

    def whole() -> Any:
        return linear_labo_cross_entropy(hidden, weight, target)

    seconds(split), seconds(whole)
    times = [(seconds(split), seconds(whole)) for _ in range(rounds)]
    split_time = statistics.median(each for each, _ in times) / ROWS
    return 1e6 * split_time, statistics.median(ours / theirs for ours, theirs in times)


def main() -> None:
    """Measure, print and write the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    forward, backward = exchanged(4096, 16)
    assert backward == 16 * 4  # the gradient of the hidden states, once
    lines = [("bytes of a row, forward", 0, round(forward, 2))]
    for split in (1, 8, 64, 1024):
        rows = TOKENS // (RANKS // split)
        per_row, states = (0.0, 0) if split == 1 else (forward, WIDTH * HALF)
        lines += [
            (f"MiB of scalars, {split} ranks", CLASSES // split, round(rows * per_row / 2**20, 1)),
            (f"MiB of gradients of hidden states, {split} ranks", CLASSES // split, round(rows * states / 2**20, 1)),
            (
                f"MiB of the head's weights, {split} ranks",
                CLASSES // split,
                round(CLASSES // split * WIDTH * HALF / 2**20, 1),
            ),
        ]
    for classes in SLICES:
        microseconds, ratio = measured(classes, arguments.rounds)
        lines += [("microseconds of a row", classes, round(microseconds, 2))]
        lines += [("ratio to one process", classes, round(ratio, 2))]
    for name, classes, value in lines:
        print(f"{name:55}{classes:>8}{value:>12}")
    if arguments.output is not None:
        with arguments.output.open("w", newline="") as file:
            csv.writer(file).writerows([("quantity", "classes", "value"), *lines])


if __name__ == "__main__":
    main()
