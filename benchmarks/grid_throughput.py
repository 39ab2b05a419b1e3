"""How much faster a grid of trials is on two workers than on one: 16 trials on digits, as processes and as Ray tasks.

python benchmarks/grid_throughput.py --output results/bench/grid.csv

The time is that of the trials alone. Starting the workers, and what they import, is left out: each worker runs a short
trial first. Rounds alternate 1 and 2 workers, in both orders; the printed speed-up is the median over rounds of the
ratio within a round. With other work on the machine the ratio says little: compare the column "load", the mean number
of busy processes over the minute before, with the number of cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import csv_lines

from labo import machine, tasks
from labo.experiment import settings as flat
from labo.experiment.executor import TrialExecutor, WorkerDied
from labo.experiment.ray_executor import RayCluster, RayExecutor
from labo.records.trial import Job, Trial

LAUNCHERS = {
    "local": TrialExecutor,
    "ray": lambda workers: RayExecutor(RayCluster("local"), workers),
}
WORKERS = (1, 2)


def jobs(count: int, folder: Path, **settings: Any) -> list[Job]:
    """Trials on digits, one a seed."""
    task = tasks.create("digits")
    resolved = flat.resolve(task.default_settings(), "labo", settings)
    return [
        Job(Trial("digits", "labo", seed, resolved, data=task.fingerprint()), folder / str(seed))
        for seed in range(count)
    ]


def run(executor: Any, trials: list[Job]) -> float:
    """The seconds that the trials took."""
    begin = time.perf_counter()
    for job, record in executor.run(trials, lambda job, fraction: None):
        if isinstance(record, WorkerDied):
            raise SystemExit(f"{job.trial.name}: {record.reason}")
    return time.perf_counter() - begin


def measure(launcher: str, workers: int, trials: int) -> float:
    """The seconds of the trials on workers that have started."""
    with tempfile.TemporaryDirectory() as folder, LAUNCHERS[launcher](workers) as executor:
        run(executor, jobs(2 * workers, Path(folder) / "first", epochs=1))
        return run(executor, jobs(trials, Path(folder) / "timed"))


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    lines, speedups = [], {}
    for launcher in arguments.launchers.split(","):
        for number in range(arguments.rounds):
            seconds = {}
            for workers in WORKERS if number % 2 == 0 else reversed(WORKERS):
                load = os.getloadavg()[0]
                seconds[workers] = measure(launcher, workers, arguments.trials)
                line = {"launcher": launcher, "workers": workers, "trials": arguments.trials, "round": number}
                lines.append({**line, "seconds": round(seconds[workers], 3), "load": round(load, 2)})
                print(lines[-1], flush=True)
            speedups.setdefault(launcher, []).append(seconds[1] / seconds[2])
    rows = [{**line, "cores": machine.cores(), **machine.versions()} for line in lines]
    csv_lines.write(arguments.output, rows)
    for launcher, ratios in speedups.items():
        print(f"{launcher}: speed-up {median(ratios):.2f} with 2 workers, their start left out ({len(ratios)} rounds)")


if __name__ == "__main__":
    main()
