"""The paired bootstrap in the report: whether the choice of test sentences explains a difference in BLEU."""

from __future__ import annotations

from statistics import median

from labo.records.comparison import Recorded
from labo.records.measurements import BootstrapResult
from labo.report.measures import MEASURES, p_text
from labo.report.verdict import LEVEL, TaskSummary

TITLE = "Other test sentences: the paired bootstrap"
_BLEU = MEASURES["bleu"]


def table(recorded: Recorded, task: TaskSummary) -> tuple[list[str], list[list[str]]] | None:
    """(headings, rows): on how many seeds a method differs from the baseline, the median p, and each seed's own.

    A cell of a seed is the difference in BLEU and its p. Only seeds that the verdict pairs count. None where nothing
    was measured.
    """
    known = _of_task(recorded, task)
    seeds = sorted({seed for found in known.values() for seed in found})
    rows = []
    for method, found in known.items():
        low = [drawn for drawn in found.values() if drawn.p <= LEVEL]
        better, worse = sum(drawn.difference > 0 for drawn in low), sum(drawn.difference < 0 for drawn in low)
        counts = [str(better), str(worse), str(len(found) - better - worse)]
        cells = [
            f"{_BLEU.signed(found[seed].difference)} (p {_p(found[seed])})" if seed in found else "–" for seed in seeds
        ]
        rows.append([method, *counts, p_text(median(drawn.p for drawn in found.values())), *cells])
    headings = ["Method", "Better on", "Worse on", "Not told apart on", "Median p", *(f"Seed {seed}" for seed in seeds)]
    return (headings, rows) if rows else None


def sentence(recorded: Recorded, task: TaskSummary) -> str:
    """What the table tells, and what it does not; or, for a translation task without one, why there is none."""
    known = [drawn for found in _of_task(recorded, task).values() for drawn in found.values()]
    if not known:
        return (
            "The paired bootstrap over test sentences is left out: it needs the translations of a method and of the "
            "baseline on the same seed, and none are here."
        )
    draws = " or ".join(f"{count:,}" for count in sorted({drawn.draws for drawn in known}))
    return (
        f"BLEU minus that of {task.baseline} on the same seed, with p by sacreBLEU's paired bootstrap ({draws} "
        "draws of the test sentences, after Koehn, EMNLP 2004). It asks whether these two networks would differ "
        "on other sentences of this kind. It knows nothing of the luck of training: two runs of one method may "
        "differ by it. The verdict, which is about methods, is the test over seeds above. Counted are seeds with "
        f"p of at most {LEVEL:g}; nothing is corrected for their number."
    )


def _p(drawn: BootstrapResult) -> str:
    return p_text(drawn.p)


def _of_task(recorded: Recorded, task: TaskSummary) -> dict[str, dict[int, BootstrapResult]]:
    """Method -> seed -> what was measured against the task's baseline, the methods by rank."""
    lines = recorded.bootstrap if task.main.of_text else {}
    found = {}
    for summary in task.ranked():
        pairs = {
            seed: lines[pair]
            for seed in (summary.differences[task.main.key].seeds if task.main.key in summary.differences else ())
            if (pair := (task.task, task.baseline, summary.method, seed)) in lines
        }
        if pairs:
            found[summary.method] = pairs
    return found
