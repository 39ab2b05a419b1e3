"""Draws what `strength_grid.py` measured: accuracy and calibrated NLL over the plane of alpha and beta.

    python benchmarks/strength_figure.py results/strength/cifar100-10k.csv docs/figures/strength-cifar100-10k.svg

Each cell is a mean over seeds beside plain cross-entropy's (alpha = 0, named below); orange is better than it, blue is
worse, in both panels. Cells without a run stay empty.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labo.report.svg import ABOVE, BELOW, BLANK, INK, MUTED, render, standalone

# Measure, its title, factor, digits, and whether more is better.
PANELS = (("accuracy", "Test accuracy, %", 100, 1, True), ("nll_scaled", "NLL after temperature scaling", 1, 3, False))


def main() -> None:
    """Read the table, draw it, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("picture", type=Path)
    asked = parser.parse_args()
    with open(asked.table, newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    name = f"strength-{asked.table.stem}"
    svg = render(picture(rows), name, "Accuracy and calibrated NLL over alpha and beta, beside plain cross-entropy")
    asked.picture.write_text(standalone(svg), encoding="utf-8")


def picture(rows: list[dict[str, float]]) -> Figure:
    """Two panels, alpha down and beta across."""
    grid = [row for row in rows if row["alpha"]]
    alphas, betas = (sorted({row[key] for row in grid}) for key in ("alpha", "beta"))
    figure = Figure(figsize=(7.2, 0.95 + 0.42 * len(alphas)))
    for place, (key, title, factor, digits, more) in enumerate(PANELS):
        height = figure.get_figheight()
        axes = figure.add_axes((0.08 + 0.49 * place, 0.5 / height, 0.42, 0.42 * len(alphas) / height))
        plain = fmean(row[key] for row in rows if not row["alpha"])
        cells = {
            (i, j): fmean(found)
            for i, alpha in enumerate(alphas)
            for j, beta in enumerate(betas)
            if (found := [row[key] for row in grid if (row["alpha"], row["beta"]) == (alpha, beta)])
        }
        reach = max((abs(value - plain) for value in cells.values()), default=0) or 1.0
        for (i, j), value in cells.items():
            gain = (value - plain) / reach * (1 if more else -1)
            axes.add_patch(Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, fc=BLANK, lw=0))
            colour = ABOVE if gain > 0 else BELOW
            axes.add_patch(Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, fc=colour, alpha=0.65 * abs(gain), lw=0))
            axes.text(j + 0.5, i + 0.5, f"{value * factor:.{digits}f}", size=8.5, color=INK, ha="center", va="center")
        axes.set(xlim=(0, len(betas)), ylim=(len(alphas), 0))
        axes.set_xticks([j + 0.5 for j in range(len(betas))], [f"{beta:g}".replace("inf", "∞") for beta in betas])
        axes.set_yticks([i + 0.5 for i in range(len(alphas))], [f"{alpha:g}" for alpha in alphas])
        axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(f"beta    (alpha = 0: {plain * factor:.{digits}f})", size=8.5, color=MUTED, labelpad=2)
        axes.set_ylabel("alpha", size=8.5, color=MUTED)
        axes.set_title(title, size=9.5, color=INK, loc="left", weight="bold")
    return figure


if __name__ == "__main__":
    main()
