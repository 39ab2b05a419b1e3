"""Shifted inputs in the report: a measure like any other, and a table of accuracy by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from labo.records.comparison import Recorded
from labo.records.measurements import SEVERITIES, ShiftScores, TrialKey
from labo.report.cells import cell
from labo.report.measures import MEASURES, number
from labo.report.verdict import TaskSummary

TITLE = "Accuracy on shifted pictures"
_ACCURACY, _SHIFTED = MEASURES["accuracy"], MEASURES["accuracy_shifted"]


def with_shifts(recorded: Recorded, asked: Sequence[tuple[str, int]] | None = None) -> Recorded:
    """The records with "accuracy_shifted" among their metrics where a folder's shift.jsonl has it.

    It is the mean over the (kind, severity) pairs asked for; without, over the kinds that every measured trial of the
    task has, at the severities that all of these have: methods are measured by the same, and kinds count alike.
    """
    known = {key: _accuracies(pairs) for key, pairs in recorded.shifts.items()}
    trials = [(_key(record), record) for record in recorded.records]
    shifted = {}
    for task in dict.fromkeys(key[0] for key, _ in trials):
        found = [known[key] for key, _ in trials if key[0] == task and key in known]
        if asked is None:
            chosen = _grid([pair for pair in (found or [{}])[0] if all(pair in pairs for pairs in found)])
        else:
            chosen = [pair for pair in asked if any(pair in pairs for pairs in found)]
        if chosen:
            shifted[task] = tuple(chosen)
    records = [_with_mean(record, known.get(key, {}), shifted.get(key[0], ())) for key, record in trials]
    return replace(recorded, records=records, shifted=shifted)


def table(recorded: Recorded, task: TaskSummary) -> tuple[list[str], list[list[str]]] | None:
    """(headings, rows) of the mean accuracy of each method on clean inputs, by kind of shift, and over all kinds.

    Means are over the seeds that were measured, clean ones too. None where nothing was.
    """
    pairs = recorded.shifted.get(task.task, ())
    known = recorded.shifts if pairs else {}
    kinds = list(dict.fromkeys(kind for kind, _ in pairs))
    rows = []
    for summary in task.ranked():
        seeds = summary.estimates[_SHIFTED.key].values if _SHIFTED.key in summary.estimates else {}
        if not seeds:
            continue
        found = {seed: _accuracies(known[(task.task, summary.method, seed)]) for seed in seeds}
        clean = summary.estimates[_ACCURACY.key].values
        columns = [{seed: clean[seed] for seed in seeds if seed in clean}]
        for kind in kinds:
            of_kind = [pair for pair in pairs if pair[0] == kind]
            columns.append({seed: fmean(found[seed][pair] for pair in of_kind) for seed in seeds})
        rows.append(
            [summary.method, str(len(seeds)), *(cell(_ACCURACY, column.values()) for column in (*columns, seeds))]
        )
    return (["Method", "Seeds", "Clean", *(kind.capitalize() for kind in kinds), "Shifted"], rows) if rows else None


def sentence(recorded: Recorded, task: str) -> str:
    """What "shifted" means in this report; empty where nothing was measured."""
    pairs = recorded.shifted.get(task, ())
    if not pairs:
        return ""
    kinds = ", ".join(dict.fromkeys(kind for kind, _ in pairs))
    severities = sorted({severity for _, severity in pairs})
    told = f"severity {severities[0]}" if len(severities) == 1 else f"severities {', '.join(map(str, severities))}"
    return (
        f"“Shifted” is the mean accuracy on the test pictures made worse: {kinds}, at {told} of 5, after Hendrycks and "
        "Dietterich (ICLR 2019), the noise drawn by the trial's seed. No network was trained on such pictures unless "
        "its augmentation makes them."
    )


def _grid(pairs: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The pairs of those kinds and severities of which all combinations are there, as many kinds as can be."""
    by_kind: dict[str, list[int]] = {}
    for kind, severity in pairs:
        by_kind.setdefault(kind, []).append(severity)
    while by_kind:
        shared = [severity for severity in SEVERITIES if all(severity in found for found in by_kind.values())]
        if shared:
            return [(kind, severity) for kind in by_kind for severity in shared]
        del by_kind[min(by_kind, key=lambda kind: len(by_kind[kind]))]
    return []


def _key(record: dict[str, Any]) -> TrialKey:
    return str(record["task"]), str(record["method"]), record["seed"]


def _accuracies(pairs: ShiftScores) -> dict[tuple[str, int], float]:
    found = {pair: number(values.get("accuracy")) for pair, values in pairs.items()}
    return {pair: value for pair, value in found.items() if value is not None}


def _with_mean(
    record: dict[str, Any], known: dict[tuple[str, int], float], pairs: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    metrics = record.get("metrics")
    if not metrics or not pairs or not all(pair in known for pair in pairs):
        return record
    return {**record, "metrics": {**metrics, _SHIFTED.key: fmean(known[pair] for pair in pairs)}}
