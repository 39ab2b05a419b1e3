r"""The time of one `labo` command with two versions of the sources, in alternation.

    git worktree add ../before COMMIT
    python benchmarks/alternate.py ../before/src src --rounds 5 -- train digits --method labo

Each run is a fresh process of one thread that writes into a temporary --output. Prints a line of JSON: the command, the
seconds of each run and its processor seconds (which other work on the machine disturbs less), and the medians of the
paired ratios, new over old.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median


def main() -> None:
    """Run the command with both versions, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="the src folder of the version to compare with")
    parser.add_argument("new", type=Path, help="the src folder of the other version")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("command", nargs="+", help="the command and options of labo, without --output")
    options = parser.parse_args()
    clock: dict[str, list[float]] = {"old": [], "new": []}
    processor: dict[str, list[float]] = {"old": [], "new": []}
    for _ in range(options.rounds):
        for name, source in (("old", options.old), ("new", options.new)):
            elapsed, used = run(source.resolve(), options.command)
            clock[name].append(round(elapsed, 2))
            processor[name].append(round(used, 2))
    line = {"command": " ".join(["labo", *options.command]), **clock, "ratio": ratio(clock)}
    print(json.dumps({**line, "processor": {**processor, "ratio": ratio(processor)}}))


def ratio(seconds: dict[str, list[float]]) -> float:
    """The median of the paired ratios, new over old."""
    return round(median(new / old for old, new in zip(seconds["old"], seconds["new"], strict=True)), 3)


def run(source: Path, command: list[str]) -> tuple[float, float]:
    """The seconds of one run with the sources in a folder, and its processor seconds."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "labo", *command, "--output", f"{folder}/run"],
            env=environment, cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return time.perf_counter() - start, used


if __name__ == "__main__":
    main()
