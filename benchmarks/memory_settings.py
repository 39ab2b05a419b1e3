"""What kept memory and the channels-last format do to a training step of an image network on a processor.

    python benchmarks/memory_settings.py [--output results/bench/memory-settings.csv]

A step is forward, cross-entropy, backward and SGD with momentum, on one thread. Each setting runs in a fresh process,
in alternation; the seconds are processor time, which other work on the machine disturbs little. The ratios are to the
usual allocator and format, the medians over rounds. "kept" is what the trials of `labo train` and `labo compare` do
(`labo.machine.keep_freed_memory`); the other is their setting `channels_last`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import csv_lines

# Network -> image size, batch size.
NETWORKS = {"convnet": (16, 128), "wrn-16-2": (32, 64), "resnet18": (32, 32)}
SETTINGS = {"usual": (False, False), "kept": (True, False), "channels last": (False, True), "both": (True, True)}
WARM, CLASSES = 5, 10


def measure(network: str, kept: bool, channels_last: bool, steps: int) -> dict[str, float]:
    """Milliseconds of the processor and page faults in a step, in this process."""
    import torch

    from labo import machine
    from labo.tasks.images import models

    torch.set_num_threads(1)
    if kept and not machine.keep_freed_memory():
        raise SystemExit("This needs glibc's allocator, with nothing set up in the environment.")
    torch.manual_seed(0)
    size, batch_size = NETWORKS[network]
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    model: Any = models.build(network, CLASSES, size, {}).to(memory_format=format_)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    features = torch.randn(batch_size, 3, size, size).to(memory_format=format_)
    target = torch.randint(CLASSES, (batch_size,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(features), target).backward()
        optimizer.step()

    for _ in range(WARM):
        step()
    began, faults = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    seconds = time.process_time() - began
    return {
        "milliseconds": 1e3 * seconds / steps,
        "faults": (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / steps,
    }


def alternate(network: str, rounds: int, steps: int) -> list[dict[str, Any]]:
    """A line for each setting: medians over rounds."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    for _ in range(rounds):
        for name in SETTINGS:
            only = [sys.executable, __file__, "--only", network, name, "--steps", str(steps)]
            done = subprocess.run(only, capture_output=True, text=True, check=True, env=environment)
            found[name].append(json.loads(done.stdout))
    lines = []
    for name, measured in found.items():
        ratios = [
            mine["milliseconds"] / usual["milliseconds"] for mine, usual in zip(measured, found["usual"], strict=True)
        ]
        values = {key: round(median(each[key] for each in measured), 1) for key in measured[0]}
        lines.append({"network": network, "setting": name, "ratio": round(median(ratios), 3), **values})
    return lines


def main() -> None:
    """Measure and print; with --output write the lines as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only[0], *SETTINGS[options.only[1]], options.steps)))
        return
    import torch

    from labo import machine

    about = {"rounds": options.rounds, "torch": torch.__version__, "processor": machine.processor()}
    lines = [{**line, **about} for network in NETWORKS for line in alternate(network, options.rounds, options.steps)]
    for line in lines:
        print("{network:10} {setting:14} {ratio:6} {milliseconds:8} ms {faults:8} page faults".format(**line))
    if options.output:
        csv_lines.write(options.output, lines)


if __name__ == "__main__":
    main()
