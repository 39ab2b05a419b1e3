"""Batches of training examples: drawn, divided among processes and accumulated parts, loaded, moved to the device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from labo import distributed, machine
from labo.errors import UserError
from labo.settings import TrainingSettings
from labo.tasks.base import Examples, copy_to

# Training examples of up to so many bytes are kept on the accelerator.
MAX_RESIDENT_BYTES = 2**30
MAX_WORKERS = 8


class Batches(Protocol):
    """The batches of an epoch, of all processes together: lists of indices, as many in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch that is iterated over next."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


class ExampleBatches:
    """Batches of `batch_size` of `size` examples, in an order that is a function of the seed and the epoch alone.

    The last batch holds the rest.

    Example:
        >>> batches = ExampleBatches(5, 2, seed=0)
        >>> [len(batch) for batch in batches]
        [2, 2, 1]
        >>> list(batches) == list(batches)
        True
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch whose order is iterated over next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        for batch in torch.randperm(self.size, generator=generator).split(self.batch_size):
            yield batch.tolist()


class DividedBatches(Sampler[list[int]]):
    """This process's parts of each batch, which are accumulated into one optimizer step.

    The first process has the first examples of a batch. Every process has as many parts of it, none empty, whose sizes
    differ by at most 1: `accumulation` of them, and of a batch that is smaller than the others only as many as its
    examples fill.

    Args:
        batches: of all processes together.
        part_size: examples in a full part; 1 where batches have different sizes but can all be divided.
        accumulation: parts of a batch in one process.
        processes, rank: the number of processes that train together, and the number of this one.

    Example:
        >>> [list(DividedBatches([[0, 1, 2, 3], [4, 5, 6]], part_size=2, processes=2, rank=rank)) for rank in (0, 1)]
        [[[0, 1], [4, 5]], [[2, 3], [6]]]
    """

    def __init__(
        self, batches: Any, *, part_size: int = 1, accumulation: int = 1, processes: int = 1, rank: int = 0
    ) -> None:
        self.batches, self.part_size, self.accumulation = batches, part_size, accumulation
        self.processes, self.rank = processes, rank
        self.skipped = 0

    def start_epoch(self, epoch: int, skip: int = 0) -> None:
        """Select the epoch that is iterated over next, without its first `skip` batches."""
        self.batches.set_epoch(epoch)
        self.skipped = skip

    def __iter__(self) -> Iterator[list[int]]:
        for batch in islice(self.batches, self.skipped, None):
            own = torch.tensor(batch).tensor_split(self.processes)[self.rank]
            largest = -(-len(batch) // self.processes)
            parts = min(self.accumulation, -(-largest // self.part_size), len(batch) // self.processes)
            for part in own.tensor_split(parts):
                yield part.tolist()


def divide(examples: Any, settings: TrainingSettings, seed: int) -> tuple[Batches, DividedBatches]:
    """(the batches of a run, this process's parts of them).

    Raises:
        UserError: they cannot be divided among the processes and the parts of each.
    """
    processes, accumulation = distributed.world_size(), settings.accumulation
    if settings.batch_size is not None:
        check_divisible(len(examples), settings.batch_size, accumulation, processes)
        batches: Batches = ExampleBatches(len(examples), settings.batch_size, seed)
        part_size = settings.batch_size // processes // accumulation
    else:
        from labo.tasks.translation.batching import TokenBatches

        assert settings.tokens is not None  # the settings have one of the two
        batches = TokenBatches(examples.lengths, settings.tokens, seed, least=processes * accumulation)
        part_size = 1
    divided = {"accumulation": accumulation, "processes": processes, "rank": distributed.rank()}
    return batches, DividedBatches(batches, part_size=part_size, **divided)


def check_divisible(examples: int, batch_size: int, accumulation: int, processes: int) -> None:
    """Refuse batches that cannot be divided among the processes and the parts of each.

    Raises:
        UserError: they cannot.
    """
    if batch_size % (processes * accumulation):
        among = [f"{processes} processes"] * (processes > 1) + [f"{accumulation} parts"] * (accumulation > 1)
        raise UserError(
            f"Expected setting `batch_size` to be divisible among {' of '.join(among)}, but got {batch_size}."
        )
    if 0 < examples % batch_size < processes:
        raise UserError(
            f"Expected the last batch of an epoch to have an example for each of {processes} processes, but of "
            f"{examples} examples in batches of {batch_size} it has {examples % batch_size}: take another batch_size."
        )


class ResidentExamples:
    """Examples that stay on a device; a batch is read there without waiting for the device."""

    def __init__(self, examples: Examples, device: torch.device) -> None:
        self.features, self.target = examples.features.to(device), examples.target.to(device)

    def __len__(self) -> int:
        return len(self.target)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        chosen = copy_to(torch.tensor(indices), self.target.device)
        return {"features": self.features[chosen], "labels": self.target[chosen]}


def move_if_it_fits(examples: Examples, device: torch.device) -> Any:
    """The examples on the device for the whole training, if they `fit` there; else as they are."""
    return ResidentExamples(examples, device) if fit(examples, device) else examples


def fit(examples: Examples, device: torch.device) -> bool:
    """Whether examples are kept on a device: an accelerator, and a tensor of at most `MAX_RESIDENT_BYTES`."""
    features: Any = examples.features  # images may still be encoded
    return device.type != "cpu" and isinstance(features, Tensor) and features.nbytes <= MAX_RESIDENT_BYTES


def worker_count(examples: Any, device: torch.device) -> int:
    """The number of worker processes that load: none on a CPU, which is training, nor for resident examples."""
    if device.type == "cpu" or isinstance(examples, ResidentExamples):
        return 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_WORKERS, machine.cores() // beside - 1))


def make_loader(examples: Any, batches: DividedBatches, device: torch.device, workers: int) -> DataLoader[Any]:
    """The loader of these batches; its order is that of `batches` with any number of workers.

    Without workers, iterating over it draws one number from torch's global generator, as torch has it. With workers it
    has a generator of its own: it would draw only when its workers start, which is another epoch in a resumed run.
    """
    options: dict[str, Any] = {}
    if workers:
        generator = torch.Generator().manual_seed(0)
        options = {"num_workers": workers, "persistent_workers": True, "generator": generator}
        options["pin_memory"] = device.type == "cuda"
    return DataLoader(examples, batch_sampler=batches, collate_fn=identity_collate, **options)


def on_device(batches: Iterator[dict[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The batches of a loader on the device.

    Raises:
        UserError: an example cannot be read.
    """
    try:
        for batch in batches:
            yield to_device(batch, device)
    except UserError as error:
        raise unwrap_worker_error(error) from error


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on the device, copied without waiting for it."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def identity_collate(batch: Any) -> Any:
    """The batch itself: datasets here give whole batches."""
    return batch


def unwrap_worker_error(error: UserError) -> UserError:
    """The one sentence of an error in a worker, which torch raises with the worker's traceback as its message."""
    lines = str(error).strip().splitlines()
    return error if len(lines) < 2 else UserError(lines[-1].partition(": ")[2])
