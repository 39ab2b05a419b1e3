"""What `labo.outer.fit_channel` recovers of made noise, its time and its memory.

    OMP_NUM_THREADS=1 python benchmarks/noise_channel.py --output results/bench/noise-channel.csv

Logits are normal, and true classes are drawn from their softmax, so that the predictions are right at the given
temperature. A share of the labels is replaced: by any other class ("symmetric") or by the next one ("class").
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import csv_lines
import torch

from labo.outer import fit_channel

# Examples, classes, kind of noise, share of wrong labels, scale of the logits, temperature.
CASES = [
    (400, 10, "symmetric", 0.0, 5.0, 1.0),
    (400, 10, "symmetric", 0.2, 5.0, 3.0),
    (2_000, 10, "class", 0.3, 3.0, 0.5),
    (5_000, 10, "symmetric", 0.4, 3.0, 1.0),
    (5_000, 100, "class", 0.3, 8.0, 1.0),
    (50_000, 10, "class", 0.2, 5.0, 2.0),
    (50_000, 1_000, "symmetric", 0.2, 8.0, 2.0),
    (50_000, 1_000, "class", 0.2, 8.0, 2.0),
]


def measure(count: int, classes: int, kind: str, share: float, scale: float, temperature: float) -> dict[str, object]:
    """A line of the table."""
    draw = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(count, classes, generator=draw).double()
    true = torch.multinomial(logits.softmax(-1), 1, generator=draw).squeeze(1)
    step = torch.ones_like(true) if kind == "class" else torch.randint(1, classes, (count,), generator=draw)
    labels = torch.where(torch.rand(count, generator=draw) < share, (true + step) % classes, true)
    begin = time.perf_counter()
    channel = fit_channel(logits * temperature, labels)
    return {
        "examples": count,
        "classes": classes,
        "noise": kind,
        "temperature": temperature,
        "wrong": round((labels != true).double().mean().item(), 4),
        "found_noise": channel.kind,
        "found_temperature": round(channel.temperature, 3),
        "found_wrong": round(channel.wrong, 4),
        "low": round(channel.interval[0], 4),
        "high": round(channel.interval[1], 4),
        "confidence": round(channel.confidence, 3),
        "seconds": round(time.perf_counter() - begin, 2),
        "peak_mb_so_far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measure all cases, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        rows.append(measure(*case))
        print(rows[-1], flush=True)
    csv_lines.write(arguments.output, rows)


if __name__ == "__main__":
    main()
