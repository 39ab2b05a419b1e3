"""Measurements: time as the median ratio to the baseline, in alternation; memory as the peak of the process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from labo.bench.implementations import BASELINE, BASELINES, ProblemShape, Step, implementations

# glibc settings that keep freed memory, so that no pages are requested from the system during a measurement.
STEADY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
MIN_SECONDS = 0.002


def rows(shape: ProblemShape, *, rounds: int, device: str = "cpu", compiled: bool = False) -> Iterator[dict[str, Any]]:
    """One `row` per implementation."""
    steps = implementations(shape, device=device, compiled=compiled)
    copy = copy_seconds(shape, device)
    for name, step in steps.items():
        baseline = steps[BASELINES.get(name, BASELINE)]
        yield row(name, step, baseline, shape, copy, rounds=rounds, device=device)


def row(
    name: str, step: Step, baseline: Step, shape: ProblemShape, copy: float, *, rounds: int, device: str
) -> dict[str, Any]:
    """Milliseconds of a step, ratio to the baseline, its quartiles, memory, and speed relative to a copy."""
    ours, ratios = _alternate(baseline, step, rounds, device)
    low, _, high = quantiles(ratios, n=4)
    return {
        "form": "linear" if shape.width else "logits",
        "contender": name,
        "rows": shape.rows,
        "classes": shape.classes,
        "width": shape.width,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "milliseconds": round(ours * 1e3, 4),
        "ratio": round(median(ratios), 3),
        "ratio_low": round(low, 3),
        "ratio_high": round(high, 3),
        "memory": (_memory if device == "cpu" else _device_memory)(step, shape),
        "copy_share": None if shape.width else round(copy / ours, 3),
    }


def _alternate(baseline: Step, step: Step, rounds: int, device: str) -> tuple[float, list[float]]:
    """(median seconds of a step, ratios of step to baseline), alternating, in both orders."""
    times = max(1, round(MIN_SECONDS / max(1e-6, _seconds(baseline, 1, device))))
    _seconds(step, times, device)
    ours, ratios = [], []
    for index in range(rounds):
        pair = [_seconds(each, times, device) for each in ((baseline, step) if index % 2 else (step, baseline))]
        theirs, mine = pair if index % 2 else pair[::-1]
        ours.append(mine)
        ratios.append(mine / theirs)
    return median(ours), ratios


def _seconds(step: Callable[[], object], times: int, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(times):
        step()
    wait()
    return (time.perf_counter() - began) / times


def copy_seconds(shape: ProblemShape, device: str) -> float:
    """Seconds of a copy of the logits: one read and one write, a lower bound for a loss with gradient."""
    source, target = (torch.zeros(shape.rows, shape.classes, dtype=shape.dtype, device=device) for _ in range(2))
    return median(_seconds(lambda: target.copy_(source), 1, device) for _ in range(7))


def _device_memory(step: Step, shape: ProblemShape) -> float:
    """Like `_memory`, from the counters of the device allocator."""
    step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return round((torch.cuda.max_memory_allocated() - before) / shape.logits_bytes, 3)


def _memory(step: Step, shape: ProblemShape) -> float | None:
    """Peak memory of a step in multiples of the logits; None if it cannot be measured.

    The allocator keeps freed buffers up to 32 MiB, and all buffers under `STEADY`; both hide the peak.
    """
    if shape.logits_bytes < 2**26 or all(os.environ.get(name) == value for name, value in STEADY.items()):
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
        step()
        return round((_status("VmHWM") - before) / shape.logits_bytes, 3)
    except (OSError, KeyError):
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return int(values[key].split()[0]) * 1024
