"""How much of a run's memory and of its training labels each class has.

    python benchmarks/class_shares.py "runs/DIR/TASK/labo[prior=memory]/100" … --output shares.csv

The share of the memory is the mean of the remembered distributions over all examples. A class whose share has gone,
while its labels have not, was lost (docs/memory.md#no-class-is-lost).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import csv_lines
import torch
from safetensors.torch import load_file

from labo.records.trial import MEMORY


def shares(run: Path) -> list[dict[str, object]]:
    """A line for each class; its number is that of the label."""
    memory = load_file(run / MEMORY)
    if "classes" in memory:
        raise SystemExit(f"The memory of '{run}' keeps a part of the classes.")
    values, labels = memory["values"][:-1].double(), memory["labels"][:-1].long()
    own = values.sum(0) / values.sum()
    given = torch.bincount(labels[labels >= 0], minlength=len(own)).double() / len(labels)
    return [
        {"seed": run.name, "class": number, "labels": f"{label:.4f}", "memory": f"{mass:.4f}"}
        for number, (label, mass) in enumerate(zip(given.tolist(), own.tolist(), strict=True))
    ]


def main() -> None:
    """Read the memories, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = [line for run in options.runs for line in shares(run)]
    for line in lines:
        print("seed {seed}, class {class}: {labels} of the labels, {memory} of the memory".format(**line))
    if options.output:
        csv_lines.write(options.output, lines)


if __name__ == "__main__":
    main()
