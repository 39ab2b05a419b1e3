"""One Markdown table of several comparisons: what every rival reaches in each, against one method.

    python benchmarks/rivals_table.py results/channel-digits --against labo_auto

A column is a folder NAME of the given one; its comparisons NAME-best and NAME-optuna, on the same seeds, add their
methods as rows of their own. Accuracy in percent, mean over seeds and half of the 95% interval; ▲ and ▼ where the
method of --against is significantly better and worse than the row (exact paired sign-flip test, Holm over the rows of
the column, p ≤ 0.05). The last column is the mean cost of a run in plain runs, tuning left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from labo.metrics import significance
from labo.records.comparison import read
from labo.records.trial import plain_runs

VARIANTS = {"-best": ", best epoch", "-optuna": ", Optuna"}
LEVEL = 0.05

# Method -> seed -> record.
Row = dict[int, dict[str, Any]]


def rows(folder: Path) -> dict[str, Row]:
    """The records of a comparison and of its variants."""
    found: dict[str, Row] = {}
    for suffix, words in {"": "", **VARIANTS}.items():
        variant = folder.with_name(folder.name + suffix)
        for record in read(variant).records if variant.is_dir() else []:
            found.setdefault(f"`{record['method']}`{words}", {})[record["seed"]] = record
    return found


def accuracies(row: Row, seeds: list[int]) -> list[float]:
    """In percent, of these seeds."""
    return [100 * row[seed]["metrics"]["accuracy"] for seed in seeds]


def column(found: dict[str, Row], against: str) -> dict[str, str]:
    """The cells of a comparison, by row."""
    mine = found[f"`{against}`"]
    cells, tested = {}, {}
    for name, row in found.items():
        seeds = sorted(row.keys() & mine.keys())
        mean, half = significance.mean_interval(accuracies(row, seeds))
        cells[name] = f"{mean:.1f} ± {half:.1f}"
        if row is not mine:
            differences = [a - b for a, b in zip(accuracies(mine, seeds), accuracies(row, seeds), strict=True)]
            tested[name] = fmean(differences), significance.sign_flip_test(differences)
    corrected = significance.holm([p for _, p in tested.values()])
    for (name, (difference, _)), p in zip(tested.items(), corrected, strict=True):
        if p <= LEVEL:
            cells[name] += " ▲" if difference > 0 else " ▼"
    return cells


def main() -> None:
    """Read, test, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", default="labo_auto")
    options = parser.parse_args()
    names = sorted(
        path.name for path in options.folder.iterdir() if path.is_dir() and not path.name.endswith(tuple(VARIANTS))
    )
    comparisons = {name: rows(options.folder / name) for name in names}
    columns = {name: column(found, options.against) for name, found in comparisons.items()}
    order = dict.fromkeys(name for found in comparisons.values() for name in found)
    print(f"| | {' | '.join(names)} | cost |\n|---|{'---|' * (len(names) + 1)}")
    for name in order:
        costs = [plain_runs(record) for found in comparisons.values() for record in found.get(name, {}).values()]
        cells = [columns[each].get(name, "–") for each in names]
        print(f"| {name} | {' | '.join(cells)} | {fmean(costs):.1f} |")


if __name__ == "__main__":
    main()
