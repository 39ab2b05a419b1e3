"""What a trial of each method costs: time and memory, beside the baseline's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from labo.report.measures import number
from labo.report.model import Cell
from labo.wording import byte_size


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


def columns(costs: Mapping[str, Cost], baseline: str) -> tuple[tuple[str, ...], dict[str, tuple[Cell, ...]], str]:
    """(the headings, the cells of each method, what a caption says of them); empty where nothing is recorded."""
    kinds = [
        ("Time", {name: cost.seconds for name, cost in costs.items()}, lambda value: f"{value:.3g} s", _TIME_CAPTION),
        ("Memory", {name: cost.memory for name, cost in costs.items()}, byte_size, _MEMORY_CAPTION),
    ]
    headings: list[str] = []
    cells: dict[str, tuple[Cell, ...]] = {name: () for name in costs}
    caption = ""
    for heading, values, text, sentence in kinds:
        if all(value is None for value in values.values()):
            continue
        headings.append(heading)
        caption += sentence
        for name, value in values.items():
            ratio = relative(value, values.get(baseline))
            note = "" if ratio is None or name == baseline else f"× {ratio:.2f}"
            cells[name] += (Cell("–" if value is None else text(value), note=note),)
    return tuple(headings), cells, caption


def ratios(costs: Mapping[str, Cost], baseline: str, kind: str) -> dict[str, float]:
    """The "time" or "memory" of the methods in multiples of the baseline's, where both are recorded."""
    values = {name: cost.seconds if kind == "time" else cost.memory for name, cost in costs.items()}
    found = {name: relative(value, values.get(baseline)) for name, value in values.items()}
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def relative(value: float | None, baseline: float | None) -> float | None:
    """How many times the baseline's; None where either is unknown."""
    return None if value is None or not baseline else value / baseline


def _mean(records: list[Mapping[str, Any]], key: str) -> float | None:
    values = [value for record in records if (value := number(record.get(key))) is not None]
    return fmean(values) if values else None
