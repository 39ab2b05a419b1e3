"""`labo bench`: speed and memory of the losses on this machine."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from labo.errors import UserError, unknown

ALLOCATORS = ("stock", "steady")
DEVICES = ("cpu", "cuda")


def bench(
    output: Annotated[Path | None, typer.Option(help="Append one line a measurement to this .csv file.")] = None,
    classes: Annotated[
        str, typer.Option(help="Numbers of classes, separated by commas.")
    ] = "100,1000,10000,32768,131072,262144",
    elements: Annotated[int, typer.Option(help="Logits a batch holds, rows times classes.")] = 2**25,
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16, float16, float64.")] = "float32,bfloat16",
    rounds: Annotated[int, typer.Option(help="Alternations with the yardstick.")] = 9,
    compiled: Annotated[bool, typer.Option("--compiled", help="Time torch.compile of the naive loss too.")] = False,
    allocator: Annotated[
        str | None, typer.Option(help="stock, or steady: freed memory is kept. Both by default.", show_default="both")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda, where there is but one allocator.")] = "cpu",
) -> None:
    """Speed and memory of the losses on this machine.

    Forward and backward (on one thread of a processor), as the median of ratios to PyTorch's smoothed cross-entropy, in
    alternation.
    """
    numbers = _whole(classes)
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "cuda":
        _check_cuda(allocator)
    elif allocator is None:
        for name in ALLOCATORS:
            _again(name)
        return
    elif allocator not in ALLOCATORS:
        raise unknown("allocator", allocator, ALLOCATORS)
    _run(output, numbers, elements, dtypes.split(","), rounds, compiled, allocator, device)


def _check_cuda(allocator: str | None) -> None:
    import torch

    if allocator is not None:
        raise UserError("Expected no --allocator with --device cuda, which has its own.")
    if not torch.cuda.is_available():
        raise UserError("--device cuda needs a CUDA device, and PyTorch sees none here.")


def _again(allocator: str) -> None:
    """The same command in a process of its own: an allocator is set before a program starts."""
    from labo.bench.measure import STEADY

    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(STEADY if allocator == "steady" else {})}
    command = [sys.executable, "-m", "labo", *sys.argv[1:], "--allocator", allocator]
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise UserError(f"The measurement with the {allocator} allocator ended with status {status}.")


def _whole(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 2:
        raise UserError(f"Expected --classes as whole numbers of at least 2, separated by commas, but got '{text}'.")
    return found


def _run(
    output: Path | None,
    classes: list[int],
    elements: int,
    dtypes: list[str],
    rounds: int,
    compiled: bool,
    allocator: str | None,
    device: str,
) -> None:
    import torch

    from labo import machine
    from labo.bench import measure

    torch.set_num_threads(1)
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    for name in dtypes:
        if name not in kinds:
            raise unknown("dtype", name, kinds)
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    about = {"device": name, "allocator": allocator or "torch", **machine.versions()}
    for shape in _shapes(classes, elements, [kinds[name] for name in dtypes], device):
        size = " x ".join(str(number) for number in (shape.rows, shape.classes, shape.width) if number)
        print(f"\n{size}, {shape.dtype}, {about['allocator']} allocator")
        for row in measure.rows(shape, rounds=rounds, device=device, compiled=compiled):
            print(f"  {_line(row)}", flush=True)
            if output is not None:
                _append(output, {**row, **about})


def _shapes(classes: list[int], elements: int, kinds: list[Any], device: str) -> list[Any]:
    """Batches of so many logits, some small ones where overhead is all, and a last layer."""
    from labo.bench.implementations import Shape

    batches = [Shape(max(1, elements // number), number, 0, kind) for kind in kinds for number in classes]
    small = [Shape(rows, number) for rows, number in ((64, 10), (128, 100), (4096, 100))]
    layer = (2048, 32_768, 512) if device == "cpu" else (8192, 131_072, 4096)
    return [*batches, *small, *(Shape(*layer, kind) for kind in (kinds if device != "cpu" else kinds[:1]))]


def _line(row: dict[str, Any]) -> str:
    memory = "" if row["memory"] is None else f"   memory {row['memory']:.2f}"
    copy = "" if row["copy_share"] is None else f"   copy {row['copy_share']:.2f}"
    return f"{row['contender']:28} {row['milliseconds']:10.3f} ms   ratio {row['ratio']:.2f}{memory}{copy}"


def _append(path: Path, row: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
    except OSError as error:
        raise UserError(f"Cannot write '{path}': {error.strerror or error}.") from error
