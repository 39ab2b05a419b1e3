"""What was measured on finished runs, in a report: shifted inputs, the width of the beam, the paired bootstrap.

Each section is None where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

from labo.records.comparison import Recorded
from labo.records.measurements import SEVERITIES, BootstrapResult, ShiftScores, TrialKey
from labo.report.measures import MEASURES, Measure, number, p_text
from labo.report.model import Cell, Section, Table, Text
from labo.report.verdict import SIGNIFICANCE_LEVEL, TaskSummary, estimate

_ACCURACY, _SHIFTED, _BLEU = MEASURES["accuracy"], MEASURES["accuracy_shifted"], MEASURES["bleu"]


def with_shifts(recorded: Recorded, asked: Sequence[tuple[str, int]] | None = None) -> Recorded:
    """The records with "accuracy_shifted" among their metrics where a folder's shift.jsonl has it.

    It is the mean over the (kind, severity) pairs `asked`; without them, over the kinds that every measured trial of
    the task has, at the severities that all of these have: all methods are measured alike, and kinds weigh the same.
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


def shifts(recorded: Recorded, task: TaskSummary) -> Section | None:
    """The mean accuracy of each method on clean inputs, by kind of corruption, and over all kinds.

    Means are over the seeds that were measured, on clean inputs too.
    """
    pairs = recorded.shifted.get(task.task, ())
    known = recorded.shifts if pairs else {}
    kinds = list(dict.fromkeys(kind for kind, _ in pairs))
    rows = []
    for summary in task.ranked():
        overall = summary.estimates[_SHIFTED.key].values if _SHIFTED.key in summary.estimates else {}
        if not overall:
            continue
        accuracies = {seed: _accuracies(known[(task.task, summary.method, seed)]) for seed in overall}
        clean = summary.estimates[_ACCURACY.key].values
        columns = [[clean[seed] for seed in overall if seed in clean]]
        for kind in kinds:
            of_kind = [pair for pair in pairs if pair[0] == kind]
            columns.append([fmean(accuracies[seed][pair] for pair in of_kind) for seed in overall])
        columns.append(list(overall.values()))
        cells = [_mean_cell(_ACCURACY, column) for column in columns]
        rows.append((Cell(summary.method), Cell(str(len(overall))), *cells))
    columns = ("Method", "Seeds", "Clean", *(kind.capitalize() for kind in kinds), "Shifted")
    return _section("Accuracy on corrupted images", columns, rows, _shift_caption(pairs)) if rows else None


def _shift_caption(pairs: Sequence[tuple[str, int]]) -> str:
    kinds = ", ".join(dict.fromkeys(kind for kind, _ in pairs))
    severities = sorted({severity for _, severity in pairs})
    levels = f"severity {severities[0]}" if len(severities) == 1 else f"severities {', '.join(map(str, severities))}"
    return (
        f"“Shifted” is the mean accuracy on corrupted test images: {kinds}, at {levels} of 5, after Hendrycks and "
        "Dietterich (ICLR 2019), the noise drawn by the trial's seed. No network was trained on such images unless "
        "its augmentation makes them."
    )


def _grid(pairs: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The pairs of those kinds and severities of which all combinations are there, as many kinds as can be."""
    by_kind: dict[str, list[int]] = {}
    for kind, severity in pairs:
        by_kind.setdefault(kind, []).append(severity)
    while by_kind:
        shared = [severity for severity in SEVERITIES if all(severity in severities for severities in by_kind.values())]
        if shared:
            return [(kind, severity) for kind in by_kind for severity in shared]
        del by_kind[min(by_kind, key=lambda kind: len(by_kind[kind]))]
    return []


def _key(record: dict[str, Any]) -> TrialKey:
    return str(record["task"]), str(record["method"]), record["seed"]


def _accuracies(pairs: ShiftScores) -> dict[tuple[str, int], float]:
    accuracies = {pair: number(values.get("accuracy")) for pair, values in pairs.items()}
    return {pair: value for pair, value in accuracies.items() if value is not None}


def _with_mean(
    record: dict[str, Any], known: dict[tuple[str, int], float], pairs: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    metrics = record.get("metrics")
    if not metrics or not pairs or not all(pair in known for pair in pairs):
        return record
    return {**record, "metrics": {**metrics, _SHIFTED.key: fmean(known[pair] for pair in pairs)}}


def beams(recorded: Recorded, task: TaskSummary) -> Section | None:
    """The mean BLEU of each method at each width of the beam, over its seeds that were measured.

    The last of several columns is the BLEU of the widest beam minus that of the narrowest. Only widths that every
    measured run of the task has are shown.
    """
    lines = recorded.beams if task.main.of_text else {}
    by_method = {
        summary.method: [
            lines[run]
            for seed in summary.estimates[task.main.key].values
            if (run := (task.task, summary.method, seed)) in lines
        ]
        for summary in task.ranked()
    }
    runs = [run for of_method in by_method.values() for run in of_method]
    widths = sorted(width for width in (runs or [{}])[0] if all(width in run for run in runs))
    if not widths:
        return None
    narrowest, widest = widths[0], widths[-1]
    rows = []
    for method, of_method in by_method.items():
        if of_method:
            cells = [_mean_cell(_BLEU, [run[width] for run in of_method]) for width in widths]
            if len(widths) > 1:
                cells.append(_mean_cell(_BLEU, [run[widest] - run[narrowest] for run in of_method], signed=True))
            rows.append((Cell(method), Cell(str(len(of_method))), *cells))
    gap = [f"{widest} minus {narrowest}"] if len(widths) > 1 else []
    caption = (
        "BLEU of the test translations by the width of the beam, the mean over seeds ± half of the 95% interval. Where "
        "a wider search, which finds translations that the network thinks likelier, scores lower, what the network "
        "thinks likely is not what is right."
    )
    columns = ("Method", "Seeds", *(f"Beam {width}" for width in widths), *gap)
    return _section("How BLEU moves with the beam", columns, rows, caption)


def bootstrap(recorded: Recorded, task: TaskSummary) -> Section | None:
    """On how many seeds a method differs from the baseline on resampled test sentences, the median p, and each seed.

    A cell of a seed is the difference in BLEU and its p. Only seeds that the verdict pairs count. For a translation
    task that was not measured it says why.
    """
    if not task.main.of_text:
        return None
    title, by_method = "Other test sentences: the paired bootstrap", _bootstrap_of_task(recorded, task)
    if not by_method:
        reason = (
            "The paired bootstrap over test sentences is left out: it needs the translations of a method and of the "
            "baseline on the same seed, and none are here."
        )
        return Section(title, (Text(reason, "missing"),))
    seeds = sorted({seed for by_seed in by_method.values() for seed in by_seed})
    rows = []
    for method, by_seed in by_method.items():
        significant = [drawn for drawn in by_seed.values() if drawn.p <= SIGNIFICANCE_LEVEL]
        better = sum(drawn.difference > 0 for drawn in significant)
        worse = sum(drawn.difference < 0 for drawn in significant)
        counts = [Cell(str(count)) for count in (better, worse, len(by_seed) - better - worse)]
        median_p = Cell(p_text(median(drawn.p for drawn in by_seed.values())))
        cells = [_bootstrap_cell(by_seed[seed]) if seed in by_seed else Cell("–") for seed in seeds]
        rows.append((Cell(method), *counts, median_p, *cells))
    columns = ("Method", "Better on", "Worse on", "Not significant on", "Median p", *(f"Seed {seed}" for seed in seeds))
    drawn = [drawn for by_seed in by_method.values() for drawn in by_seed.values()]
    return _section(title, columns, rows, _bootstrap_caption(task.baseline, drawn))


def _bootstrap_cell(drawn: BootstrapResult) -> Cell:
    return _BLEU.difference_cell(drawn.difference, None, f"p {p_text(drawn.p)}")


def _bootstrap_caption(baseline: str, drawn: Sequence[BootstrapResult]) -> str:
    draws = " or ".join(f"{count:,}" for count in sorted({each.draws for each in drawn}))
    return (
        f"BLEU minus that of {baseline} on the same seed, with p by sacreBLEU's paired bootstrap ({draws} "
        "draws of the test sentences, after Koehn, EMNLP 2004). It tests whether these two networks would differ "
        "on other sentences of this kind. It does not cover the variance of training: two runs of one method may "
        "differ by it. The verdict, which is about methods, is the test over seeds above. Counted are seeds with "
        f"p of at most {SIGNIFICANCE_LEVEL:g}; nothing is corrected for their number."
    )


def _bootstrap_of_task(recorded: Recorded, task: TaskSummary) -> dict[str, dict[int, BootstrapResult]]:
    """Method -> seed -> what was measured against the task's baseline, the methods by rank."""
    found = {}
    for summary in task.ranked():
        pairs = {
            seed: recorded.bootstrap[pair]
            for seed in (summary.differences[task.main.key].seeds if task.main.key in summary.differences else ())
            if (pair := (task.task, task.baseline, summary.method, seed)) in recorded.bootstrap
        }
        if pairs:
            found[summary.method] = pairs
    return found


def _section(title: str, columns: tuple[str, ...], rows: Iterable[tuple[Cell, ...]], caption: str) -> Section:
    return Section(title, (Table(title, columns, tuple(rows), caption),))


def _mean_cell(measure: Measure, values: Iterable[float], *, signed: bool = False) -> Cell:
    """The mean over seeds ± half of the 95% interval; no interval where there is one value."""
    mean = estimate(dict(enumerate(values)))
    return (measure.difference_cell if signed else measure.cell)(mean.mean, mean.half_width)
