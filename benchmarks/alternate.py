r"""The time of one `labo` command with two versions of the sources, in alternation.

    git worktree add ../before COMMIT
    python benchmarks/alternate.py ../before/src src --rounds 5 -- train digits --method labo

Each run is a fresh process of one thread that writes into a temporary --output. Prints a line of JSON: the command, the
seconds of each run, and the median of the paired ratios, new over old.
"""

from __future__ import annotations

import argparse
import json
import os
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
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    for _ in range(options.rounds):
        for name, source in (("old", options.old), ("new", options.new)):
            seconds[name].append(round(run(source.resolve(), options.command), 2))
    ratio = median(new / old for old, new in zip(seconds["old"], seconds["new"], strict=True))
    print(json.dumps({"command": " ".join(["labo", *options.command]), **seconds, "ratio": round(ratio, 3)}))


def run(source: Path, command: list[str]) -> float:
    """The seconds of one run with the sources in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "labo", *command, "--output", f"{folder}/run"],
            env=environment, cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
