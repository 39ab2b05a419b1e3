"""The pictures of one task: which there are, in what order, what is said under them, and what is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from labo.records.comparison import Recorded
from labo.records.trial import CURVE, FIGURES
from labo.report import figures, heatmap, runs
from labo.report.measures import number
from labo.report.svg import render
from labo.report.verdict import TaskSummary

_CANDIDATES = ("mild", "strong")  # of a method that decides by itself
_FIRST = ("label_smoothing", "labo")  # the pair that the label maps are there to compare


@dataclass(frozen=True)
class Picture:
    """One figure: `name` is its file name without ending, `svg` stands in a page, `description` is told in words."""

    name: str
    svg: str
    description: str


@dataclass(frozen=True)
class Group:
    """Pictures that belong side by side, with a heading and a caption; `missing` says what was left out and why."""

    title: str
    caption: str
    pictures: tuple[Picture, ...] = ()
    missing: str = ""
    tables: dict[str, tuple[list[str], runs.Matrix]] = field(default_factory=dict)


def slug(text: str) -> str:
    """`text` as a piece of a file name or an id: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def groups(recorded: Recorded, task: TaskSummary, prefix: str) -> list[Group]:
    """All groups of one task; `prefix` begins the names of its pictures."""
    files = runs.figure_files(recorded, task.task)
    labels = [] if task.main.of_text else [_labels(task, files, prefix)]  # those of sentences are no pictures
    figures_of_runs = [_reliability(task, files, prefix), _curves(recorded, task, prefix)]
    return [_seeds(task, prefix), *_decisions(recorded, task, prefix), *labels, *figures_of_runs]


def _order(task: TaskSummary) -> list[str]:
    return [summary.method for summary in task.methods]


def _picture(figure: object, name: str, description: str) -> Picture:
    return Picture(name, render(figure, name, description), description)  # type: ignore[arg-type] (matplotlib's figure, not imported for its type)


def _seeds(task: TaskSummary, prefix: str) -> Group:
    pictures = []
    for measure in task.measures:
        estimates = {summary.method: summary.estimates[measure.key] for summary in task.methods}
        if any(found.values for found in estimates.values()):
            figure = figures.seed_dots(measure, estimates, _order(task))
            name = f"{prefix}seeds-{slug(measure.key)}"
            pictures.append(_picture(figure, name, f"{measure.label} of every seed and method, with 95% intervals"))
    caption = (
        "Each dot is one seed; the diamond beneath is the mean, the line its 95% interval. The intervals are of each "
        "method alone: the verdict pairs the seeds, so it can tell methods apart whose intervals overlap."
    )
    return Group("Seed by seed", caption, tuple(pictures), "" if pictures else "No trial has a finite measure.")


def _decisions(recorded: Recorded, task: TaskSummary, prefix: str) -> list[Group]:
    """What a method that decides by itself saw of held-out labels; nothing where there is none."""
    found = []
    for method in _order(task):
        lines = {name: runs.mean_curve(_decided(recorded, task, method, name), "accuracy") for name in _CANDIDATES}
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
        figure = _picture(figure, name, f"Share of held-out labels predicted by the candidates of {method}")
        found.append(Group(f"What {method} decided by", caption, (figure,)))
    return found


def _decided(recorded: Recorded, task: TaskSummary, method: str, candidate: str) -> list[list[dict[str, Any]]]:
    """The curve of a candidate in each record of a method, a line an epoch."""
    found = []
    for record in recorded.records:
        decision = record.get("decision")
        if (str(record["task"]), str(record["method"])) == (task.task, method) and isinstance(decision, dict):
            curve = (decision.get("curves") or {}).get(candidate) or ()
            found.append([{**line, "epoch": epoch} for epoch, line in enumerate(curve, 1)])
    return found


def _labels(task: TaskSummary, files: dict[str, list[dict]], prefix: str) -> Group:
    found = {method: labels for method in _order(task) if (labels := runs.mean_labels(files.get(method, [])))}
    found = dict(sorted(found.items(), key=lambda item: (item[0] not in _FIRST, item[0] != _FIRST[0])))
    caption = (
        "The mean label q that each regularizer gives to the validation examples of a class, which the network has not "
        "trained on, averaged over seeds; a row is the class. The diagonal stands apart: it is written as a number and "
        "left out of the colours. Elsewhere colour says how the rest of the mass is shared: orange is more than an "
        "even share, blue is less. Label smoothing shares evenly; a label that follows the model shows which classes "
        "it confuses. All maps share one scale, whose ends say how far from even it is."
    )
    if not found:
        return Group("What the labels look like", caption, missing=_absent("label maps", FIGURES))
    reach = heatmap.common_reach(list(found.values()))
    pictures, tables = [], {}
    for method, labels in found.items():
        names = runs.classes(files[method], len(labels))
        figure = heatmap.label_map(method, labels, names, reach)
        name = f"{prefix}labels-{_order(task).index(method)}-{slug(method)}"
        pictures.append(_picture(figure, name, f"Mean label of {method}, class by class"))
        if len(labels) <= 12:
            tables[method] = (names, labels)
    if len(next(iter(found.values()))) > heatmap.MOST_CLASSES:
        caption += f" Only the first {heatmap.MOST_CLASSES} classes are drawn."
    without = [method for method in _order(task) if method not in found]
    missing = f"No label map for {', '.join(without)}: no label is recorded for them." if without else ""
    return Group("What the labels look like", caption, tuple(pictures), missing, tables)


def _reliability(task: TaskSummary, files: dict[str, list[dict]], prefix: str) -> Group:
    pictures, without = [], []
    for index, method in enumerate(_order(task)):
        raw, scaled = (runs.pooled_bins(files.get(method, []), which) for which in ("raw", "scaled"))
        if not raw and not scaled:
            without.append(method)
            continue
        found = [number(content.get("temperature")) for content in files[method]]
        known = [value for value in found if value is not None]
        temperature = f"mean temperature {sum(known) / len(known):.2f}" if known else "accuracy against confidence"
        figure = figures.reliability(method, raw, scaled, index, temperature)
        name = f"{prefix}reliability-{index}-{slug(method)}"
        pictures.append(_picture(figure, name, f"Accuracy against confidence of {method}, before and after scaling"))
    what, counted = ("test examples", "examples")
    if task.main.of_text:
        what, counted = "tokens of the test references, each predicted from those before it,", "tokens"
    caption = (
        f"Accuracy (up) against confidence (across) in 15 bins, {what} of all seeds together. Above the dotted "
        f"diagonal a model is less sure than it could be, below it too sure. Halos grow with the number of {counted}. "
        "One temperature per trial is fitted on the validation split; it leaves the accuracy as it is."
    )
    missing = _absent("reliability diagrams", FIGURES) if not pictures else ""
    if pictures and without:
        missing = f"No reliability diagram for {', '.join(without)}: its runs left no {FIGURES}."
    return Group("Calibration", caption, tuple(pictures), missing)


def _curves(recorded: Recorded, task: TaskSummary, prefix: str) -> Group:
    files, pictures = runs.curve_files(recorded, task.task), []
    for key, title, subtitle in (
        ("loss", "Training loss", "each method's own objective: heights do not compare"),
        ("validation_nll", "Validation NLL", "lower is better; not temperature-scaled"),
        ("validation_accuracy", "Validation accuracy", "higher is better"),
        ("validation_bleu", "Validation BLEU", "higher is better"),
    ):
        lines = {method: runs.mean_curve(found, key) for method, found in files.items()}
        lines = {method: lines[method] for method in _order(task) if lines.get(method, ((), ()))[0]}
        if lines:
            figure = figures.curves(title, subtitle, lines, _order(task))
            pictures.append(_picture(figure, f"{prefix}curve-{slug(key)}", f"{title} by epoch, mean over seeds"))
    caption = (
        "Means over the seeds of each method. The first fifth of the epochs may leave the picture at its edge, so that "
        "the rest can be told apart."
    )
    missing = _absent("training curves", CURVE) if not pictures else ""
    if pictures and not any("validation" in picture.name for picture in pictures):
        missing = "The runs were not evaluated while they trained, so there are no validation curves."
    return Group("Training", caption, tuple(pictures), missing)


def _absent(what: str, file: str) -> str:
    return f"The {what} are left out: no run folder here holds a {file} with them."
