"""What LABO's memory costs in a training step, beside label smoothing, and what it keeps.

python benchmarks/memory_cost.py --output results/bench/memory-cost.csv

A step is forward, loss, backward and the optimizer's, of the network and batch of a task: the multilayer perceptron of
digits (64 examples), the convnet on 32 x 32 images (128), and the `tiny` translator (2,048 tokens, 8,000 pieces), where
the loss is taken from the hidden states where it can, as `labo train` takes it, and beside that from logits. Steps are
timed in alternation in one process on one thread, in both orders; the table has the median of the ratios and their
quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import csv_lines
import torch
from torch import Tensor, nn

from labo import LabelRegularizedLoss, machine, regularizers

BASELINE = "label_smoothing"
METHODS = (BASELINE, "labo[prior=memory]", "elr")
Step = Callable[[], None]


def criterion(method: str, examples: int) -> LabelRegularizedLoss:
    """The loss of a method with its defaults, for so many training examples."""
    regularizer = regularizers.create(method)
    if "examples" in regularizer.missing:
        regularizer.provide(examples=examples)
    return LabelRegularizedLoss(regularizer)


def course(
    method: str, network: nn.Module, features: Tensor, target: Tensor, optimizer: Any, examples: int
) -> tuple[Step, int]:
    """(a step over batches drawn from so many examples, the bytes that the method keeps of them)."""
    loss = criterion(method, examples)
    labels = torch.randint(int(target.max()) + 1, (examples,), generator=torch.Generator().manual_seed(1))

    def step() -> None:
        at = torch.randint(examples, (len(features),))
        told = {"indices": at} if "indices" in loss.regularizer.needs else {}
        optimizer.zero_grad()
        loss(network(features), labels[at], **told).backward()
        optimizer.step()

    step()
    memory = loss.regularizer.prediction_memory
    return step, 0 if memory is None else memory.nbytes


def digits(method: str) -> tuple[Step, int]:
    """The network, batch and optimizer of the task digits."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    return course(method, network, torch.randn(64, 64), torch.tensor([9]), optimizer, 400)


def convnet(method: str) -> tuple[Step, int]:
    """The convnet of the image tasks, 50,000 examples of ten classes."""
    from labo.tasks.images import models

    torch.manual_seed(0)
    network: nn.Module = models.build("convnet", 10, 32, {})
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return course(method, network, torch.randn(128, 3, 32, 32), torch.tensor([9]), optimizer, 50_000)


def translator(method: str, *, linear: bool = True) -> tuple[Step, int]:
    """The `tiny` translator on 400,000 target tokens; with `linear` from hidden states where the method can."""
    from labo.integrations import heads
    from labo.networks import logits_of
    from labo.tasks.translation import models

    torch.manual_seed(0)
    pieces, tokens, total = 8_000, 2_048, 400_000
    network: Any = models.build("tiny", {"vocabulary_size": pieces, "pad": 0, "bos": 2, "eos": 3}, {"dropout": 0.1})
    optimizer, loss = torch.optim.AdamW(network.parameters(), lr=4e-3), criterion(method, total)
    shape = (tokens // 16, 16)
    source, read = torch.randint(4, pieces, shape), torch.randint(4, pieces, shape)
    labels = torch.randint(4, pieces, (total,), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": read}

    def step() -> None:
        at = torch.randint(total, (shape[0] * shape[1],))
        told = {"indices": at} if "indices" in loss.regularizer.needs else {}
        optimizer.zero_grad()
        if linear and loss.regularizer.has_linear_form:
            with heads.hidden_states(network) as head:
                hidden = logits_of(network(**inputs))
            value = loss.linear(hidden.flatten(0, 1), head.weight, labels[at], head.bias, **told)
        else:
            value = loss(logits_of(network(**inputs)).flatten(0, 1), labels[at], **told)
        value.backward()
        optimizer.step()

    step()
    memory = loss.regularizer.prediction_memory
    return step, 0 if memory is None else memory.nbytes


SETTINGS: dict[str, Callable[[str], tuple[Step, int]]] = {
    "digits": digits,
    "convnet": convnet,
    "tiny translator": translator,
    "tiny translator from logits": lambda method: translator(method, linear=False),
}


def seconds(step: Step, times: int) -> float:
    """Of one step, over so many."""
    began = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - began) / times


def main() -> None:
    """Measure, write and print a line a method and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--settings", default=",".join(SETTINGS), help="Some of them, separated by commas.")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name, make in SETTINGS.items():
        if name not in asked.settings.split(","):
            continue
        baseline, _ = make(BASELINE)
        times = max(2, round(0.2 / seconds(baseline, 3)))
        for method in METHODS:
            step, kept = make(method)
            seconds(step, times)
            ours, ratios = [], []
            for index in range(asked.rounds):
                pair = [seconds(each, times) for each in ((baseline, step) if index % 2 else (step, baseline))]
                theirs, mine = pair if index % 2 else pair[::-1]
                ours.append(mine)
                ratios.append(mine / theirs)
            low, _, high = quantiles(ratios, n=4)
            line = {"setting": name, "method": method, "milliseconds": round(median(ours) * 1e3, 3)}
            line |= {"ratio": round(median(ratios), 3), "ratio_low": round(low, 3), "ratio_high": round(high, 3)}
            lines.append({**line, "bytes": kept, **machine.versions()})
            print({key: lines[-1][key] for key in ("setting", "method", "milliseconds", "ratio", "bytes")}, flush=True)
    if asked.output is not None:
        csv_lines.write(asked.output, lines)


if __name__ == "__main__":
    main()
