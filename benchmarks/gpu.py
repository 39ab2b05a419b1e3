"""Everything that is measured on a GPU, by sections of at most two minutes each, into one .csv file.

    PYTHONPATH=src python3 benchmarks/gpu.py --output gpu.csv
    PYTHONPATH=src python3 benchmarks/gpu.py --section correctness --section shapes --output gpu.csv

- correctness: every variant of the Triton kernels against float64, odd sizes, strides, masks, ignored rows; no waits.
- shapes: how kernels lie on the device (rows, groups, warps) by number of classes and dtype. It prints the table for
  `labo/kernels/triton_shapes.py`, and the sections after it use that table.
- logits, last-layer: labo, PyTorch, the naive formula compiled, Liger and CCE where they are installed, side by side.
- options: z-loss, softcap, statistics and row weights, alone and together, against float64.
- options-cost: the time of a step with each of them, relative to one without.

It needs PyTorch with Triton and nothing else. Kernels are compiled by worker processes, side by side. What fails is a
line with its error, and the rest goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_checks import ALPHA, DEVICE, DTYPES, Line, correctness_cases, error_note, option_cases, run_case
from torch import Tensor

import labo
from labo.kernels import triton as implementation
from labo.kernels import triton_shapes
from labo.kernels.options import Options
from labo.kernels.triton_shapes import Shape, power_of_2

COLUMNS = (
    "section", "name", "rows", "classes", "width", "dtype", "beta", "options", "milliseconds", "ratio", "ratio_low",
    "ratio_high", "copy_share", "memory", "loss_error", "grad_error", "ok", "note", "device", "versions",
)  # fmt: skip
SECONDS = 115


# Shapes

# (classes up to which a choice holds, classes at which it is timed)
CLASSES = (
    (16, 10), (64, 50), (256, 200), (1024, 1000), (2048, 2000), (4096, 4000), (8192, 8192), (16384, 16384),
    (65536, 32768), (2**62, 131072),
)  # fmt: skip
ELEMENTS = 2**27


def candidates(classes: int) -> list[Shape]:
    """Ways in which rows of so many classes can lie on the device."""
    block = power_of_2(classes)
    held = []
    if block <= 1024:
        counts = [rows for rows in (1, 2, 4, 8, 16, 32) if 64 <= rows * block <= 1024 or rows == 1]
        held = [Shape(rows, 1, 1) for rows in counts]
        held += [Shape(rows * 4, 1, 4) for rows in counts if block <= 256]
        held += [Shape(1, 1, warps) for warps in (2, 4) if block >= 512]
    elif block <= 16384:
        held = [Shape(1, 1, warps) for warps in (1, 2, 4, 8, 16) if 8 <= block // 32 // warps <= 64]
    swept = []
    if classes > 512:
        swept = [
            Shape(0, groups, warps)
            for groups in (1, 2, 4)
            for warps in (1, 2, 4, 8, 16, 32)
            if groups * warps * 128 <= classes and warps * 8192 >= classes // 4
        ]
    return held + swept


def shape_cases() -> list[Line]:
    """Candidates by classes and dtype."""
    return [
        {"rows": ELEMENTS // classes, "classes": classes, "dtype": dtype, "limit": limit, "shape": tuple(shape)}
        for limit, classes in CLASSES
        for dtype in ("float32", "bfloat16")
        for shape in candidates(classes)
    ]


def warm_shape_case(case: Line) -> Line:
    """Compile a candidate: a few rows are enough, as their number is no constant of the kernel."""
    try:
        shape = Shape(*case["shape"])
        logits, target, weights = _batch(1024, case["classes"], DTYPES[case["dtype"]])
        implementation.solve(logits, target, weights, Options(0.1, 2.0), gradient=True, shape=shape)
        torch.cuda.synchronize()
    except Exception as error:
        return {"note": error_note(error), **case}
    return {}


def _batch(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator(device=DEVICE).manual_seed(0)
    logits = torch.randn(rows, classes, generator=draw, device=DEVICE, dtype=dtype)
    target = torch.randint(classes, (rows,), generator=draw, device=DEVICE)
    return logits, target, torch.full((rows,), 1 / rows, device=DEVICE)


def milliseconds(step: Callable[[], object], repeats: int = 10) -> float:
    """Median time of a step on the device."""
    for _ in range(2):
        step()
    times = []
    for _ in range(repeats):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        step()
        ended.record()
        times.append((began, ended))
    torch.cuda.synchronize()
    return sorted(began.elapsed_time(ended) for began, ended in times)[repeats // 2]


def shapes(write: Callable[[Line], None], deadline: float) -> None:
    """Time candidates, print and take the table of the fastest."""
    cases = shape_cases()
    for line in in_workers("shapes", len(cases), deadline - 40):
        if line.get("note"):
            print(f"  did not compile: {line}", flush=True)
    chosen: dict[int, dict[int, Shape]] = {4: {}, 2: {}}
    groups: dict[tuple[int, str], list[Line]] = {}
    for case in cases:
        groups.setdefault((case["classes"], case["dtype"]), []).append(case)
    for (classes, dtype), group in groups.items():
        if time.monotonic() > deadline:
            print("  out of time", flush=True)
            break
        with _releasing():
            best = _time_group(classes, dtype, group, write)
        if best:
            chosen[DTYPES[dtype].itemsize][group[0]["limit"]] = best
    print("  TABLE = {")
    for item, found in chosen.items():
        known = dict(triton_shapes.TABLE[item]) | found
        triton_shapes.TABLE[item] = tuple(sorted(known.items()))
        rows = ", ".join(f"({limit}, {shape})" for limit, shape in triton_shapes.TABLE[item])
        print(f"    {item}: ({rows}),".replace("rows=", "").replace("groups=", "").replace("warps=", ""))
    print("  }", flush=True)


def _time_group(classes: int, dtype: str, group: list[Line], write: Callable[[Line], None]) -> Shape | None:
    """The fastest of a group's shapes."""
    z, target, weights = _batch(ELEMENTS // classes, classes, DTYPES[dtype])
    out = torch.empty_like(z)
    copy = milliseconds(lambda: out.copy_(z))
    times = {}
    for case in group:
        shape, note = Shape(*case["shape"]), ""
        solve = partial(implementation.solve, gradient=True, out=out, shape=shape)
        try:
            times[shape] = milliseconds(partial(solve, z, target, weights, Options(0.1, 2.0)))
        except Exception as error:
            times[shape], note = math.inf, error_note(error)
        line = {"section": "shapes", "name": str(tuple(shape)), "beta": 2.0, "note": note, "dtype": dtype}
        line |= {"milliseconds": round(times[shape], 4), "copy_share": round(copy / times[shape], 3)}
        write({**case, **line})
    best = sorted(times, key=times.__getitem__)[:4]
    told = ", ".join(f"{tuple(shape)} {times[shape]:.3f} ms (copy {copy / times[shape]:.2f})" for shape in best)
    ours = times.get(triton_shapes.shape_of(classes, z.element_size()), math.nan)
    print(f"  {classes:7} {dtype:9} now {ours:.3f} ms; best {told}", flush=True)
    return best[0] if math.isfinite(times[best[0]]) else None


# Side by side

LOGITS = (
    *((2**27 // classes, classes, "float32") for classes in (1000, 4096, 32768, 131072)),
    *((2**27 // classes, classes, "bfloat16") for classes in (1000, 4096, 32768, 131072)),
    (64, 10, "float32"), (128, 100, "float32"), (4096, 100, "float32"), (4096, 50257, "bfloat16"),
)  # fmt: skip
LAYERS = ((8192, 32768, 1024, "bfloat16"), (8192, 128256, 4096, "bfloat16"), (4096, 32768, 512, "float32"))


def logits(write: Callable[[Line], None], deadline: float) -> None:
    """labo, PyTorch and the others on logits."""
    _side_by_side("logits", [(*size[:2], 0, size[2]) for size in LOGITS], write, deadline, rounds=7)


def last_layer(write: Callable[[Line], None], deadline: float) -> None:
    """The same through the last layer."""
    _side_by_side("last-layer", list(LAYERS), write, deadline, rounds=5)


def options_cost(write: Callable[[Line], None], deadline: float) -> None:
    """A step with each option, relative to the step without: of logits, and through the last layer."""
    sizes = [(rows, classes, 0, dtype) for rows, classes, dtype in OPTION_LOGITS]
    _side_by_side("options-cost", [*sizes, *OPTION_LAYERS], write, deadline, rounds=5, steps_of=_option_steps)


OPTION_LOGITS = tuple(
    (2**27 // classes, classes, dtype) for classes in (1000, 32768) for dtype in ("float32", "bfloat16")
)
OPTION_LAYERS = ((8192, 32768, 1024, "bfloat16"),)


def _option_steps(shape: Any, compiled: bool) -> tuple[dict[str, Callable[[], None]], str]:
    """Steps by name, and the one that the others are relative to."""
    draw = torch.Generator(device=DEVICE).manual_seed(0)
    leaves = [torch.randn(shape.rows, shape.width or shape.classes, generator=draw, device=DEVICE, dtype=shape.dtype)]
    if shape.width:
        head = torch.randn(shape.classes, shape.width, generator=draw, device=DEVICE, dtype=shape.dtype)
        leaves.append(head.div_(math.sqrt(shape.width)))
    form: Callable[..., Any] = labo.linear_labo_cross_entropy if shape.width else labo.labo_cross_entropy
    for leaf in leaves:
        leaf.requires_grad_()
    target = torch.randint(shape.classes, (shape.rows,), generator=draw, device=DEVICE)
    options: dict[str, Line] = {
        "labo": {},
        "z_loss": {"z_loss": 1e-4},
        "softcap": {"softcap": 30.0},
        "statistics": {"return_statistics": True},
        "row_weight": {"row_weight": torch.rand(shape.rows, generator=draw, device=DEVICE)},
    }
    options["z_loss, softcap, statistics, row_weight"] = {
        name: value for given in options.values() for name, value in given.items()
    }

    def step(given: Line) -> None:
        found = form(*leaves, target, alpha=ALPHA, beta=2.0, **given)
        torch.autograd.grad(found if isinstance(found, Tensor) else found.loss, leaves)

    return {name: partial(step, given) for name, given in options.items()}, "labo"


def _peers(shape: Any, compiled: bool) -> tuple[dict[str, Callable[[], None]], str]:
    from labo.bench.implementations import BASELINE, implementations

    return implementations(shape, device=DEVICE, compiled=compiled), BASELINE


Steps = Callable[[Any, bool], tuple[dict[str, Callable[[], None]], str]]


def _side_by_side(
    section: str,
    sizes: list[Any],
    write: Callable[[Line], None],
    deadline: float,
    rounds: int,
    steps_of: Steps = _peers,
) -> None:
    from labo.bench.implementations import ProblemShape

    for index, (rows, classes, width, dtype) in enumerate(sizes):
        print(f"  {rows} x {classes}{f' of width {width}' if width else ''}, {dtype}", flush=True)
        compiled = not width and index in (0, 2, 6)
        about = {"section": section, "rows": rows, "classes": classes, "width": width, "dtype": dtype}
        with _releasing():
            shape = ProblemShape(rows, classes, width, DTYPES[dtype])
            for line in _timed(shape, *steps_of(shape, compiled), deadline, rounds):
                write({**about, **line})
                if "milliseconds" in line:
                    print(
                        f"    {line['name']:28} {line['milliseconds']:9.3f} ms  ratio {line['ratio']:.3f}  "
                        f"copy {line['copy_share'] or 0:.2f}  memory {line['memory']}",
                        flush=True,
                    )
                else:
                    print(f"    {line['name']:28} {line['note']}", flush=True)


def _timed(
    shape: Any, steps: dict[str, Callable[[], None]], baseline: str, deadline: float, rounds: int
) -> Iterator[Line]:
    from labo.bench import measure

    copy = measure.copy_seconds(shape, DEVICE)
    for name, step in steps.items():
        if time.monotonic() > deadline:
            yield {"name": name, "note": "out of time"}
            continue
        try:
            step()
            line = measure.row(name, step, steps[baseline], shape, copy, rounds=rounds, device=DEVICE)
            yield {"name": name, **{key: value for key, value in line.items() if key in COLUMNS}}
        except Exception as error:
            yield {"name": name, "ok": 0, "note": error_note(error)}


# Workers and the file

CASES: dict[str, tuple[Callable[[], list[Line]], Callable[[Line], Line]]] = {
    "correctness": (correctness_cases, partial(run_case, "correctness")),
    "options": (option_cases, partial(run_case, "options")),
    "shapes": (shape_cases, warm_shape_case),
}


def in_workers(section: str, count: int, deadline: float) -> Iterator[Line]:
    """The lines of a section's cases, each worker taking every n-th; what has no time left is left out, and said."""
    workers = max(1, min(14, (os.cpu_count() or 2) - 1, count))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", f"{section}:{index}:{workers}", "--seconds",
             str(deadline - time.monotonic())],
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        for index in range(workers)
    ]  # fmt: skip
    done = 0
    for process in processes:
        try:
            text, _ = process.communicate(timeout=max(1.0, deadline + 10 - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
        for line in text.splitlines():
            if line.startswith("{"):
                done += 1
                yield json.loads(line)
    if done < count:
        print(f"  {count - done} of {count} cases had no time", flush=True)


def work(section: str, index: int, workers: int, deadline: float) -> None:
    """What a worker does: its cases, a line of JSON each."""
    listed, run = CASES[section]
    for case in listed()[index::workers]:
        if time.monotonic() > deadline:
            break
        print(json.dumps(run(case)), flush=True)
        torch.cuda.empty_cache()


def checked(section: str, write: Callable[[Line], None], deadline: float) -> None:
    """The cases of a section beside float64, in worker processes."""
    good = bad = 0
    for line in in_workers(section, len(CASES[section][0]()), deadline):
        write(line)
        good, bad = good + (line["ok"] == 1), bad + (line["ok"] != 1)
        if line["ok"] != 1:
            print("  WRONG " + json.dumps({k: v for k, v in line.items() if k != "section"}), flush=True)
    print(f"  {good} right, {bad} wrong", flush=True)


@contextlib.contextmanager
def _releasing() -> Iterator[None]:
    try:
        yield
    finally:
        torch.cuda.empty_cache()


SECTIONS: dict[str, Callable[[Callable[[Line], None], float], None]] = {
    "correctness": partial(checked, "correctness"),
    "shapes": shapes,
    "logits": logits,
    "last-layer": last_layer,
    "options": partial(checked, "options"),
    "options-cost": options_cost,
}


def main() -> None:
    """Run the sections that are asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="one of several; all by default")
    parser.add_argument("--output", type=Path, default=Path("gpu.csv"), help="the .csv file to append to")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what a section may take")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if DEVICE == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device: benchmarks/gpu_static.py counts what the kernels cost without one.")
    if options.worker:
        section, index, workers = options.worker.split(":")
        work(section, int(index), int(workers), time.monotonic() + options.seconds)
        return
    import triton

    about = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "Triton's interpreter",
        "versions": f"torch {torch.__version__}, triton {triton.__version__}, python {sys.version.split()[0]}",
    }
    print(about, flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    new = not options.output.exists()
    with open(options.output, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        if new:
            writer.writeheader()

        def write(line: Line) -> None:
            writer.writerow({**line, **about})
            file.flush()

        for section in options.section or SECTIONS:
            began = time.monotonic()
            print(f"{section}:", flush=True)
            try:
                SECTIONS[section](write, began + options.seconds)
            except Exception as error:
                print(f"  FAILED {error_note(error)}", flush=True)
                write({"section": section, "ok": 0, "note": error_note(error)})
            print(f"  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
