"""The measures beside the leaderboard: calibration in other bins, and selective prediction."""

from __future__ import annotations

from labo.report.measures import CALIBRATION, SELECTIVE, Measure, p_text
from labo.report.model import Cell, Section, Table
from labo.report.verdict import MethodSummary, TaskSummary

_TITLES = {CALIBRATION: "Calibration in other bins", SELECTIVE: "Selective prediction"}
_CAPTIONS = {
    CALIBRATION: (
        "Adaptive ECE has 15 bins of equal numbers of examples; class-wise ECE takes the probability of every class, "
        "in 15 bins of equal width, and is the mean over classes."
    ),
    SELECTIVE: (
        "A network that may abstain answers the examples it is most confident of. AURC is the mean error over all "
        "shares answered (lower is better). AUROC is the probability that a right prediction is more confident than a "
        "wrong one. Coverage at 1% or 5% is the largest share answered with at most that error. Confidence is the "
        "largest softmax probability; “normalized”, it is the largest logit after centring and division by the p-norm, "
        "p fitted on the validation split (Cattelan and Silva, UAI 2024). Label smoothing can harm this ranking, and "
        "normalization can mend it (Xia et al., ICLR 2025)."
    ),
}


def sections(task: TaskSummary) -> list[Section]:
    """A table for each group of measures that the records of a task have."""
    found = []
    for group, title in _TITLES.items():
        measures = [measure for measure in task.further if measure.group == group]
        if measures:
            rows = tuple(
                (Cell(summary.method), *(_cell(summary, measure) for measure in measures)) for summary in task.ranked()
            )
            caption = (
                f"{_CAPTIONS[group]} Means over seeds ± half of the 95% interval; p is of the paired difference to "
                f"{task.baseline}, after Holm's correction over the methods."
            )
            columns = ("Method", *(measure.label for measure in measures))
            found.append(Section(title, (Table(title, columns, rows, caption),)))
    return found


def _cell(summary: MethodSummary, measure: Measure) -> Cell:
    estimate, difference = summary.estimates[measure.key], summary.differences.get(measure.key)
    note = "" if difference is None else f"p {p_text(difference.p_holm)}"
    return Cell(measure.value(estimate.mean), measure.spread(estimate.half_width), note)
