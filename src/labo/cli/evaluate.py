"""`labo evaluate`: the scores of a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from labo.cli import options, scores


def evaluate(
    run: options.Run,
    split: Annotated[str, typer.Option(help="Which split of the task: test, validation or train.")] = "test",
    data: Annotated[Path | None, typer.Option(help="Labelled examples of your own, in place of a split.")] = None,
    target: Annotated[
        str | None, typer.Option(help="The column of their classes; by default what it was called in training.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The scores of a finished run.

    Accuracy, NLL, Brier score and expected calibration error, before and after temperature scaling. The temperature is
    fitted on the validation split.
    """
    from labo.experiment import runs

    loaded = runs.load(run)
    found = loaded.evaluate(split) if data is None else loaded.evaluate_file(data, target)
    what = split if data is None else data.name
    if as_json:
        print(json.dumps({"run": str(run), "data": what, "metrics": found}, indent=1))
        return
    print(scores.table({f"{loaded.about['method']}, {what}": found}))
    print(f"\ntemperature {found['temperature']:.3f}, fitted on validation")
