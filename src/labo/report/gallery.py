"""The figures of one task: which there are, in what order, their captions, and what is missing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from labo.records.comparison import Recorded
from labo.records.trial import CURVE, FIGURES
from labo.report import figures, runs
from labo.report.measures import number
from labo.report.model import Block, Cell, Details, Figure, Figures, Section, Table, Text
from labo.report.svg import render
from labo.report.verdict import TaskSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure as PlottedFigure

_CANDIDATES = ("mild", "strong")  # of a method that chooses its settings by itself
_FIRST = ("label_smoothing", "labo")  # the pair that the label maps are there to compare


def slug(text: str) -> str:
    """`text` as a piece of a file name or an id: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def sections(recorded: Recorded, task: TaskSummary, prefix: str) -> list[Section]:
    """A section for each kind of figure of a task; `prefix` begins the names of the figures."""
    files = runs.figure_files(recorded, task.task)
    # Labels of sentences are not figures: see token_labels.
    labels = [] if task.main.of_text else [_labels(task, files, prefix)]
    figures_of_runs = [_reliability(task, files, prefix), _curves(recorded, task, prefix)]
    return [_seeds(task, prefix), *_decisions(recorded, task, prefix), *labels, *figures_of_runs]


def _section(title: str, drawn: list[Figure], caption: str, missing: str = "", *more: Block) -> Section:
    """Figures with their caption; `missing` says what was left out and why."""
    blocks: list[Block] = [Figures(tuple(drawn), caption)] if drawn else []
    blocks += [*more, Text(missing, "missing")] if missing else more
    return Section(title, tuple(blocks))


def _order(task: TaskSummary) -> list[str]:
    return [summary.method for summary in task.methods]


def drawn_figure(figure: PlottedFigure, name: str, description: str) -> Figure:
    """The figure of a report; `name` is its file name, `description` its text."""
    return Figure(name, description, render(figure, name, description))


def _seeds(task: TaskSummary, prefix: str) -> Section:
    drawn = []
    for measure in task.measures:
        estimates = {summary.method: summary.estimates[measure.key] for summary in task.methods}
        if any(estimate.values for estimate in estimates.values()):
            figure = figures.seed_dots(measure, estimates, _order(task))
            name = f"{prefix}seeds-{slug(measure.key)}"
            drawn.append(drawn_figure(figure, name, f"{measure.label} of every seed and method, with 95% intervals"))
    caption = (
        "Each dot is one seed; the diamond beneath is the mean, the line its 95% interval. The intervals are of each "
        "method alone: the verdict pairs the seeds, so a difference can be significant where the intervals overlap."
    )
    return _section("Seed by seed", drawn, caption, "" if drawn else "No trial has a finite measure.")


def _decisions(recorded: Recorded, task: TaskSummary, prefix: str) -> list[Section]:
    """How the candidates of a method that chooses its settings by itself predict held-out labels."""
    drawn = []
    for method in _order(task):
        lines = {name: runs.mean_curve(_held_out(recorded, task, method, name), "accuracy") for name in _CANDIDATES}
        if not all(epochs for epochs, _ in lines.values()):
            continue
        figure = figures.curves(
            "Held-out labels predicted", "labels as written, some of them wrong", lines, list(lines)
        )
        name = f"{prefix}decision-{slug(method)}"
        caption = (
            "The share of held-out labels, as they are written, that networks predict which trained on the other half "
            "of the training split: with a mild memory and with a strong one, by epoch, mean over halves and seeds. "
            "The last epoch decides, with the likelihood through a noise channel."
        )
        candidates = drawn_figure(figure, name, f"Share of held-out labels predicted by the candidates of {method}")
        drawn.append(_section(f"How {method} decided", [candidates], caption))
    return drawn


def _held_out(recorded: Recorded, task: TaskSummary, method: str, candidate: str) -> list[list[dict[str, Any]]]:
    """The curve of a candidate in each record of a method, a line an epoch."""
    curves = []
    for record in recorded.records:
        decision = record.get("decision")
        if (str(record["task"]), str(record["method"])) == (task.task, method) and isinstance(decision, dict):
            curve = (decision.get("curves") or {}).get(candidate) or ()
            curves.append([{**line, "epoch": epoch} for epoch, line in enumerate(curve, 1)])
    return curves


def _labels(task: TaskSummary, files: dict[str, list[dict]], prefix: str) -> Section:
    title = "What the labels look like"
    by_method = {method: labels for method in _order(task) if (labels := runs.mean_labels(files.get(method, [])))}
    by_method = dict(sorted(by_method.items(), key=lambda item: (item[0] not in _FIRST, item[0] != _FIRST[0])))
    if not by_method:
        return _section(title, [], "", _absent("label maps", FIGURES))
    caption = (
        "The mean label q that each regularizer gives to the validation examples of a class, which the network has not "
        "trained on, averaged over seeds; a row is the class. The diagonal stands apart: it is written as a number and "
        "left out of the colours. Elsewhere colour says how the rest of the mass is shared: orange is more than an "
        "even share, blue is less. Label smoothing shares evenly; a label that follows the model shows which classes "
        "it confuses. All maps share one scale, whose ends say how far from even it is."
    )
    reach = figures.common_reach(list(by_method.values()))
    drawn, tables = [], []
    for method, labels in by_method.items():
        names = runs.classes(files[method], len(labels))
        figure = figures.label_map(method, labels, names, reach)
        name = f"{prefix}labels-{_order(task).index(method)}-{slug(method)}"
        drawn.append(drawn_figure(figure, name, f"Mean label of {method}, class by class"))
        if len(labels) <= 12:
            tables.append(Details(f"The numbers: {method}", (_numbers(method, names, labels),), html_only=True))
    if len(next(iter(by_method.values()))) > figures.MAX_CLASSES:
        caption += f" Only the first {figures.MAX_CLASSES} classes are drawn."
    without = [method for method in _order(task) if method not in by_method]
    missing = f"No label map for {', '.join(without)}: no label is recorded for them." if without else ""
    return _section(title, drawn, caption, missing, *tables)


def _numbers(method: str, names: list[str], labels: runs.Matrix) -> Table:
    rows = [
        (Cell(name), *(Cell("–" if value is None else f"{value:.4f}") for value in row))
        for name, row in zip(names, labels, strict=True)
    ]
    return Table(f"Mean label of {method}", ("True class", *names), tuple(rows))


def _reliability(task: TaskSummary, files: dict[str, list[dict]], prefix: str) -> Section:
    drawn, without = [], []
    for index, method in enumerate(_order(task)):
        raw, scaled = (runs.pooled_bins(files.get(method, []), which) for which in ("raw", "scaled"))
        if not raw and not scaled:
            without.append(method)
            continue
        values = [number(content.get("temperature")) for content in files[method]]
        known = [value for value in values if value is not None]
        subtitle = f"mean temperature {sum(known) / len(known):.2f}" if known else "accuracy against confidence"
        figure = figures.reliability(method, raw, scaled, index, subtitle)
        name = f"{prefix}reliability-{index}-{slug(method)}"
        drawn.append(drawn_figure(figure, name, f"Accuracy against confidence of {method}, before and after scaling"))
    predicted, counted = "test examples", "examples"
    if task.main.of_text:
        predicted, counted = "tokens of the test references, each predicted from those before it,", "tokens"
    caption = (
        f"Accuracy (up) against confidence (across) in 15 bins, {predicted} of all seeds together. Above the dotted "
        f"diagonal a model is less sure than it could be, below it too sure. Halos grow with the number of {counted}. "
        "One temperature per trial is fitted on the validation split; it leaves the accuracy as it is."
    )
    missing = "" if drawn else _absent("reliability diagrams", FIGURES)
    if drawn and without:
        missing = f"No reliability diagram for {', '.join(without)}: its runs left no {FIGURES}."
    return _section("Calibration", drawn, caption, missing)


def _curves(recorded: Recorded, task: TaskSummary, prefix: str) -> Section:
    files, drawn = runs.curve_files(recorded, task.task), []
    for key, title, subtitle in (
        ("loss", "Training loss", "each method's own objective: heights do not compare"),
        ("validation_nll", "Validation NLL", "lower is better; not temperature-scaled"),
        ("validation_accuracy", "Validation accuracy", "higher is better"),
        ("validation_bleu", "Validation BLEU", "higher is better"),
    ):
        curves = {method: runs.mean_curve(curve, key) for method, curve in files.items()}
        lines = {method: curves[method] for method in _order(task) if curves.get(method, ((), ()))[0]}
        if lines:
            figure = figures.curves(title, subtitle, lines, _order(task))
            drawn.append(drawn_figure(figure, f"{prefix}curve-{slug(key)}", f"{title} by epoch, mean over seeds"))
    caption = (
        "Means over the seeds of each method. The first fifth of the epochs may lie outside the axes, so that the "
        "lines after it can be distinguished."
    )
    missing = "" if drawn else _absent("training curves", CURVE)
    if drawn and not any("validation" in figure.name for figure in drawn):
        missing = "The runs were not evaluated while they trained, so there are no validation curves."
    return _section("Training", drawn, caption, missing)


def _absent(what: str, file: str) -> str:
    return f"The {what} are left out: no run folder here holds a {file} with them."
