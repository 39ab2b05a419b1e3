"""Everything that is measured on a GPU, by sections of at most two minutes each, into one .csv file.

    PYTHONPATH=src python3 benchmarks/gpu.py --output gpu.csv
    PYTHONPATH=src python3 benchmarks/gpu.py --section correctness --section shapes --output gpu.csv

- correctness: every variant of the Triton kernels against float64, odd sizes, strides, masks, ignored rows; no waits.
- shapes: how kernels lie on the device (rows, groups, warps) by number of classes and dtype. It prints the table for
  `labo/kernels/triton_shapes.py`, and the sections after it use that table.
- logits, last-layer: labo, PyTorch, the naive formula compiled, Liger and CCE where they are installed, side by side.

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
from torch import Tensor

from labo.kernels import autograd, reference, triton_shapes
from labo.kernels import triton as implementation
from labo.kernels.options import Options
from labo.kernels.triton_shapes import Shape, power_of_2

SECTIONS = ("correctness", "shapes", "logits", "last-layer")
COLUMNS = (
    "section", "name", "rows", "classes", "width", "dtype", "beta", "options", "milliseconds", "ratio", "ratio_low",
    "ratio_high", "copy_share", "memory", "loss_error", "grad_error", "ok", "note", "device", "versions",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SECONDS = 115
ALPHA = 0.3

Line = dict[str, Any]


# Correctness

# (rows, classes): held rows, swept rows whose addresses are aligned and not, rows in parts.
SIZES = (
    (9, 1), (9, 2), (40, 10), (33, 252), (33, 507), (33, 1000), (33, 1024), (17, 2000), (300, 4097), (7, 32000),
    (300, 32000), (5, 128256), (280, 128256),
)  # fmt: skip
BETAS: tuple[float | str, ...] = (2.0, 3.0, 4.0, 1.5, 50.0, math.inf, "rows")


def correctness_cases() -> list[Line]:
    """What is checked, one kernel each."""
    cases = []
    for rows, classes in SIZES:
        for dtype in DTYPES:
            for beta in BETAS if dtype != "float16" else (2.0, "rows"):
                for prior in (
                    (False, True) if beta in (1.5, 50.0, math.inf, "rows") and dtype != "float16" else (False,)
                ):
                    options = "prior" if prior else ""
                    cases.append({"rows": rows, "classes": classes, "dtype": dtype, "beta": beta, "options": options})
    for options in ("strided", "in place", "no gradient", "per-row alpha", "scalar tensors", "far logits", "tiny beta"):
        for rows, classes in ((33, 1000), (300, 5000), (5, 32000)):
            for dtype in ("float32", "bfloat16"):
                cases.append({"rows": rows, "classes": classes, "dtype": dtype, "beta": 2.0, "options": options})
    cases += [{"rows": 64, "classes": 1000, "dtype": "float32", "beta": 2.0, "options": name} for name in CHECKS]
    return cases


def check_kernel(case: Line) -> Line:
    """Errors of one variant beside float64: losses by max(1, |loss|), gradients by row or by their dtype's rounding."""
    rows, classes, dtype, extra = case["rows"], case["classes"], DTYPES[case["dtype"]], case["options"]
    draw = torch.Generator(device="cuda").manual_seed(rows * 1000 + classes)
    scale = 1e4 if extra == "far logits" else 4.0
    logits = torch.randn(rows, classes, generator=draw, device="cuda") * scale
    if extra == "far logits":
        logits += 1e4
    target = torch.randint(classes, (rows,), generator=draw, device="cuda")
    logits[1] = torch.where(torch.rand(classes, generator=draw, device="cuda") < 0.4, -math.inf, logits[1])
    logits[1, target[1]] = 1.0
    weights = torch.rand(rows, generator=draw, device="cuda") + 0.1
    weights[::5] = 0.0
    logits = logits.to(dtype)
    truth_logits = logits.double()
    logits[::5] = math.nan  # rows of weight 0 are not read
    if extra == "strided":
        logits = logits.T.contiguous().T
    alpha, beta, prior = _options(case, rows, classes, draw)
    wide = [value.double() if isinstance(value, Tensor) else value for value in (alpha, beta)]
    truth = reference.solve(truth_logits, target, weights.double(), Options(*wide, prior), gradient=True)
    gradient = extra != "no gradient"
    out = {"out": logits} if extra == "in place" else {}
    losses, grads = implementation.solve(logits, target, weights, Options(alpha, beta, prior), gradient=gradient, **out)
    true_losses, true_grads = truth
    assert true_grads is not None
    loss_error = ((losses - true_losses).abs() / true_losses.abs().clamp(min=1)).max().item()
    grad_error = 0.0
    if grads is not None:
        off = (grads.double() - true_grads).abs()
        if dtype == torch.float32:
            grad_error = (off.norm(dim=-1) / true_grads.norm(dim=-1).clamp(min=1)).max().item()
        else:
            ulp = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
            floor = 6e-8 if dtype == torch.float16 else 0.0
            grad_error = ((off - 1e-6 - floor).clamp(min=0) / true_grads.abs().clamp(min=1e-30) / ulp).max().item()
    limit = 1e-5 if dtype == torch.float32 else 1.01
    ok = loss_error <= 1e-5 and grad_error <= limit and not math.isnan(loss_error + grad_error)
    return {"loss_error": f"{loss_error:.2e}", "grad_error": f"{grad_error:.2e}", "ok": int(ok)}


def _options(
    case: Line, rows: int, classes: int, draw: torch.Generator
) -> tuple[float | Tensor, float | Tensor, Tensor | None]:
    beta: float | Tensor = case["beta"]
    alpha: float | Tensor = ALPHA
    if case["beta"] == "rows":
        some = torch.tensor([0.5, 2.0, 20.0, 1e5, math.inf], device="cuda")
        beta = some[torch.arange(rows, device="cuda") % 5]
    if case["options"] == "per-row alpha":
        alpha = torch.rand(rows, generator=draw, device="cuda")
    if case["options"] == "scalar tensors":
        alpha, beta = torch.tensor(ALPHA, device="cuda"), torch.tensor(2.0, device="cuda")
    if case["options"] == "tiny beta":
        beta = 1e-30
    prior = None
    if case["options"] == "prior":
        prior = torch.rand(classes, generator=draw, device="cuda", dtype=torch.float64) ** 6 + 1e-9
        prior = prior / prior.sum()
    return alpha, beta, prior


def _public(inplace: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, gradient) of the public function, and of the same in float64 by the reference."""
    from labo import labo_cross_entropy

    draw = torch.Generator(device="cuda").manual_seed(0)
    leaf = torch.randn(64, 1000, generator=draw, device="cuda").requires_grad_()
    target = torch.randint(1000, (64,), generator=draw, device="cuda")
    target[::5] = -100
    wide = leaf.detach().double().requires_grad_()
    true_loss = labo_cross_entropy(wide, target, impl="reference")
    (true_grad,) = torch.autograd.grad(true_loss, wide)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = labo_cross_entropy(leaf * 1, target, inplace_backward=inplace)
        (grad,) = torch.autograd.grad(loss, leaf)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return loss, grad, true_loss, true_grad


def check_public(inplace: bool = False) -> Line:
    """The public function trains, and waits for the device nowhere."""
    loss, grad, true_loss, true_grad = _public(inplace)
    loss_error, grad_error = (loss - true_loss).abs().item(), (grad - true_grad).norm().item()
    ok = loss_error < 1e-5 and grad_error < 1e-5
    return {"loss_error": f"{loss_error:.2e}", "grad_error": f"{grad_error:.2e}", "ok": int(ok)}


def check_scale() -> Line:
    """The gradient is scaled where the scalar is not 1, and left alone where it is; neither waits."""
    grads = torch.randn(3, 100_003, device="cuda")
    before = grads.clone()
    factors = [torch.tensor(value, device="cuda") for value in (1.0, 0.3)]
    autograd.scale_gradient(grads, factors[0])  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        same = autograd.scale_gradient(grads, factors[0]).clone()
        scaled = autograd.scale_gradient(grads, factors[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"ok": int(torch.equal(same, before) and torch.equal(scaled, before * factors[1]))}


def check_layer() -> Line:
    """The loss through the last layer waits for the device nowhere, and is that of the product."""
    from labo import labo_cross_entropy, linear_labo_cross_entropy

    draw = torch.Generator(device="cuda").manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=draw, device="cuda").requires_grad_() for n in (300, 5000))
    target = torch.randint(5000, (300,), generator=draw, device="cuda")
    target[::5] = -100
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    true_loss = labo_cross_entropy(wide[0] @ wide[1].T, target, impl="reference")
    true_grads = torch.autograd.grad(true_loss, wide)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.autograd.grad(linear_labo_cross_entropy(hidden, weight, target), (hidden, weight))  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = linear_labo_cross_entropy(hidden, weight, target)
        grads = torch.autograd.grad(loss, (hidden, weight))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    loss_error = ((loss - true_loss).abs() / true_loss).item()
    grad_error = max(((a - b).norm() / b.norm()).item() for a, b in zip(grads, true_grads, strict=True))
    ok = loss_error < 1e-5 and grad_error < 1e-4
    return {"loss_error": f"{loss_error:.2e}", "grad_error": f"{grad_error:.2e}", "ok": int(ok)}


CHECKS: dict[str, Callable[[], Line]] = {
    "public": check_public,
    "public, in place": lambda: check_public(inplace=True),
    "scale": check_scale,
    "layer": check_layer,
}


def run_correctness_case(case: Line) -> Line:
    """One line; an error is a line too."""
    try:
        check = CHECKS.get(case["options"])
        return {"section": "correctness", **case, **(check() if check else check_kernel(case))}
    except Exception as error:
        return {"section": "correctness", **case, "ok": 0, "note": _error_note(error)}


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
        return {"note": _error_note(error), **case}
    return {}


def _batch(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator(device="cuda").manual_seed(0)
    logits = torch.randn(rows, classes, generator=draw, device="cuda", dtype=dtype)
    target = torch.randint(classes, (rows,), generator=draw, device="cuda")
    return logits, target, torch.full((rows,), 1 / rows, device="cuda")


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
            times[shape], note = math.inf, _error_note(error)
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


def _side_by_side(section: str, sizes: list[Any], write: Callable[[Line], None], deadline: float, rounds: int) -> None:
    from labo.bench.implementations import ProblemShape

    for index, (rows, classes, width, dtype) in enumerate(sizes):
        print(f"  {rows} x {classes}{f' of width {width}' if width else ''}, {dtype}", flush=True)
        compiled = not width and index in (0, 2, 6)
        about = {"section": section, "rows": rows, "classes": classes, "width": width, "dtype": dtype}
        with _releasing():
            for line in _timed(ProblemShape(rows, classes, width, DTYPES[dtype]), compiled, deadline, rounds):
                write({**about, **line})
                if "milliseconds" in line:
                    print(
                        f"    {line['name']:28} {line['milliseconds']:9.3f} ms  ratio {line['ratio']:.3f}  "
                        f"copy {line['copy_share'] or 0:.2f}  memory {line['memory']}",
                        flush=True,
                    )
                else:
                    print(f"    {line['name']:28} {line['note']}", flush=True)


def _timed(shape: Any, compiled: bool, deadline: float, rounds: int) -> Iterator[Line]:
    from labo.bench import measure
    from labo.bench.implementations import BASELINE, implementations

    steps = implementations(shape, device="cuda", compiled=compiled)
    copy = measure.copy_seconds(shape, "cuda")
    for name, step in steps.items():
        if time.monotonic() > deadline:
            yield {"name": name, "note": "out of time"}
            continue
        try:
            step()
            line = measure.row(name, step, steps[BASELINE], shape, copy, rounds=rounds, device="cuda")
            yield {"name": name, **{key: value for key, value in line.items() if key in COLUMNS}}
        except Exception as error:
            yield {"name": name, "ok": 0, "note": _error_note(error)}


# Workers and the file

CASES: dict[str, tuple[Callable[[], list[Line]], Callable[[Line], Line]]] = {
    "correctness": (correctness_cases, run_correctness_case),
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


def correctness(write: Callable[[Line], None], deadline: float) -> None:
    """Every variant beside float64, in worker processes."""
    good = bad = 0
    for line in in_workers("correctness", len(correctness_cases()), deadline):
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


def _error_note(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"[:300]


def main() -> None:
    """Run the sections that are asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=SECTIONS, help="one of several; all by default")
    parser.add_argument("--output", type=Path, default=Path("gpu.csv"), help="the .csv file to append to")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what a section may take")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device: benchmarks/gpu_static.py counts what the kernels cost without one.")
    if options.worker:
        section, index, workers = options.worker.split(":")
        work(section, int(index), int(workers), time.monotonic() + options.seconds)
        return
    import triton

    about = {
        "device": torch.cuda.get_device_name(),
        "versions": f"torch {torch.__version__}, triton {triton.__version__}, python {sys.version.split()[0]}",
    }
    print(about, flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    new = not options.output.exists()
    run = {"correctness": correctness, "shapes": shapes, "logits": logits, "last-layer": last_layer}
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
                run[section](write, began + options.seconds)
            except Exception as error:
                print(f"  FAILED {_error_note(error)}", flush=True)
                write({"section": section, "ok": 0, "note": _error_note(error)})
            print(f"  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
