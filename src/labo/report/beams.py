"""Beams in the report: how BLEU moves with the width of the search."""

from __future__ import annotations

from labo.records.comparison import Recorded
from labo.report.cells import cell
from labo.report.measures import MEASURES
from labo.report.verdict import TaskSummary

TITLE = "How BLEU moves with the beam"
_BLEU = MEASURES["bleu"]


def table(recorded: Recorded, task: TaskSummary) -> tuple[list[str], list[list[str]]] | None:
    """(headings, rows): a method's mean BLEU at each width, over its seeds that were measured; None where none was.

    Last, where there are several widths, comes the widest beam's BLEU minus the narrowest's. Only widths that every
    measured run of the task has are shown.
    """
    lines = recorded.beams if task.main.of_text else {}
    known = {
        summary.method: [
            lines[run]
            for seed in summary.estimates[task.main.key].values
            if (run := (task.task, summary.method, seed)) in lines
        ]
        for summary in task.ranked()
        if task.main.key in summary.estimates
    }
    everything = [found for runs in known.values() for found in runs]
    widths = sorted(width for width in (everything or [{}])[0] if all(width in found for found in everything))
    if not widths:
        return None
    rows = []
    for method, runs in known.items():
        if runs:
            cells = [cell(_BLEU, [found[width] for found in runs]) for width in widths]
            gaps = [cell(_BLEU, [found[widths[-1]] - found[widths[0]] for found in runs], signed=True)]
            rows.append([method, str(len(runs)), *cells, *(gaps if len(widths) > 1 else [])])
    gap = [f"{widths[-1]} minus {widths[0]}"] if len(widths) > 1 else []
    return ["Method", "Seeds", *(f"Beam {width}" for width in widths), *gap], rows


def sentence() -> str:
    """What the table tells."""
    return (
        "BLEU of the test translations by the width of the beam, the mean over seeds ± half of the 95% interval. Where "
        "a wider search, which finds translations that the network thinks likelier, scores lower, what the network "
        "thinks likely is not what is right."
    )
