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
# Rows, classes and width of the last layer.
LAYERS = {"cpu": (2048, 32_768, 512), "cuda": (8192, 131_072, 4096)}
QUICK_CLASSES, QUICK_ELEMENTS, QUICK_LAYER = "1000,32768", 2**22, (256, 32_768, 256)


def bench(
    output: Annotated[Path | None, typer.Option(help="Append one line per measurement to this .csv file.")] = None,
    classes: Annotated[
        str, typer.Option(help="Numbers of classes, comma-separated.")
    ] = "100,1000,10000,32768,131072,262144",
    elements: Annotated[int, typer.Option(help="Logits per batch, rows times classes.")] = 2**25,
    dtypes: Annotated[
        str, typer.Option(help="Data types, comma-separated: float32, bfloat16, float16 or float64.")
    ] = "float32,bfloat16",
    rounds: Annotated[int, typer.Option(help="Rounds per measurement, each alternating with the baseline.")] = 9,
    compiled: Annotated[bool, typer.Option("--compiled", help="Also time the naive loss under torch.compile.")] = False,
    allocator: Annotated[
        str | None, typer.Option(help="stock, or steady (freed memory is kept).", show_default="both")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="A few small batches with the stock allocator, in about a minute.")
    ] = False,
) -> None:
    """Measure speed and memory of the losses on this machine.

    Times forward and backward (on one thread on a CPU), in alternation with PyTorch's label-smoothing cross-entropy,
    and reports the median ratio to it; for "statistics / labo", the ratio to the same loss without statistics.
    """
    if quick:
        classes, elements = QUICK_CLASSES, QUICK_ELEMENTS
        allocator = allocator or ("stock" if device == "cpu" else None)
    class_counts = _parse_classes(classes)
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "cuda":
        _check_cuda(allocator)
    elif allocator is None:
        for name in ALLOCATORS:
            _run_in_subprocess(name)
        return
    elif allocator not in ALLOCATORS:
        raise unknown("allocator", allocator, ALLOCATORS)
    layer = QUICK_LAYER if quick else LAYERS[device]
    _run(output, class_counts, elements, dtypes.split(","), rounds, compiled, allocator, device, layer)


def _check_cuda(allocator: str | None) -> None:
    import torch

    if allocator is not None:
        raise UserError("Option --allocator does not apply to --device cuda, which has its own allocator.")
    if not torch.cuda.is_available():
        raise UserError("--device cuda needs a CUDA device, but PyTorch finds none.")


def _run_in_subprocess(allocator: str) -> None:
    """Run the same command in a subprocess, because an allocator is set before a program starts."""
    from labo.bench.measure import STEADY

    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(STEADY if allocator == "steady" else {})}
    command = [sys.executable, "-m", "labo", *sys.argv[1:], "--allocator", allocator]
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise UserError(f"The measurement with the {allocator} allocator failed with exit status {status}.")


def _parse_classes(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 2:
        raise UserError(f"Expected --classes to be comma-separated whole numbers of at least 2, but got '{text}'.")
    return counts


def _run(
    output: Path | None,
    classes: list[int],
    elements: int,
    dtypes: list[str],
    rounds: int,
    compiled: bool,
    allocator: str | None,
    device: str,
    layer: tuple[int, int, int],
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
    context = {"device": name, "allocator": allocator or "torch", **machine.versions()}
    for shape in _shapes(classes, elements, [kinds[name] for name in dtypes], device, layer):
        size = " x ".join(str(number) for number in (shape.rows, shape.classes, shape.width) if number)
        print(f"\n{size}, {shape.dtype}, {context['allocator']} allocator")
        for row in measure.rows(shape, rounds=rounds, device=device, compiled=compiled):
            print(f"  {_line(row)}", flush=True)
            if output is not None:
                _append(output, {**row, **context})


def _shapes(classes: list[int], elements: int, kinds: list[Any], device: str, layer: tuple[int, int, int]) -> list[Any]:
    """Batches of `elements` logits, small ones where overhead dominates, and a last linear layer."""
    from labo.bench.implementations import ProblemShape

    batches = [ProblemShape(max(1, elements // number), number, 0, kind) for kind in kinds for number in classes]
    small = [ProblemShape(rows, number) for rows, number in ((64, 10), (128, 100), (4096, 100))]
    return [*batches, *small, *(ProblemShape(*layer, kind) for kind in (kinds if device != "cpu" else kinds[:1]))]


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
