"""What a training step of a translator costs: LABO from hidden states beside Transformers' `label_smoothing_factor`.

python benchmarks/translation_cost.py --rounds 15 --output results/bench/translation.csv

A step is what both Trainers do with a batch: forward, loss, backward, Adam. Times are of steps in alternation in one
process, in both orders, and the ratio is the median of the ratios; memory is of one step in a process of its own, after
a step has made gradients and the optimizer's state: the peak of the whole process, and what the step takes beyond what
lay there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import csv_lines
import torch

OURS, THEIRS = "labo, linear", "transformers, label_smoothing_factor"
SEEN = (THEIRS, OURS, "labo, whole logits")
ALPHA, BETA = 0.1, 2.0


def trainer(name: str, asked: argparse.Namespace) -> Any:
    """The Trainer of a contender, with fresh weights."""
    from transformers import Trainer, TrainingArguments

    from labo import LabelRegularizedLoss, regularizers
    from labo.integrations.transformers import LabelRegularizedTrainer
    from labo.tasks.translation import models

    torch.manual_seed(0)
    ids = {"vocabulary_size": asked.vocabulary, "pad": 0, "bos": 2, "eos": 3}
    model = models.build(asked.model, ids, {"dropout": 0.1})
    options: dict[str, Any] = {"report_to": [], "output_dir": tempfile.mkdtemp(), "bf16": asked.precision == "bfloat16"}
    options |= {"use_cpu": asked.device == "cpu", "dataloader_pin_memory": False}
    if name == THEIRS:
        return Trainer(model=model, args=TrainingArguments(label_smoothing_factor=ALPHA, **options))
    loss = LabelRegularizedLoss(regularizers.create("labo", alpha=ALPHA, beta=BETA))
    return LabelRegularizedTrainer(model=model, args=TrainingArguments(**options), loss=loss, linear=name == OURS)


def batch(asked: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Sentences of 25 pieces, the last of a tenth of them padding, with what the decoder reads."""
    from labo.tasks.translation.models import decoder_inputs

    draw = torch.Generator().manual_seed(0)
    shape = (max(1, asked.tokens // 25), 25)
    source, labels = (torch.randint(4, asked.vocabulary, shape, generator=draw) for _ in range(2))
    labels[::10, 20:] = -100
    read = decoder_inputs(labels, {"bos": 2, "pad": 0})
    given = {
        "input_ids": source,
        "attention_mask": torch.ones_like(source),
        "labels": labels,
        "decoder_input_ids": read,
    }
    return {name: value.to(asked.device) for name, value in given.items()}


def step_of(name: str, asked: argparse.Namespace) -> Callable[[], None]:
    """A training step of a contender."""
    made, given = trainer(name, asked), batch(asked)
    model = made.accelerator.prepare_model(made.model.to(asked.device))
    count = (given["labels"] != -100).sum()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98))
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        made.compute_loss(model, dict(given), num_items_in_batch=count).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], device: str) -> float:
    """Of one step."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - began


def times(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Milliseconds of each contender, and its ratio to Transformers' with the quartiles."""
    found: dict[str, dict[str, Any]] = {}
    theirs = step_of(THEIRS, asked)
    for name in SEEN:
        ours = step_of(name, asked) if name != THEIRS else theirs
        for step in (theirs, ours):
            seconds(step, asked.device)
        own, ratios = [], []
        for turn in range(asked.rounds):
            pair = [seconds(step, asked.device) for step in ((theirs, ours) if turn % 2 else (ours, theirs))]
            base, mine = pair if turn % 2 else pair[::-1]
            own.append(mine)
            ratios.append(mine / base)
        low, _, high = quantiles(ratios, n=4)
        found[name] = {"milliseconds": round(median(own) * 1e3, 1), "ratio": round(median(ratios), 3)}
        found[name] |= {"ratio_low": round(low, 3), "ratio_high": round(high, 3)}
    return found


def memory(name: str, asked: argparse.Namespace) -> dict[str, float]:
    """MiB at the peak of a step, of the process and of the step alone; of the device's memory where there is one."""
    step = step_of(name, asked)
    step()
    if asked.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peak = torch.cuda.max_memory_allocated()
    else:
        # The allocator may still hold what the first step freed: without it the second would seem to take nothing.
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
        before = _status("VmRSS")
        step()
        peak = _status("VmHWM")
    return {"peak_mib": round(peak / 2**20, 1), "step_mib": round((peak - before) / 2**20, 1)}


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[key].split()[0]) * 1024


def memories(given: list[str]) -> dict[str, dict[str, float]]:
    """`memory` of each contender, in a process each."""
    found = {}
    for name in SEEN:
        command = [sys.executable, __file__, *given, "--memory-of", name]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        found[name] = json.loads(lines[-1])
    for entry in found.values():
        entry["peak_ratio"] = round(entry["peak_mib"] / found[THEIRS]["peak_mib"], 3)
        entry["step_ratio"] = round(entry["step_mib"] / found[THEIRS]["step_mib"], 3)
    return found


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="transformer_iwslt_de_en", help="a preset of the translation tasks")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--tokens", type=int, default=2_000, help="target tokens of a batch, padding included")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, help="a CSV file; printed in any case")
    parser.add_argument("--memory-of", choices=SEEN, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print a line for each contender, and write them."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    if asked.memory_of:
        print(json.dumps(memory(asked.memory_of, asked)))
        return
    held, timed = memories(sys.argv[1:]), times(asked)
    machine = torch.cuda.get_device_name() if asked.device == "cuda" else "cpu"
    told = ("model", "vocabulary", "tokens", "precision", "threads", "rounds")
    shared = {name: getattr(asked, name) for name in told}
    lines = [{"contender": name, "device": machine, **shared, **timed[name], **held[name]} for name in SEEN]
    for line in lines:
        print(json.dumps(line))
    if asked.output:
        csv_lines.write(asked.output, lines)


if __name__ == "__main__":
    main()
