"""The table and the picture of docs/performance.md, from what `labo bench` measured.

python benchmarks/performance.py results/bench/cpu.csv docs/figures/bandwidth.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

YARDSTICK = "torch, smoothed"
SHOWN = {
    "labo": "LABO, β 2 (numba)",
    "labo, smoothing": "smoothing (numba)",
    "labo, blocked": "LABO, β 2 (blocked)",
    "labo, compiled": "LABO under torch.compile",
    "torch": "PyTorch, not smoothed",
    "naive, compiled": "naive LABO under torch.compile",
    "naive": "naive LABO",
}
COLOURS = {"labo": "#d62728", "labo, blocked": "#ff9896", "torch": "#1f77b4", YARDSTICK: "#17375e", "naive": "#7f7f7f"}
COLOURS["naive, compiled"] = "#bcbd22"


def table(lines: pd.DataFrame) -> str:
    """Ratios to the yardstick, stock / steady, one line a batch."""
    rows = [f"| batch | {' | '.join(SHOWN.values())} |", "|---" * (len(SHOWN) + 1) + "|"]
    for batch, group in lines.groupby("batch", sort=False):
        ratios = group.pivot_table(index="contender", columns="allocator", values="ratio")
        cells = []
        for name in SHOWN:
            known = name in ratios.index
            cells.append(f"{ratios.loc[name, 'stock']:.2f} / {ratios.loc[name, 'steady']:.2f}" if known else "–")
        rows.append(f"| {batch} | {' | '.join(cells)} |")
    return "\n".join(rows)


def picture(lines: pd.DataFrame, path: Path) -> None:
    """Share of the speed of a copy of the logits, over the number of classes: a copy is the roof."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "labo"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    large = lines[(lines.form == "logits") & (lines.dtype == "float32") & (lines.rows * lines.classes > 2**20)]
    for axis, allocator in zip(axes, ("stock", "steady"), strict=True):
        axis.axhline(1.0, color="black", linewidth=1)
        axis.text(110, 0.97, "a copy of the logits", va="top", fontsize=8)
        for name, colour in COLOURS.items():
            found = large[(large.contender == name) & (large.allocator == allocator)].sort_values("classes")
            label = {**SHOWN, YARDSTICK: "PyTorch, smoothed"}[name]
            axis.plot(found.classes, found.copy_share, marker="o", markersize=4, color=colour, label=label)
        axis.set(xscale="log", yscale="log", xlabel="classes", title=f"{allocator} allocator", ylim=(0.03, 1.2))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of copy speed (log)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 0.76, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the table, write the picture."""
    source, target = (Path(text) for text in sys.argv[1:])
    lines = pd.read_csv(source)
    width = lines.width.map(lambda number: f" of width {number}" if number else "")
    lines["batch"] = [
        f"{n} × {v:,}{w}, {d}" for n, v, w, d in zip(lines.rows, lines.classes, width, lines.dtype, strict=True)
    ]
    print(table(lines))
    picture(lines, target)


if __name__ == "__main__":
    main()
