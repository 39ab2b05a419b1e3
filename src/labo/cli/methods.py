"""`labo methods`: the regularizers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from labo.wording import byte_size


def methods(
    name: Annotated[str | None, typer.Argument(help="Print the full documentation of this method.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the cost of every method on this machine.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="With --measure: write one line per measurement to this .csv file.")
    ] = None,
) -> None:
    """List the regularizers: source, options, needs and cost.

    The cost of a method with its defaults is the time of a training step, relative to `none` (plain cross-entropy),
    and the size of its state, for the network of digits and for 10,000 classes and 1,000 examples.
    """
    from labo import regularizers
    from labo.errors import UserError

    if measure:
        _measure(output)
        return
    if output is not None:
        raise UserError("Option --output requires --measure.")
    if name is not None:
        print(regularizers.document(name))
        return
    costs = regularizers.costs()
    for each in regularizers.available():
        _print_method(regularizers.describe(each), costs.get(each, {}))
    print("\nYour own method, from a module that Python can import: --methods my_module:MyRegularizer")


def _print_method(method: Any, costs: Mapping[str, Mapping[str, str]]) -> None:
    print(f"{method.name:24} {method.summary}" + (f" ({method.paper})" if method.paper else ""))
    if method.defaults:
        defaults = ", ".join(f"{key}={'none' if value is None else value}" for key, value in method.defaults.items())
        print(f"{'':24} options: {defaults}")
    if method.needs:
        print(f"{'':24} needs: {', '.join(method.needs)}")
    if costs:
        entries = [
            f"{cost['compute']}x, {byte_size(int(cost['state_bytes']))} ({setting})" for setting, cost in costs.items()
        ]
        print(f"{'':24} cost: {'; '.join(entries)}")


def _measure(output: Path | None) -> None:
    import csv

    import torch

    from labo import machine
    from labo.bench import methods as bench
    from labo.records.storage import replacing

    torch.set_num_threads(1)
    lines = []
    for setting in bench.SETTINGS:
        for line in bench.costs(setting):
            state_size = byte_size(line["state_bytes"])
            print(f"{line['method']:24} {line['compute']:6.2f} x   {state_size:>10}   {setting.name}", flush=True)
            lines.append({**line, **machine.versions()})
    if output is not None:
        with replacing(output, newline="") as file:
            writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
        print(f"Written: {output}", file=sys.stderr)
