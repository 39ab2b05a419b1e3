r"""The time of the loss with two versions of the sources, in alternation.

    git worktree add ../before COMMIT
    python benchmarks/loss_versions.py ../before/src src --rounds 5 --output results/bench/loss-versions.csv

Forward and backward of `labo_cross_entropy` in float32 on one thread, the best of five, in processor time, which other
work on the machine disturbs less. Each version runs in a fresh process, whose allocator keeps what is freed.
Prints and writes the median of the paired ratios, new over old.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import csv_lines

from labo.bench.measure import STEADY

SHAPES = ((64, 10), (128, 100), (4096, 100), (4096, 1000), (256, 32768))
BETAS = (2.0, float("inf"))
IMPLEMENTATIONS = ("numba", "blocked")
SMALL = 20_000  # elements, below which a measurement is of many calls
CALLS, REPEATS = 400, 5


def measure() -> dict[str, float]:
    """Processor seconds by case, in this process."""
    import torch

    import labo

    torch.set_num_threads(1)
    found = {}
    for impl in IMPLEMENTATIONS:
        for rows, classes in SHAPES:
            for beta in BETAS:
                torch.manual_seed(0)
                logits = torch.randn(rows, classes, requires_grad=True)
                target = torch.randint(classes, (rows,))
                seconds = []
                for _ in range(REPEATS + 1):
                    began = time.process_time()
                    for _ in range(CALLS if rows * classes < SMALL else 1):
                        logits.grad = None
                        labo.labo_cross_entropy(logits, target, alpha=0.1, beta=beta, impl=impl).backward()
                    seconds.append(time.process_time() - began)
                found[f"{impl}, {rows} x {classes}, beta {beta:g}"] = min(seconds[1:])
    return found


def main() -> None:
    """Measure both versions in turn, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure()))
        return
    ratios: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        pair = []
        for source in (options.old, options.new):
            environment = {**os.environ, **STEADY, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "--here"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            pair.append(json.loads(done.stdout))
        for name, seconds in pair[0].items():
            ratios.setdefault(name, []).append(pair[1][name] / seconds)
    lines = []
    for name, values in ratios.items():
        low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
        lines.append({"case": name, "ratio": round(median(values), 3), "low": round(low, 3), "high": round(high, 3)})
        print("{case:36} {ratio:6} ({low} to {high})".format(**lines[-1]))
    if options.output:
        csv_lines.write(options.output, lines)


if __name__ == "__main__":
    main()
