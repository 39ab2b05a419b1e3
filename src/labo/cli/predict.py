"""`labo predict`: class probabilities of new inputs."""

from __future__ import annotations

import csv
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labo.cli import bars, options
from labo.errors import UserError
from labo.wording import counted

if TYPE_CHECKING:
    from labo.experiment.saved_run import SavedRun

SHOWN_CLASSES = 3
SHOWN_ROWS = 40
# Up to this many inputs are drawn as bars, with this many classes each.
DRAWN_INPUTS, DRAWN_CLASSES = 8, 5
MAX_WIDTH = 100


@dataclass(frozen=True)
class Predictions:
    """The file and row of each of N inputs, probabilities (N, C), and labels q* (N, C) or None.

    `note` says what q* is, or why there is none; it is empty if no labels were requested.
    """

    classes: tuple[str, ...]
    files: list[str]
    rows: list[int]
    probabilities: list[list[float]]
    labels: list[list[float]] | None
    note: str


def predict(
    run: options.Run,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            help="Tables (.csv, .parquet, .npz) with the columns of the training data; or images, folders of "
            "images, or .npz files with an array `images`.",
            show_default=False,
        ),
    ],
    separator: options.Separator = None,
    decimal: options.Decimal = None,
    output: Annotated[Path | None, typer.Option(help="Write all probabilities to this .csv file.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Probabilities without temperature scaling.")] = False,
    label: Annotated[
        bool, typer.Option("--label", help="Also write the soft label q* that the method would use as its target.")
    ] = False,
    skip_unreadable: options.SkipUnreadable = None,
    max_bytes: options.MaxBytes = None,
) -> None:
    """Predict the classes of new inputs, with probabilities.

    Probabilities use the temperature fitted on validation. A terminal shows the most likely classes; for a few inputs,
    as bars beside the soft label q*. A pipe or --output gets all probabilities as CSV.
    """
    from labo.experiment import saved_run
    from labo.records.storage import replacing
    from labo.tasks.file_limits import absolute

    options.limit_unpacked(max_bytes)
    if output is not None and (output.suffix.lower() != ".csv" or absolute(output) in map(absolute, inputs)):
        raise UserError(f"Expected --output to be a .csv file other than the input, but got '{output}'.")
    loaded = saved_run.load(run, separator=separator, decimal=decimal)
    loaded.require_kind("classification", "predict")
    interactive = output is None and sys.stdout.isatty()
    predictions, named = _predict(
        loaded, inputs, raw=raw, label=label, interactive=interactive, skip_unreadable=bool(skip_unreadable)
    )
    if output is not None:
        try:
            with replacing(output, newline="") as file:
                _write(file, predictions, named)
        except OSError as error:
            raise UserError(f"Cannot write '{output}': {error.strerror or error}.") from error
        count = len(predictions.rows)
        print(f"{count} prediction{'s' * (count != 1)}: {output}")
    elif not interactive:
        _write(sys.stdout, predictions, named)
    elif len(predictions.rows) <= DRAWN_INPUTS:
        temperature = "without temperature" if raw else f"at temperature {loaded.temperature:.3f}"
        _draw(predictions, named, temperature)
    else:
        _list(predictions, named)


def _predict(
    loaded: SavedRun, inputs: Sequence[Path], *, raw: bool, label: bool, interactive: bool, skip_unreadable: bool
) -> tuple[Predictions, bool]:
    """The predictions of all inputs, and whether file names are needed to tell the inputs apart."""
    import torch

    parts, files, rows = [], [], []
    named = len(inputs) > 1
    for path in inputs:
        features, unreadable = loaded.readable_inputs_in(path) if skip_unreadable else (loaded.inputs_in(path), [])
        if unreadable:
            many = counted(len(unreadable), "unreadable image is", "unreadable images are")
            print(f"{many} left out of '{path}', '{unreadable[0]}' the first.", file=sys.stderr)
        parts.append(loaded.logits(features))
        for note in loaded.input_notes(path):
            print(note, file=sys.stderr)
        count, input_files = len(parts[-1]), loaded.task.input_files(path)
        if unreadable and input_files is not None:
            input_files = [file for file in input_files if file not in set(unreadable)]
        named = named or input_files is not None
        files += [str(path)] * count if input_files is None else input_files
        rows += range(1, count + 1)
    logits = torch.cat(parts)
    probabilities = (logits.double() / (1.0 if raw else loaded.temperature)).softmax(-1).tolist()
    labels, note = None, ""
    if label or (interactive and len(rows) <= DRAWN_INPUTS):
        from labo.experiment.saved_run import soft_labels

        label_tensor, note = soft_labels(loaded, logits)
        if label_tensor is None and label:
            raise UserError(note)
        labels = None if label_tensor is None else label_tensor.tolist()
    return Predictions(loaded.classes, files, rows, probabilities, labels, note), named


def _write(file: Any, predictions: Predictions, named: bool) -> None:
    writer = csv.writer(file, lineterminator="\n")
    header = ["row", "prediction", "confidence", *(f"p_{name}" for name in predictions.classes)]
    header += [f"q_{name}" for name in predictions.classes] if predictions.labels is not None else []
    writer.writerow(["file", *header] if named else header)
    for index, shares in enumerate(predictions.probabilities):
        best = max(range(len(shares)), key=shares.__getitem__)
        values = [*shares, *(predictions.labels[index] if predictions.labels is not None else ())]
        line = [
            predictions.rows[index],
            predictions.classes[best],
            f"{shares[best]:.6f}",
            *(f"{value:.6f}" for value in values),
        ]
        writer.writerow([predictions.files[index], *line] if named else line)


def _draw(predictions: Predictions, named: bool, temperature: str) -> None:
    """Print the most likely classes of each input as bars, beside q*."""
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    blocks = _can_print(sys.stdout, "█▏")
    for number, name in enumerate(_names(predictions, named)):
        shares = predictions.probabilities[number]
        labels = None if predictions.labels is None else predictions.labels[number]
        shown = bars.top_indices(shares, labels, DRAWN_CLASSES)
        names = [_printable(predictions.classes[index]) for index in shown]
        hidden = len(shares) - len(shown)
        names += [f"{hidden} other{'s' * (hidden > 1)}"] if hidden else []
        columns = [
            (title, [*(values[index] for index in shown), bars.remainder(values, shown)][: len(names)])
            for title, values in (("p", shares), ("q*", labels))
            if values is not None
        ]
        print(f"{name}: {names[0]}")
        print("\n".join(bars.chart(names, columns, width, blocks=blocks)))
        print()
    print(f"p is the probability, {temperature}.\n{predictions.note}")


def _list(predictions: Predictions, named: bool) -> None:
    names = [*_names(predictions, named)][:SHOWN_ROWS]
    for name, shares in zip(names, predictions.probabilities, strict=False):
        order = bars.top_indices(shares, None, SHOWN_CLASSES)
        top = "   ".join(f"{_printable(predictions.classes[index])} {shares[index]:.1%}" for index in order)
        print(f"{name.rjust(max(6, *map(len, names)))}  {top}")
    if len(predictions.rows) > SHOWN_ROWS:
        print(f"… and {len(predictions.rows) - SHOWN_ROWS} more; write them all with --output FILE.csv")


def _names(predictions: Predictions, named: bool) -> Iterator[str]:
    """The name of each input: its file, its row in the file, or both if one of several files has many rows."""
    counts = Counter(predictions.files)
    for file, row in zip(predictions.files, predictions.rows, strict=True):
        if not named:
            yield str(row)
        else:
            yield _printable(file) + (f", row {row}" if counts[file] > 1 else "")


def _printable(text: str) -> str:
    """Replace control characters, which could move the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _can_print(file: Any, text: str) -> bool:
    try:
        text.encode(getattr(file, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
