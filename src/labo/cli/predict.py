"""`labo predict`: what a trained network says of new inputs."""

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

if TYPE_CHECKING:
    from labo.experiment.saved_run import SavedRun

SHOWN_CLASSES = 3
SHOWN_ROWS = 40
# Up to so many inputs are drawn as bars, with so many classes each.
DRAWN_INPUTS, DRAWN_CLASSES = 8, 5
WIDEST = 100


@dataclass(frozen=True)
class Predictions:
    """Of N inputs: the file and the place in what was named, probabilities (N, C), labels q* (N, C) or None.

    `told` says what q* is, or why there is none; "" where nobody asked.
    """

    classes: tuple[str, ...]
    files: list[str]
    rows: list[int]
    probabilities: list[list[float]]
    labels: list[list[float]] | None
    told: str


def predict(
    run: options.Run,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            help="Tables (.csv, .parquet, .npz) with the columns trained on; or pictures, folders of them, or .npz "
            "files with an array images.",
            show_default=False,
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="Write all probabilities to this .csv file.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The network's own probabilities, without temperature.")] = False,
    label: Annotated[
        bool, typer.Option("--label", help="Also write the soft label q* that the method would train towards.")
    ] = False,
) -> None:
    """The classes of new inputs, with probabilities.

    Probabilities are at the temperature fitted on validation. A terminal shows the likeliest classes, of a few inputs
    as bars, beside them the soft label q*. A pipe or --output gets every probability as CSV.
    """
    from labo.experiment import saved_run

    if output is not None and (output.suffix.lower() != ".csv" or output.resolve() in [p.resolve() for p in inputs]):
        raise UserError(f"Expected --output to be a .csv file other than the input, but got '{output}'.")
    loaded = saved_run.load(run)
    loaded.require_kind("classification", "predict")
    shown = output is None and sys.stdout.isatty()
    found, named = _predictions(loaded, inputs, raw=raw, label=label, shown=shown)
    if output is not None:
        try:
            with open(output, "w", encoding="utf-8", newline="") as file:
                _write(file, found, named)
        except OSError as error:
            raise UserError(f"Cannot write '{output}': {error.strerror or error}.") from error
        print(f"{len(found.rows)} predictions: {output}")
    elif not shown:
        _write(sys.stdout, found, named)
    elif len(found.rows) <= DRAWN_INPUTS:
        temperature = "without temperature" if raw else f"at temperature {loaded.temperature:.3f}"
        _draw(found, named, temperature)
    else:
        _list(found, named)


def _predictions(
    loaded: SavedRun, inputs: Sequence[Path], *, raw: bool, label: bool, shown: bool
) -> tuple[Predictions, bool]:
    """(what the network says of all inputs, whether it takes their files' names to tell them apart)."""
    import torch

    parts, files, rows = [], [], []
    named = len(inputs) > 1
    for path in inputs:
        parts.append(loaded.logits(loaded.inputs_in(path)))
        count, of_inputs = len(parts[-1]), loaded.task.input_files(path)
        named = named or of_inputs is not None
        files += [str(path)] * count if of_inputs is None else of_inputs
        rows += range(1, count + 1)
    logits = torch.cat(parts)
    probabilities = (logits.double() / (1.0 if raw else loaded.temperature)).softmax(-1).tolist()
    labels, told = None, ""
    if label or (shown and len(rows) <= DRAWN_INPUTS):
        from labo.experiment.saved_run import soft_labels

        found, told = soft_labels(loaded, logits)
        if found is None and label:
            raise UserError(told)
        labels = None if found is None else found.tolist()
    return Predictions(loaded.classes, files, rows, probabilities, labels, told), named


def _write(file: Any, found: Predictions, named: bool) -> None:
    writer = csv.writer(file, lineterminator="\n")
    header = ["row", "prediction", "confidence", *(f"p_{name}" for name in found.classes)]
    header += [f"q_{name}" for name in found.classes] if found.labels is not None else []
    writer.writerow(["file", *header] if named else header)
    for place, shares in enumerate(found.probabilities):
        best = max(range(len(shares)), key=shares.__getitem__)
        values = [*shares, *(found.labels[place] if found.labels is not None else ())]
        line = [found.rows[place], found.classes[best], f"{shares[best]:.6f}", *(f"{value:.6f}" for value in values)]
        writer.writerow([found.files[place], *line] if named else line)


def _draw(found: Predictions, named: bool, temperature: str) -> None:
    """Each input's likeliest classes as bars, q* beside them."""
    width = min(WIDEST, shutil.get_terminal_size().columns)
    blocks = _shows(sys.stdout, "█▏")
    for place, name in enumerate(_names(found, named)):
        shares = found.probabilities[place]
        labels = None if found.labels is None else found.labels[place]
        shown = bars.likeliest(shares, labels, DRAWN_CLASSES)
        names = [_printable(found.classes[index]) for index in shown]
        left = len(shares) - len(shown)
        names += [f"{left} other{'s' * (left > 1)}"] if left else []
        columns = [
            (title, [*(values[index] for index in shown), bars.rest(values, shown)][: len(names)])
            for title, values in (("p", shares), ("q*", labels))
            if values is not None
        ]
        print(f"{name}: {names[0]}")
        print("\n".join(bars.chart(names, columns, width, blocks=blocks)))
        print()
    print(f"p is the probability, {temperature}.\n{found.told}")


def _list(found: Predictions, named: bool) -> None:
    names = [*_names(found, named)][:SHOWN_ROWS]
    for name, shares in zip(names, found.probabilities, strict=False):
        order = bars.likeliest(shares, None, SHOWN_CLASSES)
        told = "   ".join(f"{_printable(found.classes[index])} {shares[index]:.1%}" for index in order)
        print(f"{name.rjust(max(6, *map(len, names)))}  {told}")
    if len(found.rows) > SHOWN_ROWS:
        print(f"… and {len(found.rows) - SHOWN_ROWS} more; --output FILE.csv has them all")


def _names(found: Predictions, named: bool) -> Iterator[str]:
    """What each input is called: its file, its row in the file, or both where one file of several holds many."""
    counts = Counter(found.files)
    for file, row in zip(found.files, found.rows, strict=True):
        if not named:
            yield str(row)
        else:
            yield _printable(file) + (f", row {row}" if counts[file] > 1 else "")


def _printable(text: str) -> str:
    """A name without what would move the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _shows(file: Any, text: str) -> bool:
    try:
        text.encode(getattr(file, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
