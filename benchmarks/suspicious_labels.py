r"""How well wrong labels are found: 5% are planted, and q*'s rankings stand beside cleanlab's of the same networks.

    python benchmarks/suspicious_labels.py digits --first-seed 100 --output results/suspicious-labels/digits-tuning
    python benchmarks/suspicious_labels.py digits --output results/suspicious-labels/digits
    python benchmarks/suspicious_labels.py digits --epochs 5 --output results/suspicious-labels/digits-5-epochs
    python benchmarks/suspicious_labels.py image --data DIR/cifar10.npz --train-size 5000 --seeds 2 --output \
        results/suspicious-labels/cifar10-5k    # the file of benchmarks/convert_shared_data.py
    python benchmarks/suspicious_labels.py digits --share 0.2,pair --methods label_smoothing --seeds 3 --folds 5 \
        --output results/suspicious-labels/digits-pair
    python benchmarks/suspicious_labels.py cifar10 --data DIR --labels worse --train-size 5000 --seeds 2 \
        --output results/suspicious-labels/cifar10n-worse    # people's labels

The figure is the precision at the planted number: of the first n examples of a ranking, the share that was planted, n
being how many were. Beside it stand the area under the ROC curve of the ranking (`auc`), and the precision and recall
of what is flagged: where the likeliest class is another one, by the network or by the posterior of the noise channel
(folds only), and cleanlab's list. Every ranking of a line sees the same logits: "in sample", the run's own network on
what it trained on, or "folds", networks that trained without the example. cleanlab's need cleanlab (`pip install
cleanlab`, which the project does not depend on); without it they are left out.

Writes OUTPUT.csv, one line a ranking, as trials end, and OUTPUT.json (command and versions), and prints a table of
means. Runs lie in runs/suspicious-labels; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from labo import inner, machine, tasks
from labo.experiment import label_issues, saved_run
from labo.experiment import settings as flat
from labo.experiment.evaluators.classification import predict
from labo.experiment.executor import run_job
from labo.experiment.progress import ConsoleProgress
from labo.outer import fit_channel, posterior_labels
from labo.records.storage import write_object
from labo.records.trial import Job, Trial

METHODS = ("none", "label_smoothing", "labo")
COLUMNS: tuple[str, ...] = ("task", "method", "seed", "beliefs", "ranking", "precision", "planted", "examples")
COLUMNS += ("auc", "flagged", "flagged_precision", "flagged_recall")


def main() -> None:
    """Run what is missing and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="digits")
    parser.add_argument("--data", help="of the task")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--share", default="0.05,symmetric")
    parser.add_argument("--labels", help="people's labels of cifar10 or cifar100, instead of --share")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    versions = {**machine.versions(), "cleanlab": machine.package_version("cleanlab") or "not installed"}
    about = {"command": ["python", "benchmarks/suspicious_labels.py", *sys.argv[1:]], "versions": versions}
    write_object(Path(f"{asked.output}.json"), about)
    path = Path(f"{asked.output}.csv")
    rows = _read(path)
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for beliefs in ("in sample", "folds"):  # the dearer last
            for method in asked.methods.split(","):
                key = {"task": asked.task, "method": method, "seed": str(seed), "beliefs": beliefs}
                if not any(key.items() <= row.items() for row in rows):
                    rows += [{**key, **row} for row in _measured(asked, method, seed, beliefs)]
                    _write(rows, path)
    print(table(rows))
    print(flag_table(rows))


def _measured(asked: argparse.Namespace, method: str, seed: int, beliefs: str) -> list[dict[str, str]]:
    run = _run(asked, method, seed)
    train = run.splits.train
    with ConsoleProgress() as progress:
        logits = (
            label_issues.cross_validated_logits(run, asked.folds, progress, asked.jobs)
            if beliefs == "folds"
            else predict(run.model, train.features)
        )
    planted = train.target != train.before_noise
    beta = label_issues.default_beta(method, run.description["settings"])
    found = {**orders(logits, train.target, beta), **cleanlab_orders(logits, train.target)}
    flags = {"q*: log ratio (labo labels)": logits.argmax(-1) != train.target}
    if "cleanlab: confident learning" in found:
        flags["cleanlab: confident learning"] = torch.zeros(len(train), dtype=torch.bool)
        flags["cleanlab: confident learning"][found["cleanlab: confident learning"]] = True
    if beliefs == "folds":
        posterior = posterior_labels(logits, train.target, fit_channel(logits, train.target, seed=seed))
        given = posterior.gather(1, train.target.unsqueeze(1)).squeeze(1)
        found["channel: posterior of the given class"] = given.argsort(stable=True)
        flags["channel: posterior of the given class"] = posterior.argmax(-1) != train.target
    counts = {"planted": str(int(planted.sum())), "examples": str(len(train))}
    return [
        {"ranking": name, "precision": f"{precision(order, planted):.6f}", **counts, **_auc(order, planted)}
        | (_flagged(flags[name], planted) if name in flags else {})
        for name, order in found.items()
    ]


def _auc(order: Tensor, planted: Tensor) -> dict[str, str]:
    """The probability that a planted example comes before another one; nothing for a list that ends early."""
    if len(order) < len(planted):
        return {}
    from sklearn.metrics import roc_auc_score

    scores = torch.empty(len(order), dtype=torch.float64)
    scores[order] = -torch.arange(len(order), dtype=torch.float64)
    return {"auc": f"{roc_auc_score(planted.numpy(), scores.numpy()):.6f}"}


def _flagged(flagged: Tensor, planted: Tensor) -> dict[str, str]:
    both, count = int((flagged & planted).sum()), int(flagged.sum())
    shares = {"flagged_precision": both / max(1, count), "flagged_recall": both / max(1, int(planted.sum()))}
    return {"flagged": str(count), **{name: f"{value:.6f}" for name, value in shares.items()}}


def precision(order: Tensor, planted: Tensor) -> float:
    """As `label_issues.precision`; a list that ends early has found what is on it."""
    count = int(planted.sum())
    return int(planted[order[:count]].sum()) / count


def _run(asked: argparse.Namespace, method: str, seed: int) -> Any:
    noise = {"labels": asked.labels} if asked.labels else {"label_noise": asked.share}
    options = {"data": asked.data, **noise, "train_size": asked.train_size}
    task = tasks.create(asked.task, **{key: value for key, value in options.items() if value is not None})
    given = {} if asked.epochs is None else {"epochs": asked.epochs}
    settings = flat.resolve(task.default_settings(), method, given)
    folder = Path("runs/suspicious-labels") / asked.output.name / method / str(seed)
    trial = Trial(asked.task, method, seed, settings, dict(task.options), data=task.fingerprint())
    run_job(Job(trial, folder), lambda share: None)
    return saved_run.load(folder)


def orders(logits: Tensor, target: Tensor, beta: float) -> dict[str, Tensor]:
    """Rankings by q* and by the belief p itself."""
    labels, belief = inner.optimal_labels(logits.double(), beta=beta), logits.double().softmax(-1)
    given = labels.gather(1, target.unsqueeze(1)).squeeze(1)
    scores = {
        "q*: margin": labels.scatter(1, target.unsqueeze(1), -1.0).amax(1) - given,
        "q*: given class": -given,
        "p: given class": -belief.gather(1, target.unsqueeze(1)).squeeze(1),
    }
    found = {"q*: log ratio (labo labels)": label_issues.rank(logits, target, beta=beta).order}
    return found | {name: score.argsort(descending=True, stable=True) for name, score in scores.items()}


def cleanlab_orders(logits: Tensor, target: Tensor) -> Mapping[str, Tensor]:
    """Cleanlab's rankings of the same probabilities; none where it is not installed."""
    try:
        from cleanlab.filter import find_label_issues  # pyright: ignore[reportMissingImports]
        from cleanlab.rank import get_label_quality_scores  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        print("cleanlab is not installed (pip install cleanlab): its rankings are left out.", file=sys.stderr)
        return {}
    labels, belief = target.numpy(), logits.double().softmax(-1).numpy()
    listed = find_label_issues(labels, belief, return_indices_ranked_by="self_confidence", n_jobs=1)
    found = {"cleanlab: confident learning": torch.from_numpy(listed)}
    for method in ("self_confidence", "normalized_margin"):
        scores = torch.from_numpy(get_label_quality_scores(labels, belief, method=method))
        found[f"cleanlab: {method}"] = scores.argsort(stable=True)
    return found


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(rows: list[dict[str, str]], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict[str, str]]) -> str:
    """Precision in percent, mean ± deviation over seeds, as Markdown: rankings down, methods and beliefs across."""
    columns = [(beliefs, method) for beliefs in ("in sample", "folds") for method in METHODS]
    lines = ["| ranking | " + " | ".join(f"{method}, {beliefs}" for beliefs, method in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for ranking in dict.fromkeys(row["ranking"] for row in rows):
        cells = [
            _cell([row for row in rows if (row["ranking"], row["beliefs"], row["method"]) == (ranking, *column)])
            for column in columns
        ]
        lines.append(f"| {ranking} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def flag_table(rows: list[dict[str, str]]) -> str:
    """AUC, and precision and recall of what is flagged, of the beliefs of folds, as Markdown."""
    measures = ("precision", "auc", "flagged_precision", "flagged_recall")
    lines = ["| ranking, folds | " + " | ".join(measures) + " |", "|---|" + "---:|" * len(measures)]
    for ranking in dict.fromkeys(row["ranking"] for row in rows):
        own = [row for row in rows if row["ranking"] == ranking and row["beliefs"] == "folds"]
        lines.append(f"| {ranking} | " + " | ".join(_cell(own, measure) for measure in measures) + " |")
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict[str, str]], measure: str = "precision") -> str:
    values = [100 * float(row[measure]) for row in rows if row.get(measure)]
    if not values:
        return "–"
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
