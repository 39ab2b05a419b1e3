"""Several tasks at once: average ranks, win rates against the baseline, and which ranks differ significantly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labo.metrics import ranks
from labo.records.comparison import Recorded
from labo.report import cost, rank_figures
from labo.report.model import Block, Cell, Figure, Figures, Report, Section, Table, Text, Verdicts
from labo.report.svg import render
from labo.report.verdict import SIGNIFICANCE_LEVEL, MethodSummary, Summary, TaskSummary, finding, p_phrase
from labo.wording import counted


@dataclass(frozen=True)
class Standing:
    """A method over tasks: its average rank, its pairs won and lost against the baseline, its scores by task."""

    method: str
    rank: float
    wins: int
    losses: int
    summaries: Mapping[str, MethodSummary]


def merge(comparisons: Sequence[Recorded]) -> Recorded:
    """The records of several comparisons as one; tasks of the same name are told by their folders."""
    labels = [[task, recorded.directory] for recorded in comparisons for task in recorded.tasks]
    names = _labels([(str(task), Path(str(folder))) for task, folder in labels])
    records, labelled = [], iter(names)
    for recorded in comparisons:
        own = {task: next(labelled) for task in recorded.tasks}
        records += [{**record, "task": own[str(record["task"])]} for record in recorded.records]
    return replace(comparisons[0], records=records, tuning=[], comparison={})


def standings(summary: Summary) -> list[Standing]:
    """The methods that have a score on every task, the best average rank first; none below two of them."""
    by_task = {task.task: {method.method: method for method in task.methods} for task in summary.tasks}
    common = [
        method
        for method in dict.fromkeys(name for methods in by_task.values() for name in methods)
        if all(_score(task, by_task[task.task].get(method)) is not None for task in summary.tasks)
    ]
    if len(common) < 2:
        return []
    found = []
    for method, rank in zip(common, ranks.average_ranks(_scores(summary, common)), strict=True):
        wins, losses = _pairs(summary, method)
        found.append(Standing(method, rank, wins, losses, {task: by_task[task][method] for task in by_task}))
    return sorted(found, key=lambda standing: standing.rank)


def blocks(summary: Summary, prefix: str = "") -> tuple[Block, ...]:
    """The verdicts over all tasks, the leaderboard and the diagram; `prefix` begins the name of the figure."""
    verdicts = overall(summary)
    ordered = standings(summary)
    if not ordered:
        missing = Text("No leaderboard: fewer than two methods have a score on every task.", "missing")
        return (verdicts, missing) if summary.overall else (missing,)
    table = _table(summary, ordered)
    shown = [Section("Leaderboard over tasks", (table,)), _ranks(summary, ordered, prefix)]
    return ((verdicts,) if summary.overall else ()) + tuple(shown)


def overall(summary: Summary) -> Verdicts:
    """The verdict on each method over all tasks."""
    return Verdicts(tuple((found.verdict, found.sentence) for found in summary.overall))


def brief(summary: Summary) -> Report:
    """What a terminal shows of several comparisons: the findings, the verdicts over all tasks and the leaderboard."""
    findings = tuple(Text(finding(task), "finding") for task in summary.tasks)
    ordered = standings(summary)
    shown = (replace(_table(summary, ordered), optional=_optional(summary)),) if ordered else ()
    return Report("", "", (Section("Over all tasks", (*shown, overall(summary), *findings)),))


def report(summary: Summary) -> Report:
    """The page of several comparisons."""
    tasks = [Section(task.task, (Text(finding(task), "finding"), _verdicts(task))) for task in summary.tasks]
    methods = {method.method for task in summary.tasks for method in task.methods}
    lead = (
        f"{counted(len(methods), 'method')} on {counted(len(summary.tasks), 'task')}. Every method is compared with "
        f"{summary.baseline}, seed by seed within a task."
    )
    return Report("Methods over several tasks", lead, (Section("Over all tasks", blocks(summary)), *tasks))


def _verdicts(task: TaskSummary) -> Verdicts:
    return Verdicts(tuple((method.verdict, method.sentence) for method in task.baseline_last()))


def _labels(tasks: Sequence[tuple[str, Path]]) -> list[str]:
    """A name for each (task, folder of its comparison): the task, with the end of the folder where names coincide."""
    names = [name for name, _ in tasks]
    for parts in range(1, 9):
        if len(set(names)) == len(names):
            break
        names = [
            f"{task} ({'/'.join(folder.resolve().parts[-parts:])})" if _occurs_twice(task, tasks) else task
            for task, folder in tasks
        ]
    return names


def _occurs_twice(task: str, tasks: Sequence[tuple[str, Path]]) -> bool:
    return sum(name == task for name, _ in tasks) > 1


def _score(task: TaskSummary, method: MethodSummary | None) -> float | None:
    return None if method is None else method.estimates[task.main.key].mean


def _scores(summary: Summary, methods: Sequence[str]) -> list[list[float]]:
    """A row per task, a column per method; higher is better."""
    rows = []
    for task in summary.tasks:
        by_method = {method.method: method.estimates[task.main.key].mean or 0.0 for method in task.methods}
        sign = 1.0 if task.main.higher_is_better else -1.0
        rows.append([sign * by_method[method] for method in methods])
    return rows


def _pairs(summary: Summary, method: str) -> tuple[int, int]:
    """(trials that beat the baseline's of the same task and seed, trials that are beaten by it)."""
    wins = losses = 0
    for task in summary.tasks:
        sign = 1.0 if task.main.higher_is_better else -1.0
        for found in task.methods:
            if found.method == method and (difference := found.differences.get(task.main.key)):
                wins += sum(sign * value > 0 for value in difference.values)
                losses += sum(sign * value < 0 for value in difference.values)
    return wins, losses


def _table(summary: Summary, ordered: Sequence[Standing]) -> Table:
    rows = []
    for standing in ordered:
        rate = ranks.win_rate(standing.wins, standing.losses)
        won = Cell("–")
        if rate is not None:
            won = Cell(f"{rate[0]:.0%}", note=f"{rate[1]:.0%} to {rate[2]:.0%}")
        cells = [
            task.main.cell(standing.summaries[task.task].estimates[task.main.key].mean, None) for task in summary.tasks
        ]
        times = Cell("–" if (ratio := _time(summary, standing)) is None else f"× {ratio:.2f}")
        rows.append((Cell(standing.method), Cell(f"{standing.rank:.2f}"), won, *cells, times))
    columns = ("Method", "Average rank", "Wins", *(task.task for task in summary.tasks), "Time")
    methods = dict.fromkeys(method.method for task in summary.tasks for method in task.methods)
    without = [method for method in methods if method not in {standing.method for standing in ordered}]
    left_out = f" Left out, because they lack a score on some task: {', '.join(without)}." if without else ""
    caption = (
        f"Wins are the trials that score above {summary.baseline}'s of the same task and seed, as a fraction of those "
        "that differ, with Wilson's 95% interval, which takes seeds as independent. Time is the geometric mean over "
        f"tasks of the time of a trial in multiples of {summary.baseline}'s.{left_out}"
    )
    return Table("Leaderboard over tasks", columns, tuple(rows), caption)


def _optional(summary: Summary) -> tuple[str, ...]:
    """The columns that a narrow terminal leaves out, the first to go first."""
    return ("Time", *(task.task for task in reversed(summary.tasks)))


def _time(summary: Summary, standing: Standing) -> float | None:
    """The geometric mean over tasks of the time relative to the baseline's; None where a task has none."""
    product = 1.0
    for task in summary.tasks:
        baseline = next((method.cost.seconds for method in task.methods if method.method == task.baseline), None)
        ratio = cost.relative(standing.summaries[task.task].cost.seconds, baseline)
        if ratio is None:
            return None
        product *= ratio
    return product ** (1 / len(summary.tasks))


def _ranks(summary: Summary, ordered: Sequence[Standing], prefix: str) -> Section:
    averages = {standing.method: standing.rank for standing in ordered}
    distance = ranks.critical_difference(len(ordered), len(summary.tasks))
    p = ranks.friedman_test(_scores(summary, list(averages)))
    figure = rank_figures.critical_difference(averages, distance)
    name, description = f"{prefix}ranks", f"Average ranks over {counted(len(summary.tasks), 'task')}"
    tested = "Friedman's test needs three methods."
    if p is not None:
        differ = "differ" if p <= SIGNIFICANCE_LEVEL else "do not differ"
        tested = f"By Friedman's test over tasks the ranks {differ} significantly ({p_phrase(p)})."
    caption = (
        f"The average rank of each method over {counted(len(summary.tasks), 'task')}, 1 being the best. Bars join "
        f"methods whose ranks differ by less than Nemenyi's critical difference, {distance:.2f} (Demšar, 2006). "
        f"{tested} A task counts once here, whatever its number of seeds: with few tasks little is significant."
    )
    return Section("Ranks", (Figures((Figure(name, description, render(figure, name, description)),), caption),))
