"""How much the settings matter: validation scores over strength, and the expected best of a number of tries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from labo.records.comparison import Recorded
from labo.report import figures
from labo.report.gallery import drawn_figure, slug
from labo.report.measures import Measure, number
from labo.report.model import Block, Cell, Details, Figures, Section, Table
from labo.report.provenance import short
from labo.report.verdict import TaskSummary

# The options that say how strong a method is, by preference.
STRENGTHS = ("alpha", "epsilon", "strength", "scale", "gamma", "margin", "q")


@dataclass(frozen=True)
class Candidate:
    """Settings that were tried: their value of each varied option, and the validation scores by tuning seed."""

    options: Mapping[str, Any]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean score over the tuning seeds."""
        return fmean(self.scores)


def candidates(recorded: Recorded, task: TaskSummary) -> dict[str, list[Candidate]]:
    """The candidates of each method with a validation score, in the order of tuning.jsonl."""
    lines: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in recorded.tuning:
        if str(line.get("task")) == task.task and isinstance(line.get("settings"), dict):
            key = json.dumps(line["settings"], sort_keys=True)
            lines.setdefault(str(line.get("method")), {}).setdefault(key, []).append(line)
    found: dict[str, list[Candidate]] = {}
    for method, by_settings in lines.items():
        settings = [of_settings[0]["settings"] for of_settings in by_settings.values()]
        varied = [key for key in settings[0] if len({json.dumps(each.get(key)) for each in settings}) > 1]
        for own, of_settings in zip(settings, by_settings.values(), strict=True):
            values = [number((line.get("validation") or {}).get(task.main.key)) for line in of_settings]
            if scores := tuple(value for value in values if value is not None):
                found.setdefault(method, []).append(Candidate({key: own.get(key) for key in varied}, scores))
    return found


def expected_best(scores: Sequence[float], tries: int) -> float:
    """The expected highest of `tries` scores, drawn from `scores` without replacement.

    It is the mean over all orders in which the candidates could have been tried. Source: Dodge et al., *Show Your
    Work*, EMNLP 2019, who draw with replacement; without, it is exact for the candidates at hand.

    Args:
        scores: of all candidates; higher is better.
        tries: from 1 to the number of candidates.

    Example:
        >>> expected_best([1.0, 2.0, 4.0], 2)  # the pairs have the maxima 2, 4, 4
        3.3333333333333335
    """
    ordered = sorted(scores)
    ways = [math.comb(rank, tries - 1) for rank in range(len(ordered))]  # in which each score is the highest
    return math.fsum(score * count for score, count in zip(ordered, ways, strict=True)) / math.comb(len(ordered), tries)


def strength(tried: Sequence[Candidate]) -> str | None:
    """The option to draw scores over: of the numeric ones that vary, the one that says how strong the method is."""
    if not tried:
        return None
    numeric = [key for key in tried[0].options if any(number(each.options[key]) is not None for each in tried)]
    return next((key for key in STRENGTHS if key in numeric), next(iter(numeric), None))


def section(recorded: Recorded, task: TaskSummary, prefix: str) -> Section | None:
    """A table and a figure of the expected best of n tries, and a panel of scores over strength for each method.

    None where no method was tuned.
    """
    tuned = {method: tried for method, tried in candidates(recorded, task).items() if len(tried) > 1}
    order = [summary.method for summary in task.methods]
    tuned = {method: tuned[method] for method in order if method in tuned}
    if not tuned:
        return None
    blocks: list[Block] = [_table(task.main, tuned)]
    drawn, panels = [], []
    lines = {method: _tries(task.main, tried) for method, tried in tuned.items()}
    figure = figures.curves(
        "Expected best of n tries",
        f"validation {task.main.noun}",
        lines,
        order,
        x_label="candidates tried",
        whole=True,
        unit=task.main.unit,
    )
    drawn.append(drawn_figure(figure, f"{prefix}tries", "Expected best validation score by number of candidates tried"))
    for method, tried in tuned.items():
        if (option := strength(tried)) is None:
            continue
        points = [(number(each.options[option]), each.scores) for each in tried]
        known = [
            (value, [score * task.main.factor for score in scores]) for value, scores in points if value is not None
        ]
        figure = figures.sensitivity(
            method, f"validation {task.main.noun} by {option}", known, order.index(method), task.main.unit
        )
        name = f"{prefix}strength-{order.index(method)}-{slug(method)}"
        panels.append(drawn_figure(figure, name, f"Validation {task.main.noun} of {method} by {option}"))
    caption = (
        "The expected best of n tries is the mean of the best validation score over all orders in which the candidates "
        "could have been tried (after Dodge et al., EMNLP 2019). A flat line needs no tuning."
    )
    blocks.append(Figures(tuple(drawn), caption))
    if panels:
        over = (
            "Each hollow dot is a tuning seed, each filled one the mean of a candidate; the line joins the best "
            "candidates of each value. Other options may vary along with the one drawn."
        )
        blocks.append(Details("Score over strength, method by method", (Figures(tuple(panels), over),), is_open=True))
    return Section("How much tuning matters", tuple(blocks))


def _tries(main: Measure, tried: Sequence[Candidate]) -> tuple[list[float], list[float]]:
    """(numbers of tries, expected best score in the shown unit)."""
    sign = 1.0 if main.higher_is_better else -1.0
    scores = [sign * each.mean for each in tried]
    counts = range(1, len(tried) + 1)
    return [float(count) for count in counts], [sign * expected_best(scores, count) * main.factor for count in counts]


def _table(main: Measure, tuned: Mapping[str, Sequence[Candidate]]) -> Table:
    most = max(len(tried) for tried in tuned.values())
    counts = [count for count in (1, 2, 3, 5, 8, 13) if count <= most]
    sign = 1.0 if main.higher_is_better else -1.0
    rows = []
    for method, tried in tuned.items():
        scores = [sign * each.mean for each in tried]
        best = tried[max(range(len(tried)), key=scores.__getitem__)]
        listed = ", ".join(f"{key} {short(value)}" for key, value in best.options.items() if value is not None)
        expected = [
            Cell(main.value(sign * expected_best(scores, count)) if count <= len(tried) else "–") for count in counts
        ]
        spread = Cell(main.signed(max(scores) - min(scores)).lstrip("+"))
        rows.append((Cell(method), Cell(str(len(tried))), *expected, spread, Cell(listed or "–")))
    headings = [f"Best of {count}" for count in counts]
    columns = ("Method", "Candidates", *headings, "Best minus worst", "Best settings")
    caption = (
        f"{main.label} on the validation split, the mean over tuning seeds: what to expect of the best of n candidates "
        "tried, and how far the worst is from the best."
    )
    return Table("Tuning", columns, tuple(rows), caption, has_prose=True)
