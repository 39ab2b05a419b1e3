"""What a trial of each method costs: time and memory, beside the baseline's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from labo.report.measures import number
from labo.report.model import Cell
from labo.wording import byte_size

if TYPE_CHECKING:
    from labo.report.verdict import TaskSummary


@dataclass(frozen=True)
class Cost:
    """Means over finished trials: `seconds`, and bytes of `memory`; None where they are not recorded."""

    seconds: float | None = None
    memory: float | None = None

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Cost:
        """The cost of trials, by their records."""
        records = list(records)
        return cls(_mean(records, "seconds"), _mean(records, "peak_memory"))


_TIME_CAPTION = (
    "Time is the mean seconds of a trial, evaluation and any teacher included, and its multiple of the baseline's. "
    "Trials that run side by side slow each other down, so small differences in time say little."
)
_MEMORY_CAPTION = (
    " Memory is the peak of the training: what is allocated on a GPU, else the whole process with its libraries."
)


def columns(task: TaskSummary) -> tuple[tuple[str, ...], dict[str, tuple[Cell, ...]], str]:
    """(the headings, the cells of each method, what a caption says of them); empty where nothing is recorded."""
    costs = {summary.method: summary.cost for summary in task.methods}
    kinds = [
        ("Time", {name: cost.seconds for name, cost in costs.items()}, lambda value: f"{value:.3g} s", _TIME_CAPTION),
        ("Memory", {name: cost.memory for name, cost in costs.items()}, byte_size, _MEMORY_CAPTION),
    ]
    headings, cells, caption = [], {name: () for name in costs}, ""
    for heading, values, text, sentence in kinds:
        if all(value is None for value in values.values()):
            continue
        headings.append(heading)
        caption += sentence
        for name, value in values.items():
            ratio = relative(value, values.get(task.baseline))
            note = "" if ratio is None or name == task.baseline else f"× {ratio:.2f}"
            cells[name] += (Cell("–" if value is None else text(value), note=note),)
    return tuple(headings), cells, caption


def ratios(task: TaskSummary, kind: str) -> dict[str, float]:
    """The "time" or "memory" of the methods in multiples of the baseline's, where both are recorded."""
    values = {
        summary.method: summary.cost.seconds if kind == "time" else summary.cost.memory for summary in task.methods
    }
    found = {name: relative(value, values.get(task.baseline)) for name, value in values.items()}
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def relative(value: float | None, baseline: float | None) -> float | None:
    """How many times the baseline's; None where either is unknown."""
    return None if value is None or not baseline else value / baseline


def _mean(records: list[Mapping[str, Any]], key: str) -> float | None:
    values = [value for record in records if (value := number(record.get(key))) is not None]
    return fmean(values) if values else None
