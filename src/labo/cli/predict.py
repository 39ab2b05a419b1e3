"""`labo predict`: what a trained network says of new inputs."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from labo.cli import options
from labo.errors import UserError

SHOWN_CLASSES = 3
SHOWN_ROWS = 40


def predict(
    run: options.Run,
    input: Annotated[
        Path, typer.Argument(help="A .csv, .parquet or .npz with the columns trained on.", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option(help="Write all probabilities to this .csv file.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The network's own probabilities, without temperature.")] = False,
) -> None:
    """The classes of new inputs, with probabilities.

    Probabilities are at the temperature fitted on validation. A terminal shows the likeliest classes; a pipe or
    --output gets every probability as CSV.
    """
    from labo.experiment import runs

    if output is not None and (output.suffix.lower() != ".csv" or output.resolve() == input.resolve()):
        raise UserError(f"Expected --output to be a .csv file other than the input, but got '{output}'.")
    loaded = runs.load(run)
    probabilities = loaded.predict(input, scaled=not raw).tolist()
    if output is not None:
        try:
            with open(output, "w", encoding="utf-8", newline="") as file:
                _write(file, loaded.classes, probabilities)
        except OSError as error:
            raise UserError(f"Cannot write '{output}': {error.strerror or error}.") from error
        print(f"{len(probabilities)} predictions: {output}")
    elif sys.stdout.isatty():
        _show(loaded.classes, probabilities)
    else:
        _write(sys.stdout, loaded.classes, probabilities)


def _write(file: Any, classes: tuple[str, ...], probabilities: list[list[float]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "prediction", "confidence", *(f"p_{name}" for name in classes)])
    for row, found in enumerate(probabilities, 1):
        best = max(range(len(found)), key=found.__getitem__)
        writer.writerow([row, classes[best], f"{found[best]:.6f}", *(f"{value:.6f}" for value in found)])


def _show(classes: tuple[str, ...], probabilities: list[list[float]]) -> None:
    for row, found in enumerate(probabilities[:SHOWN_ROWS], 1):
        order = sorted(range(len(found)), key=lambda index: -found[index])[:SHOWN_CLASSES]
        print(f"{row:>6}  " + "   ".join(f"{classes[index]} {found[index]:.1%}" for index in order))
    if len(probabilities) > SHOWN_ROWS:
        print(f"… and {len(probabilities) - SHOWN_ROWS} more; --output FILE.csv has them all")
