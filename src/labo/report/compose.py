"""From records and their verdict to a report: what it says, in which order."""

from __future__ import annotations

from collections.abc import Sequence

from labo.records.comparison import Recorded
from labo.report import (
    cost,
    figures,
    further,
    gallery,
    label_issues,
    learnt,
    post_hoc,
    protocol,
    sensitivity,
    token_labels,
)
from labo.report import leaderboard as leaderboard_over_tasks
from labo.report.measures import Measure, p_text
from labo.report.model import Block, Cell, Figures, Report, Section, Table, Text, Verdicts
from labo.report.verdict import Difference, MethodSummary, Summary, TaskSummary, finding
from labo.wording import counted

# What a terminal of 80 columns has no room for, and what it has none for beside another measure or a long name.
HIDDEN_IN_TERMINAL = ("brier", "top5", "perplexity")
HIDDEN_WHEN_NARROW = ("ece",)
_MAX_NAME = 20  # characters
_SHORT_LABELS = {"accuracy_shifted": "Acc., shifted"}


def report(recorded: Recorded, summary: Summary, *, samples: bool = True) -> Report:
    """The whole report, with all figures drawn; `samples=False` leaves out images and sentences of the data."""
    several = len(summary.tasks) > 1
    sections = [Section("Over all tasks", leaderboard_over_tasks.blocks(summary, "over-"))] if several else []
    for index, task in enumerate(summary.tasks):
        prefix = f"{index}-{gallery.slug(task.task)}-" if several else ""
        blocks = _task(recorded, task, prefix, samples=samples)
        sections.append(Section(task.task if several else "The verdict", blocks))
    title = f"{', '.join(task.task for task in summary.tasks)}: which method is better"
    footer = "" if samples else "Made without samples: figures and numbers, no images or sentences of the data."
    sections += protocol.sections(recorded, summary)
    return Report(title, _lead(recorded, summary), tuple(sections), footer)


def brief(summary: Summary) -> Report:
    """What a terminal of 80 columns shows: for each task the leaderboard, the verdicts and the finding."""
    sections = []
    for task in summary.tasks:
        finding_ = Text(finding(task), "finding")
        sections.append(Section(task.task, (_narrow_leaderboard(task), _verdicts(task), finding_)))
    if summary.overall:
        sections.append(Section("Over all tasks", (leaderboard_over_tasks.overall(summary),)))
    return Report("", "", tuple(sections))


def leaderboard(task: TaskSummary, measures: Sequence[Measure], *, costs: bool = False) -> Table:
    """The mean of each method and measure ± half of the 95% interval; the best means are emphasized.

    With `costs` the time and the memory of a trial stand beside them.
    """
    headings, cost_cells, cost_caption = cost.columns(task.costs, task.baseline) if costs else ((), {}, "")
    best = {measure.key: _best(measure, task) for measure in measures}
    rows = []
    for summary in task.ranked():
        estimates = [(measure, summary.estimates[measure.key]) for measure in measures]
        cells = [
            measure.cell(estimate.mean, estimate.half_width, emphasized=summary.method in best[measure.key])
            for measure, estimate in estimates
        ]
        cells += cost_cells.get(summary.method, ())
        rows.append((Cell(summary.method, mark=summary.verdict), Cell(_seeds(summary)), *cells))
    caption = (
        "Mean over seeds ± half of the 95% interval; the best mean is bold, which alone says nothing of "
        "significance. “Scaled” is after temperature scaling on the validation split."
    )
    columns = ("Method", "Seeds", *(measure.label for measure in measures), *headings)
    return Table("Leaderboard", columns, tuple(rows), f"{caption} {cost_caption}".strip())


def _lead(recorded: Recorded, summary: Summary) -> str:
    methods = {method.method for task in summary.tasks for method in task.methods}
    seeds = {record["seed"] for record in recorded.records}
    tasks = f" on {len(summary.tasks)} tasks" if len(summary.tasks) > 1 else ""
    return (
        f"{counted(len(methods), 'method')}{tasks}, {counted(len(seeds), 'seed')}, "
        f"{counted(len(recorded.records), 'trial')}. Every method is compared with {summary.baseline}, seed by seed."
    )


def _task(recorded: Recorded, task: TaskSummary, prefix: str, *, samples: bool) -> tuple[Block, ...]:
    drawn = gallery.sections(recorded, task, prefix)
    blocks = [
        Text(finding(task), "finding"),
        _verdicts(task),
        Section("Leaderboard", (leaderboard(task, task.measures, costs=True),)),
        _differences(task),
        *further.sections(task),
        _cost(task, prefix),
        sensitivity.section(recorded, task, prefix),
        post_hoc.shifts(recorded, task),
        post_hoc.bootstrap(recorded, task),
        post_hoc.beams(recorded, task),
        drawn[0],
        token_labels.section(recorded, task) if samples else None,
        *drawn[1:],
        learnt.section(recorded, task.task, prefix, samples=samples),
        label_issues.section(recorded, task.task, samples=samples),
        protocol.settings(recorded, task.task),
    ]
    return tuple(block for block in blocks if block is not None)


def _cost(task: TaskSummary, prefix: str) -> Section | None:
    """The main measure over time and memory of a trial; None where fewer than two methods have either."""
    estimates = {summary.method: summary.estimates[task.main.key] for summary in task.methods}
    drawn = []
    for kind, what in (("time", "time of a trial"), ("memory", "peak memory of a trial")):
        ratios = {
            name: ratio
            for name, ratio in cost.ratios(task.costs, task.baseline, kind).items()
            if estimates[name].values
        }
        if len(ratios) > 1:
            x_label = f"{what} in multiples of {task.baseline}'s"
            figure = figures.score_over_cost(task.main, f"over {kind}", x_label, estimates, ratios)
            drawn.append(gallery.drawn_figure(figure, f"{prefix}cost-{kind}", f"{task.main.label} over the {what}"))
    if not drawn:
        return None
    caption = (
        "Up and to the left is better. The lines are 95% intervals over seeds. The numbers are in the leaderboard."
    )
    return Section("Score over cost", (Figures(tuple(drawn), caption),))


def _verdicts(task: TaskSummary) -> Verdicts:
    return Verdicts(tuple((method.verdict, method.sentence) for method in task.baseline_last()))


def _narrow_leaderboard(task: TaskSummary) -> Table:
    # A method of one's own is named MODULE:CLASS, of which a terminal shows the class.
    names = {summary.method: summary.method.rpartition(":")[2] for summary in task.methods}
    has_shifts = any(measure.key == "accuracy_shifted" for measure in task.measures)
    crowded = task.main.of_text or has_shifts or max(map(len, names.values())) > _MAX_NAME
    hidden = HIDDEN_IN_TERMINAL + (HIDDEN_WHEN_NARROW if crowded else ())
    measures = [measure for measure in task.measures if measure.key not in hidden]
    whole = leaderboard(task, measures)
    labels = [_SHORT_LABELS.get(measure.key, measure.label) for measure in measures]
    rows = []
    for summary, (method, *cells) in zip(task.ranked(), whole.rows, strict=True):
        difference = summary.differences.get(task.main.key)
        gain = Cell("–")
        if difference is not None:
            gain = Cell(task.main.signed(difference.mean), note=f"p={p_text(difference.p_holm)}")
        rows.append((Cell(names[method.text], mark=method.mark), *cells, gain))
    columns = ("Method", "Seeds", *labels, "Minus baseline")
    return Table(task.task, columns, tuple(rows), optional=(*reversed(labels[1:]), "Seeds", "Minus baseline"))


def _differences(task: TaskSummary) -> Section | None:
    """Paired differences to the baseline ± half of the 95% interval, with p of the sign-flip test after Holm."""
    rows = []
    for summary in task.ranked():
        differences = [summary.differences.get(measure.key) for measure in task.measures]
        known = [difference for difference in differences if difference is not None]
        if known:
            pairs = Cell(_pairs(known), note=f"p ≥ {p_text(known[0].smallest_p_holm)}")
            cells = map(_difference, task.measures, differences)
            rows.append((Cell(summary.method, mark=summary.verdict), pairs, *cells))
    if not rows:
        return None
    unit = "" if task.main.of_text else "; accuracy in points"
    caption = (
        f"Method minus baseline, paired by seed, ± half of the 95% interval{unit}. p by the sign-flip test after "
        "Holm's correction over the methods; with so many pairs, p cannot be below the bound given beside their number."
    )
    columns = ("Method", "Pairs", *(measure.label for measure in task.measures))
    table = Table("Paired differences", columns, tuple(rows), caption)
    return Section(f"Paired differences to {task.baseline}", (table,))


def _difference(measure: Measure, difference: Difference | None) -> Cell:
    if difference is None:
        return Cell("–")
    return measure.difference_cell(difference.mean, difference.half_width, f"p {p_text(difference.p_holm)}")


def _best(measure: Measure, task: TaskSummary) -> set[str]:
    """The methods with the best mean of a measure, by what is shown; none where fewer than two have a value."""
    means = {summary.method: summary.estimates[measure.key].mean for summary in task.methods}
    shown = {name: round(mean * measure.factor, measure.digits) for name, mean in means.items() if mean is not None}
    if len(shown) < 2:
        return set()
    top = max(shown.values()) if measure.higher_is_better else min(shown.values())
    return {name for name, value in shown.items() if value == top}


def _seeds(summary: MethodSummary) -> str:
    """`8`, or `6 (2 failed)`."""
    return f"{summary.finished} ({len(summary.failures)} failed)" if summary.failures else str(summary.finished)


def _pairs(differences: Sequence[Difference]) -> str:
    """How many seeds were paired: `8`, or `7 to 8` where the measures differ."""
    counts = sorted({len(difference.seeds) for difference in differences})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
