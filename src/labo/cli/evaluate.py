"""`labo evaluate`: metrics of a finished run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labo.cli import options, scores
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.experiment.saved_run import SavedRun


def evaluate(
    run: options.Run,
    split: Annotated[str, typer.Option(help="The split to evaluate: test, validation or train.")] = "test",
    data: Annotated[
        Path | None, typer.Option(help="A file or folder of your own labelled examples, instead of a split.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="The column or array of the classes in --data; by default the name used in training."),
    ] = None,
    separator: options.Separator = None,
    decimal: options.Decimal = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also print the metrics of each class, the worst first.")
    ] = (False),
    max_bytes: options.MaxBytes = None,
    beams: options.Beams = None,
    shift: options.Shift = None,
    severity: options.Severity = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the metrics of each class.")] = False,
) -> None:
    """Evaluate a finished run.

    Classification: accuracy, top-5 accuracy with more than five classes, NLL, Brier score and expected calibration
    error, before and after temperature scaling; adaptive and class-wise calibration error; selective prediction (AURC,
    AUROC of being right, coverage at a risk) with and without normalized logits. Translation: BLEU, chrF, and NLL and
    calibration of the target tokens. Temperature and norm are fitted on the unmodified validation split.
    """
    from labo.experiment import post_hoc, saved_run
    from labo.report.measures import present

    if data is None and (separator or decimal):
        raise UserError("Options --separator and --decimal require --data.")
    options.limit_unpacked(max_bytes)
    loaded = saved_run.load(run, separator=separator, decimal=decimal)
    grid = options.shifts([loaded.description["task"]], shift, severity)
    widths = options.beams([loaded.description["task"]], beams)
    if per_class and not loaded.classes:
        raise UserError(f"Task '{loaded.description['task']}' has no classes, so --per-class does not apply.")
    examples = loaded.examples(split) if data is None else loaded.examples_in(data, target)
    metrics = loaded.scores(examples)
    classes = _class_scores(loaded, examples) if loaded.classes and (per_class or as_json) else []
    shifted = None if grid is None else _shifted(loaded, examples, grid)
    by_beam = post_hoc.beam_scores(loaded, examples, widths)
    signatures = loaded.evaluator.signatures()
    source = split if data is None else data.name
    for note in loaded.notes(examples, source):
        print(note, file=sys.stderr)
    if as_json:
        content = {"run": str(run), "data": source, "metrics": metrics, "classes": classes}
        content |= {"signatures": signatures} if signatures else {}
        content |= {} if shifted is None else {"shifted": shifted}
        content |= {"beams": by_beam} if by_beam else {}
        print(json.dumps(content, indent=1))
        return
    name = f"{loaded.description['method']}, {source}"
    rows = {name: metrics} if shifted is None else {f"{name}, clean": metrics, **_indented(shifted["means"])}
    rows |= _indented({f"beam {width}": values for width, values in by_beam.items()})
    print(scores.tables(rows))
    fitted = f"temperature {metrics['temperature']:.3f}"
    if "norm_exponent" in metrics:
        fitted += f", normalized logits: centred, divided by their {metrics['norm_exponent']:g}-norm"
    print(f"\n{fitted}, fitted on validation")
    for measure in present(set(signatures)):
        print(f"{measure.label}: {signatures[measure.key]}")
    if shifted is not None:
        severities = shifted["severities"]
        averaged = (
            f"severity {severities[0]}" if len(severities) == 1 else f"the mean over severities 1 to {len(severities)}"
        )
        print(f"shifts: {averaged}; the last row is the mean over the kinds")
    if per_class:
        print(f"\n{_class_table(classes)}")


def _class_scores(loaded: SavedRun, examples: Any) -> list[dict[str, Any]]:
    from labo.metrics.scores import class_scores

    entries = class_scores(loaded.logits(examples.features), examples.target, temperature=loaded.temperature)
    return [{"class": name, **entry} for name, entry in zip(loaded.classes, entries, strict=True)]


def _shifted(loaded: SavedRun, examples: Any, grid: Any) -> dict[str, Any]:
    """Evaluate on shifted inputs, with a progress bar: the severities, the scores and their means."""
    from labo.experiment import post_hoc
    from labo.experiment.progress import ConsoleProgress
    from labo.records.trial import Job

    job = Job(loaded.trial, loaded.folder)
    with ConsoleProgress() as progress:
        progress.begin(1, 0)
        progress.phase("measuring shifted inputs")
        by_shift = post_hoc.shift_scores(loaded, examples, grid.pairs, lambda done: progress.update(job, done))
        progress.finished(job, {})
    return {"severities": list(grid.severities), "scores": by_shift, "means": post_hoc.mean_scores(by_shift)}


def _indented(means: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {f"  {kind}": values for kind, values in means.items()}


def _class_table(classes: list[dict[str, Any]]) -> str:
    """The scores of each class, the lowest recall first; classes without examples last."""
    order = sorted(
        classes,
        key=lambda entry: (
            math.inf if entry["recall"] is None else entry["recall"],
            0.0 if entry["nll"] is None else -entry["nll"],
        ),
    )
    rows = [["class", "examples", "accuracy", "precision", "confidence", "NLL"]]
    for entry in order:
        shares = [_format(entry[key], "{:.2%}") for key in ("recall", "precision", "confidence")]
        rows.append([entry["class"], str(entry["examples"]), *shares, _format(entry["nll"], "{:.4f}")])
    note = (
        "accuracy: the share of the class's examples that are classified correctly (recall)\n"
        "precision: the share of the predictions of the class that are correct\n"
        "confidence: the mean probability of the class over its examples, after temperature scaling, like NLL"
    )
    return f"{scores.aligned(rows)}\n\n{note}"


def _format(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value + 0.0)  # -0.0 is 0
