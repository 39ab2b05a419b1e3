"""The cost of the regularizers: time of a training step relative to plain cross-entropy, and size of the state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from labo import LabelRegularizedLoss, regularizers
from labo.outer import trust
from labo.outer.trust import Decision
from labo.regularizers import Regularizer

MIN_SECONDS = 0.05


@dataclass(frozen=True)
class Setting:
    """A network of `widths` (inputs first, classes last) and a batch out of `examples`."""

    name: str
    widths: tuple[int, ...]
    batch: int
    examples: int


SETTINGS = (
    Setting("digits", (64, 256, 256, 10), 32, 400),  # the task's own network
    Setting("10k classes", (256, 10_000), 64, 1_000),
)


def costs(setting: Setting, *, rounds: int = 9) -> Iterator[dict[str, Any]]:
    """One line per member with its defaults: time of a training step relative to `none`, and bytes of its state."""
    plain, _ = _training_step(setting, "none")
    for name in regularizers.available():
        step, regularizer = _training_step(setting, name)
        times = max(3, round(MIN_SECONDS / _seconds(plain, 3)))
        _seconds(step, times)
        ratios = []
        for index in range(rounds):
            pair = [_seconds(each, times) for each in ((plain, step) if index % 2 else (step, plain))]
            theirs, mine = pair if index % 2 else pair[::-1]
            ratios.append(mine / theirs)
        state = sum(value.numel() * value.element_size() for value in regularizer.state_dict().values())
        yield {"method": name, "setting": setting.name, "compute": round(median(ratios), 2), "state_bytes": state}


def _seconds(step: Callable[[], None], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - began) / times


def _network(setting: Setting, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for width, following in zip(setting.widths, setting.widths[1:], strict=False):
        parts += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _training_step(setting: Setting, name: str) -> tuple[Callable[[], None], Regularizer]:
    """(a function that runs a training step, the regularizer)."""
    large = {"allow_large": True} if "allow_large" in regularizers.describe(name).defaults else {}
    model, regularizer = _network(setting, 0), regularizers.create(name, **large)
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(setting.examples, setting.widths[0], generator=draw)
    target = torch.randint(setting.widths[-1], (setting.examples,), generator=draw)
    setup_inputs = {
        "class_counts": target.bincount(minlength=setting.widths[-1]),
        "model": model,
        "teacher": _network(setting, 1),
        "examples": setting.examples,
        "epochs": 10,
        "kept": torch.arange(setting.examples),
        "decision": Decision(trust.STRONG.name, trust.STRONG.method, trust.STRONG.options, None, 1.0),
    }
    while provided := {need: setup_inputs[need] for need in regularizer.missing if need in setup_inputs}:
        regularizer.provide(**provided)  # the method chosen by a decision has needs of its own
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if regularizer.learnt():
        groups.append({"params": regularizer.learnt(), "weight_decay": 0.0})
    optimizer = torch.optim.SGD(groups, lr=0.01)
    if "optimizer" in regularizer.missing:
        regularizer.provide(optimizer=optimizer)
    criterion = LabelRegularizedLoss(regularizer)
    steps = 0

    def step() -> None:
        nonlocal steps
        start = steps * setting.batch % (setting.examples - setting.batch)
        at = torch.arange(start, start + setting.batch)
        batch_inputs = _batch_inputs(regularizer, features, at, steps, setting)
        optimizer.zero_grad()
        criterion(model(features[at]), target[at], **batch_inputs).backward()
        optimizer.step()
        steps += 1

    step()  # allocates what the first batch allocates
    return step, regularizer


def _batch_inputs(
    regularizer: Regularizer, features: Tensor, at: Tensor, step: int, setting: Setting
) -> dict[str, Any]:
    available: dict[str, Callable[[], Any]] = {
        "indices": lambda: at,
        "inputs": lambda: features[at],
        "partners": lambda: features[at.flip(0)],
        "epoch": lambda: step * setting.batch // setting.examples,
        "step": lambda: step,
        "progress": lambda: 0.5,
    }
    return {need: available[need]() for need in regularizer.needs if need in available}
