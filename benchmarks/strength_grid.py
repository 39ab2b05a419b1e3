r"""How LABO's alpha and beta act on a task: a grid of settings, the same seeds for each, test measures.

    python benchmarks/strength_grid.py --seeds 8 --output results/strength/clean
    python benchmarks/strength_grid.py --seeds 8 --label-noise 0.2,symmetric --output results/strength/noise20
    python benchmarks/strength_grid.py image --data DIR/cifar100.npz --train-size 10000 --seeds 1 \
        --alphas 0.05,0.1,0.2,0.4 --betas 1.5,2,4,inf \
        --output results/strength/cifar100-10k    # the file of benchmarks/convert_shared_data.py

Writes OUTPUT.csv (one line a trial, as they end), OUTPUT.json (command and versions) and prints a table of means. Runs
lie in runs/strength; the same command goes on where it was stopped. This looks at the test split of every setting: it
shows how settings act, and must not be used to choose the settings of a comparison.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from labo import machine, tasks
from labo.experiment import settings as flat
from labo.experiment.executor import TrialExecutor
from labo.experiment.progress import ConsoleProgress
from labo.records.storage import write_object
from labo.records.trial import Job, Trial

ALPHAS, BETAS = "0.1,0.2,0.4,0.6,0.8", "1.5,2,4,8,inf"
MEASURES = ("accuracy", "nll", "nll_scaled", "ece", "ece_scaled", "temperature")


def jobs(asked: argparse.Namespace) -> list[Job]:
    """Plain cross-entropy, then the grid; every setting on every seed."""
    options = {"data": asked.data, "label_noise": asked.label_noise, "train_size": asked.train_size}
    task = tasks.create(asked.task, **{key: value for key, value in options.items() if value is not None})
    home = Path("runs/strength") / asked.output.name
    found = []
    for alpha, beta in [(0.0, 2.0), *itertools.product(asked.alphas, asked.betas)]:
        settings = flat.resolve(task.default_settings(), "labo", {"alpha": alpha, "beta": beta})
        for seed in range(asked.seeds):
            trial = Trial(asked.task, "labo", seed, settings, dict(task.options))
            found.append(Job(trial, home / f"{alpha:g}-{beta:g}-{seed}"))
    return found


def main() -> None:
    """Run the grid and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="digits")
    parser.add_argument("--data", help="of the task")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--alphas", type=numbers, default=numbers(ALPHAS))
    parser.add_argument("--betas", type=numbers, default=numbers(BETAS))
    parser.add_argument("--label-noise")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=machine.cores())
    asked = parser.parse_args()
    wanted = jobs(asked)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    about = {"command": ["python", "benchmarks/strength_grid.py", *sys.argv[1:]], "versions": machine.versions()}
    write_object(Path(f"{asked.output}.json"), about)
    rows: list[dict[str, Any]] = []
    with TrialExecutor(asked.jobs) as runner, ConsoleProgress() as progress:
        progress.begin(len(wanted), 0)
        progress.phase("grid")
        for job, record in runner.run(wanted, progress.update):
            progress.finished(job, record)
            if isinstance(record, dict) and not record.get("failed"):
                settings = {key: job.trial.settings[key] for key in ("alpha", "beta")}
                rows.append({**settings, "seed": job.trial.seed, **{key: record["metrics"][key] for key in MEASURES}})
                write(rows, Path(f"{asked.output}.csv"))
    print(table(rows))


def numbers(text: str) -> tuple[float, ...]:
    """`text` as numbers with commas between them."""
    return tuple(map(float, text.split(",")))


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """The rows so far, by setting and seed."""
    rows.sort(key=lambda row: (row["alpha"], row["beta"], row["seed"]))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy in percent / NLL after temperature scaling / that temperature, mean over seeds, as Markdown."""
    plain, grid = [row for row in rows if row["alpha"] == 0], [row for row in rows if row["alpha"]]
    alphas, betas = (sorted({row[key] for row in grid}) for key in ("alpha", "beta"))
    lines = [
        f"Plain cross-entropy: {_cell(plain)}",
        "",
        "| alpha \\ beta | " + " | ".join(f"{b:g}" for b in betas) + " |",
    ]
    lines.append("|---|" + "---|" * len(betas))
    for alpha in alphas:
        cells = [_cell([row for row in rows if (row["alpha"], row["beta"]) == (alpha, beta)]) for beta in betas]
        lines.append(f"| {alpha:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "–"
    accuracy = [100 * row["accuracy"] for row in rows]
    spread = f" ± {stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
    nll, temperature = (fmean(row[key] for row in rows) for key in ("nll_scaled", "temperature"))
    return f"{fmean(accuracy):.2f}{spread} / {nll:.4f} / {temperature:.2f}"


if __name__ == "__main__":
    main()
