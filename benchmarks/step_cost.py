"""What a regularizer costs in a training step of ResNet-18, beside plain cross-entropy and torch's own smoothing.

python benchmarks/step_cost.py [--device cuda] [--output results/bench/step-cpu.csv]

A step is forward, loss, backward and SGD with momentum, on 32 x 32 pictures (CIFAR stem). Each contender's step is
timed beside the yardstick's, label smoothing of this project, in both orders, in one process with a fixed number of
threads; the table has the median of the ratios and their quartiles. Memory is the peak of a fresh process each (CPU:
resident set beyond what was there before the first step; CUDA: the allocator's).
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labo import LabelRegularizedLoss, machine, regularizers
from labo.tasks.images import models

CLASSES, SIZE = 100, 32
YARDSTICK = "label_smoothing"
CONTENDERS = (YARDSTICK, "none", "labo", "torch, smoothed")


def criterion(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss that a contender trains with."""
    if name == "torch, smoothed":
        return lambda logits, target: F.cross_entropy(logits, target, label_smoothing=0.1)
    return LabelRegularizedLoss(regularizers.create(name))


class Course:
    """A network with its optimizer and one batch; every contender has the same."""

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = models.build("resnet18", CLASSES, SIZE, {"stem": "cifar"}).to(asked.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.features = torch.randn(asked.batch_size, 3, SIZE, SIZE, device=asked.device)
        self.target = torch.randint(CLASSES, (asked.batch_size,), device=asked.device)
        self.loss, self.bfloat16, self.device = criterion(name), asked.precision == "bfloat16", asked.device
        if asked.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            self.features = self.features.to(memory_format=torch.channels_last)

    def step(self) -> None:
        """One step of training."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            logits = self.network(self.features)
        self.loss(logits, self.target).backward()
        self.optimizer.step()

    def seconds(self, times: int) -> float:
        """Of one step, over so many."""
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        wait()
        began = time.perf_counter()
        for _ in range(times):
            self.step()
        wait()
        return (time.perf_counter() - began) / times


def ratios(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds and ratio to the yardstick of each contender; the yardstick's own ratio is to a second one of it."""
    yardstick = Course(YARDSTICK, asked)
    found = []
    for name in CONTENDERS:
        course = Course(name, asked)
        for each in (yardstick, course):
            each.seconds(asked.warm)
        ours, shares = [], []
        for index in range(asked.rounds):
            pair = [each.seconds(asked.times) for each in ((yardstick, course) if index % 2 else (course, yardstick))]
            theirs, mine = pair if index % 2 else pair[::-1]
            ours.append(mine)
            shares.append(mine / theirs)
        low, _, high = quantiles(shares, n=4) if len(shares) > 1 else shares * 3
        line = {"contender": name, "milliseconds": round(median(ours) * 1e3, 3), "ratio": round(median(shares), 4)}
        found.append({**line, "ratio_low": round(low, 4), "ratio_high": round(high, 4)})
    return found


def peak(name: str, asked: argparse.Namespace) -> float:
    """MiB at the peak of a few steps beyond what the process had before them."""
    course = Course(name, asked)
    if asked.device == "cuda":
        course.seconds(3)
        torch.cuda.reset_peak_memory_stats()
        course.seconds(3)
        return torch.cuda.max_memory_allocated() / 2**20
    # What the loss imports and compiles is no part of a step.
    logits = torch.zeros(asked.batch_size, CLASSES, requires_grad=True)
    course.loss(logits, course.target).backward()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = _status("VmRSS")
    course.seconds(3)
    return (_status("VmHWM") - before) / 2**10


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[key].split()[0])


def peaks(asked: argparse.Namespace) -> dict[str, float]:
    """The peak of each contender, measured in a process of its own."""
    found = {}
    for name in CONTENDERS:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--peak-of", name], capture_output=True, text=True, check=True
        )
        found[name] = round(float(done.stdout), 1)
    return found


def record(lines: list[dict[str, Any]], asked: argparse.Namespace) -> None:
    """Add the lines to the file, each with what it was measured on."""
    where = torch.cuda.get_device_name() if asked.device == "cuda" else machine.processor()
    about = {"when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "device": asked.device, "on": where}
    about |= {"threads": asked.threads, "batch_size": asked.batch_size, "precision": asked.precision}
    about |= {"channels_last": asked.channels_last, "rounds": asked.rounds, "torch": torch.__version__}
    new = not asked.output.exists()
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with open(asked.output, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0], *about])
        if new:
            writer.writeheader()
        writer.writerows({**line, **about} for line in lines)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15, help="pairs of measurements for each contender")
    parser.add_argument("--times", type=int, default=1, help="steps in a measurement; take 20 on a GPU")
    parser.add_argument("--warm", type=int, default=2, help="steps before the first measurement")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--output", type=Path, help="a .csv file that gets these lines too")
    parser.add_argument("--peak-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, add to the file."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    if asked.peak_of:
        print(peak(asked.peak_of, asked))
        return
    memory, lines = peaks(asked), ratios(asked)
    print("| loss | ms a step | ratio | quartiles | peak MiB | ratio |\n|---|---|---|---|---|---|")
    for line in lines:
        line["peak_mib"] = memory[line["contender"]]
        line["peak_ratio"] = round(line["peak_mib"] / memory[YARDSTICK], 4)
        spread = f"{line['ratio_low']:.3f}–{line['ratio_high']:.3f}"
        shown = [line["contender"], f"{line['milliseconds']:.1f}", f"{line['ratio']:.3f}", spread]
        print(f"| {' | '.join(shown)} | {line['peak_mib']:.0f} | {line['peak_ratio']:.3f} |")
    if asked.output:
        record(lines, asked)


if __name__ == "__main__":
    main()
