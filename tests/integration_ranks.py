"""Loops of other libraries, as a process of a group runs them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import labo
from labo import LabelRegularizedLoss, regularizers
from labo.integrations.accelerate import target_count

CLASSES, LENGTH = 4, 5
MEMORY = "labo[prior=memory]"


def sentences() -> tuple[Tensor, Tensor]:
    """Eight sentences with one to five labels: parts of a step have different numbers of them."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, LENGTH, 3, generator=draw), torch.randint(CLASSES, (8, LENGTH), generator=draw)
    for index, length in enumerate((5, 1, 4, 1, 2, 1, 5, 3)):
        y[index, length:] = -100
    return x, y


def examples() -> TensorDataset:
    x, y = sentences()
    return TensorDataset(x[:, 0], y[:, 0])


def criterion_of(method: str, count: int | None = 8) -> LabelRegularizedLoss:
    """The loss of a method, for `count` examples; None leaves the number to a callback."""
    member = regularizers.create(method)
    if count is not None and "examples" in member.missing:
        member.provide(examples=count)
    return LabelRegularizedLoss(member)


def accelerated(method: str, accumulation: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The states of network and criterion after three steps of all eight examples."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    per_batch = 8 // accumulation // accelerator.num_processes
    criterion, network = criterion_of(method), nn.Linear(3, CLASSES)
    dataset: Any = TensorDataset(*sentences()) if method == "labo" else labo.IndexedDataset(examples())
    model, optimizer, loader = accelerator.prepare(
        network, torch.optim.SGD(network.parameters(), lr=0.5), DataLoader(dataset, per_batch)
    )
    for _ in range(3):
        batches = list(loader)
        count = target_count(accelerator, [batch[1] for batch in batches])
        for number, (x, y, *indices) in enumerate(batches, 1):
            with nullcontext() if number == len(batches) else accelerator.no_sync(model):
                logits = model(x).flatten(0, -2)
                batch = {"indices": indices[0]} if indices else {}
                accelerator.backward(criterion.mean_over(logits, y.flatten(), count, **batch))
        optimizer.step()
        optimizer.zero_grad()
    return accelerator.unwrap_model(model).state_dict(), criterion.state_dict()


def work(folder: Path) -> dict[str, Any]:
    """What Accelerate trains, then what Lightning does in the same group of processes."""
    found: dict[str, Any] = {"labo": accelerated("labo", 2), MEMORY: accelerated(MEMORY, 2)}
    from lightning_modules import Classifier, data, fit

    model, dataset = Classifier(criterion_of(MEMORY, None)), labo.IndexedDataset(data())
    # Lightning's own sampler would shuffle.
    loader = DataLoader(dataset, 2, sampler=DistributedSampler(dataset, shuffle=False))
    fit(model, loader, strategy="ddp", devices=2, use_distributed_sampler=False)
    found["lightning"] = model.state_dict()
    return found
