"""`labo methods`: the regularizers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def methods(
    name: Annotated[str | None, typer.Argument(help="One of them, with all that it says of itself.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure what they cost on this machine.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="With --measure: write a line a method to this .csv file.")
    ] = None,
) -> None:
    """The regularizers: source, options, needs, cost.

    The cost is the time of a training step as a ratio to that of `none`, this package's own plain cross-entropy, and
    what is kept between steps, with the defaults: on digits' network, and with 10,000 classes and 1,000 examples.
    """
    from labo import regularizers
    from labo.errors import UserError

    if measure:
        _measure(output)
        return
    if output is not None:
        raise UserError("--output goes with --measure.")
    if name is not None:
        print(regularizers.document(name))
        return
    costs = regularizers.costs()
    for each in regularizers.available():
        _tell(regularizers.describe(each), costs.get(each, {}))
    print("\nOne of your own, in a module that Python can import: --methods my_module:MyRegularizer")


def _tell(found: Any, costs: Mapping[str, Mapping[str, str]]) -> None:
    print(f"{found.name:24} {found.summary}" + (f" ({found.paper})" if found.paper else ""))
    if found.defaults:
        defaults = ", ".join(f"{key}={'none' if value is None else value}" for key, value in found.defaults.items())
        print(f"{'':24} options: {defaults}")
    if found.needs:
        print(f"{'':24} needs: {', '.join(found.needs)}")
    if costs:
        told = [f"{cost['compute']}x, {size(int(cost['state_bytes']))} ({setting})" for setting, cost in costs.items()]
        print(f"{'':24} cost: {'; '.join(told)}")


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _measure(output: Path | None) -> None:
    import csv
    import os

    import torch

    from labo import machine
    from labo.bench import methods as bench

    torch.set_num_threads(1)
    lines = []
    for setting in bench.SETTINGS:
        for line in bench.costs(setting):
            kept = size(line["state_bytes"])
            print(f"{line['method']:24} {line['compute']:6.2f} x   {kept:>10}   {setting.name}", flush=True)
            lines.append({**line, **machine.versions()})
    if output is not None:
        beside = output.with_name(f".{output.name}")
        with open(beside, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
        os.replace(beside, output)
        print(f"Written: {output}", file=sys.stderr)
