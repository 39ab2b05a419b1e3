"""`labo evaluate`: the scores of a finished run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from labo.cli import options, scores


def evaluate(
    run: options.Run,
    split: Annotated[str, typer.Option(help="Which split: test, validation or train.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The scores of a finished run.

    Accuracy, NLL, Brier score and expected calibration error, before and after temperature scaling. The temperature is
    fitted on the validation split.
    """
    from labo.experiment import runs

    loaded = runs.load(run)
    found = loaded.evaluate(split)
    if as_json:
        print(json.dumps({"run": str(run), "split": split, "metrics": found}, indent=1))
        return
    print(scores.table({f"{loaded.about['method']}, {split}": found}))
    print(f"\ntemperature {found['temperature']:.3f}, fitted on validation")
