"""What the run folders of one task hold for the figures, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from labo.records.comparison import Recorded
from labo.report.measures import number

Bins = list[dict[str, Any]]
Matrix = list[list[float | None]]


def figure_files(recorded: Recorded, task: str) -> dict[str, list[dict[str, Any]]]:
    """The figures.json of every trial of a task that has one, by method; damaged ones are left out."""
    return _gather(recorded, task, Recorded.figures)


def curve_files(recorded: Recorded, task: str) -> dict[str, list[list[dict[str, Any]]]]:
    """The curve.jsonl of every trial of a task that has one, by method."""
    return _gather(recorded, task, Recorded.curve)


def _gather(recorded: Recorded, task: str, read: Callable[..., Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for record in recorded.records:
        if str(record["task"]) != task or record.get("failed"):
            continue
        content = read(recorded, task, str(record["method"]), record["seed"])
        if content:
            found.setdefault(str(record["method"]), []).append(content)
    return found


def pooled_bins(files: Sequence[dict[str, Any]], which: str) -> Bins:
    """The reliability bins of several seeds as one: counts added, accuracy and confidence weighted by them."""
    pooled: dict[int, list[tuple[float, float, float]]] = {}
    for content in files:
        reliability = content.get("reliability")
        bins = reliability.get(which) if isinstance(reliability, dict) else None
        for index, entry in enumerate(bins if isinstance(bins, list) else ()):
            if not isinstance(entry, dict):
                continue
            confidence, accuracy, count = (number(entry.get(key)) for key in ("confidence", "accuracy", "count"))
            if confidence is not None and accuracy is not None and count:
                pooled.setdefault(index, []).append((confidence, accuracy, count))
    merged = []
    for index in sorted(pooled):
        total = sum(count for *_, count in pooled[index])
        confidence = sum(found[0] * found[2] for found in pooled[index]) / total
        accuracy = sum(found[1] * found[2] for found in pooled[index]) / total
        merged.append({"confidence": confidence, "accuracy": accuracy, "count": total})
    return merged


def mean_labels(files: Sequence[dict[str, Any]]) -> Matrix | None:
    """The mean over seeds of the K by K label matrices, entry by entry; None where no seed has one."""
    matrices: list[Any] = [content["labels"] for content in files if _square(content.get("labels"))]
    if not matrices:
        return None
    size = len(matrices[0])
    matrices = [matrix for matrix in matrices if len(matrix) == size]
    return [[_mean(matrix[row][column] for matrix in matrices) for column in range(size)] for row in range(size)]


def classes(files: Iterable[dict[str, Any]], size: int) -> list[str]:
    """The class names of the first run that has `size` of them, else their numbers."""
    for content in files:
        names = content.get("classes")
        if isinstance(names, list) and len(names) == size:
            return [str(name) for name in names]
    return [str(index) for index in range(size)]


def mean_curve(runs: Sequence[Sequence[dict[str, Any]]], key: str) -> tuple[list[float], list[float]]:
    """(epochs, mean over seeds of `key`); an epoch counts only where every seed that measured `key` reached it."""
    found: dict[float, list[float]] = {}
    measured = 0
    for run in runs:
        values = {}
        for line in run:
            epoch, value = number(line.get("epoch")), number(line.get(key))
            if epoch is not None and value is not None:
                values[epoch] = value  # a resumed run writes an epoch again: the later line counts
        measured += bool(values)
        for epoch, value in values.items():
            found.setdefault(epoch, []).append(value)
    epochs = sorted(epoch for epoch, values in found.items() if len(values) == measured)
    return epochs, [fmean(found[epoch]) for epoch in epochs]


def _square(matrix: Any) -> bool:
    if not isinstance(matrix, list) or len(matrix) < 2:
        return False
    return all(isinstance(row, list) and len(row) == len(matrix) for row in matrix)


def _mean(values: Iterable[Any]) -> float | None:
    known = [value for value in map(number, values) if value is not None]
    return math.fsum(known) / len(known) if known else None
