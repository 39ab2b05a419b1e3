"""Loops of other libraries, as a process of a group runs them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import head_ranks
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


def split_weight(model: Any, dimensions: tuple[int, ...]) -> None:
    """Split the classes of a model's head over the last dimension of a mesh."""
    mesh = init_device_mesh("cpu", dimensions)
    places = [*[Replicate()] * (len(dimensions) - 1), Shard(0)]
    model.lm_head.weight = nn.Parameter(distribute_tensor(model.lm_head.weight.detach(), mesh, places))


def parallelized(model: Any, **options: Any) -> None:
    """Split the classes of a model's head by a plan of tensor parallelism."""
    parallelize_module(model, init_device_mesh("cpu", (2,)), {"lm_head": ColwiseParallel(**options)})


def sharded(model: Any) -> None:
    """Shard a model by FSDP2; its head has no call of `fully_shard` of its own."""
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))


SHARDINGS: dict[str, Callable[[Any], None]] = {
    "weight": functools.partial(split_weight, dimensions=(2,)),
    "plan": functools.partial(parallelized, output_layouts=Replicate()),
    "plan, outputs not local": functools.partial(parallelized, output_layouts=Replicate(), use_local_output=False),
    "fsdp": sharded,
}
# What cannot be, or not so.
REFUSED: dict[str, Callable[[Any], None]] = {
    "two dimensions": functools.partial(split_weight, dimensions=(1, 2)),
    "sharded outputs": parallelized,
    "other examples": SHARDINGS["weight"],
}
FUSED: dict[str, Any] = {"alpha": 0.3, "beta": 4.0, "statistics": True}


def fused_step(shard: Callable[[Any], None] | None, *, before: bool = False) -> dict[str, Any]:
    """The losses, statistics and gradients of a fused model; under FSDP each process has examples of its own."""
    from labo.integrations.fused import fused_of
    from labo.integrations.transformers import fuse

    model, given = head_ranks.network("llama").train(), head_ranks.batch("llama")
    count = (given["labels"][:, 1:] != -100).sum()
    if shard is not None and before:
        shard(model)
    fuse(model, **FUSED)
    if shard is not None and not before:
        shard(model)
    if shard is sharded:  # which averages gradients
        given, count = {name: value[dist.get_rank() :: 2] for name, value in given.items()}, count / 2
    loss = model(**given, num_items_in_batch=count).loss
    loss.backward()
    fused: Any = fused_of(model)
    found = {"loss": loss.detach(), "statistics": fused.take_statistics(training=True)}
    found |= {name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for name, p in model.named_parameters()}
    with torch.no_grad():
        found["evaluated"] = model.eval()(**given, num_items_in_batch=count).loss
    return found


def refusal(name: str, *, before: bool) -> str:
    """What is said of a head that is sharded in another way, before it is fused or afterwards."""
    from labo.integrations.transformers import fuse

    model, given = head_ranks.network("llama").train(), head_ranks.batch("llama")
    if name == "other examples" and dist.get_rank():
        given = {key: value.flip(0) for key, value in given.items()}
    try:
        if before:
            REFUSED[name](model)
        fuse(model, **FUSED)
        if not before:
            REFUSED[name](model)
        model(**given)
    except ValueError as error:
        return str(error)
    return ""


def work(folder: Path) -> dict[Any, Any]:
    """What Accelerate trains and fused models do, then what Lightning does in the same group of processes."""
    found: dict[Any, Any] = {"labo": accelerated("labo", 2), MEMORY: accelerated(MEMORY, 2)}
    for before in (True, False):
        found |= {(name, before): fused_step(shard, before=before) for name, shard in SHARDINGS.items()}
        found |= {("refused", name, before): refusal(name, before=before) for name in REFUSED}
    from lightning_modules import Classifier, data, fit

    model, dataset = Classifier(criterion_of(MEMORY, None)), labo.IndexedDataset(data())
    # Lightning's own sampler would shuffle.
    loader = DataLoader(dataset, 2, sampler=DistributedSampler(dataset, shuffle=False))
    fit(model, loader, strategy="ddp", devices=2, use_distributed_sampler=False)
    found["lightning"] = model.state_dict()
    return found
