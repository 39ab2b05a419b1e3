"""Draws accuracy over the share of wrong labels, from the folders of comparisons that differ in --label-noise alone.

    python benchmarks/noise_figure.py docs/figures/noise-digits.svg results/memory-digits/clean \
        results/memory-digits/0.2-symmetric results/memory-digits/0.4-symmetric \
        --methods "none,label_smoothing,elr,labo[prior=memory],labo_auto"

A line a method: means over seeds with 95% intervals (Student's t). The shares are read from compare.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from labo.records.comparison import read
from labo.report import summarize
from labo.report.svg import INK, MUTED, SERIES, render, standalone

MARKERS, DASHES = "osD^vP", ("-", "-", "-", "-", "--", ":")


def share(folder: Path) -> float:
    """The share of wrong labels of a comparison."""
    noise = read(folder).comparison.get("task_options", {}).get("label_noise")
    return float(str(noise).partition(",")[0]) if noise else 0.0


def figure(folders: list[Path], methods: list[str]) -> Figure:
    """Accuracy in percent over the share of wrong labels in percent."""
    points: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    for folder in sorted(folders, key=share):
        for found in summarize(folder).tasks[0].methods:
            estimate = found.estimates["accuracy"]
            if found.method in points and estimate.mean is not None:
                half = 100 * (estimate.half_width or 0.0)
                points[found.method].append((100 * share(folder), 100 * estimate.mean, half))
    drawn = Figure(figsize=(7.2, 3.6))
    axes = drawn.add_axes((0.09, 0.15, 0.62, 0.8))
    for (name, found), colour, marker, dash in zip(points.items(), SERIES, MARKERS, DASHES, strict=False):
        x, y, half = zip(*found, strict=True)
        axes.errorbar(x, y, half, color=colour, marker=marker, ls=dash, ms=5, lw=1.8, capsize=3, label=name)
    axes.set_xlabel("Wrong labels in training and validation, %", color=INK, size=9)
    axes.set_ylabel("Accuracy on right test labels, %", color=INK, size=9)
    axes.set_xticks([x for x, _, _ in points[methods[0]]])
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9, labelcolor=INK)
    return drawn


def main() -> None:
    """Read the records, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--methods", default="none,label_smoothing,elr,labo[prior=memory],labo_auto")
    asked = parser.parse_args()
    drawn = figure(asked.folders, asked.methods.split(","))
    svg = render(drawn, asked.figure.stem, "Accuracy over the share of wrong labels")
    asked.figure.write_text(standalone(svg), encoding="utf-8")


if __name__ == "__main__":
    main()
