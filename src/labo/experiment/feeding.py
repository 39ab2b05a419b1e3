"""Which examples make a batch, in which process and part of it, and how they come to where the network is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

from labo import machine
from labo.errors import UserError
from labo.tasks.base import Examples

# Training examples up to so many bytes are kept on the accelerator.
RESIDENT_BYTES = 2**30
MOST_WORKERS = 8


class Order(Sampler[int]):
    """A new order every epoch that is a function of the seed and the epoch alone, so that resuming is exact."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.size, generator=generator).tolist())


class Batches(BatchSampler):
    """The parts of each batch that are this process's: `accumulation` of them, one after the other, make a step.

    A batch is the next `batch_size` examples of the order, however many processes and parts it is divided among: the
    first process has the first of them. The last batch of an epoch holds what is left; every process has the same
    number of parts of it, none empty, whose sizes differ by at most 1.

    Args:
        order: the examples of an epoch.
        batch_size: of all processes together.
        accumulation: parts of a batch in one process.
        processes, rank: how many train together, and which this one is.

    Raises:
        UserError: a batch cannot be divided so.

    Example:
        >>> [list(Batches(range(7), 4, accumulation=2, processes=1, rank=rank)) for rank in (0,)]
        [[[0, 1], [2, 3], [4, 5], [6]]]
        >>> [list(Batches(range(7), 4, accumulation=1, processes=2, rank=rank)) for rank in (0, 1)]
        [[[0, 1], [4, 5]], [[2, 3], [6]]]
    """

    def __init__(
        self, order: Any, batch_size: int, *, accumulation: int = 1, processes: int = 1, rank: int = 0
    ) -> None:
        check(len(order), batch_size, accumulation, processes)
        self.sampler, self.batch_size, self.drop_last = order, batch_size, False
        self.accumulation, self.processes, self.rank = accumulation, processes, rank

    def _parts(self, size: int) -> int:
        """How many parts each process makes of `size` examples."""
        least, most = size // self.processes, math.ceil(size / self.processes)
        whole = self.batch_size // self.processes // self.accumulation
        return min(math.ceil(most / whole), least)

    def __len__(self) -> int:
        whole, left = divmod(len(self.sampler), self.batch_size)
        return whole * self.accumulation + (self._parts(left) if left else 0)

    def __iter__(self) -> Iterator[list[int]]:
        examples = list(self.sampler)
        for begin in range(0, len(examples), self.batch_size):
            batch = torch.tensor(examples[begin : begin + self.batch_size])
            mine = batch.tensor_split(self.processes)[self.rank]
            for part in mine.tensor_split(self._parts(len(batch))):
                yield part.tolist()


class TokenParts(BatchSampler):
    """As `Batches`, of batches that hold about as many tokens each.

    Every process has `accumulation` parts of each batch, none empty, whose sizes differ by at most 1.

    Args:
        batches: of all processes together, each of at least processes * accumulation examples.
        accumulation, processes, rank: as in `Batches`.

    Example:
        >>> list(TokenParts([[4, 2, 0], [1, 3]], accumulation=1, processes=2, rank=1))
        [[0], [3]]
    """

    def __init__(self, batches: Any, *, accumulation: int = 1, processes: int = 1, rank: int = 0) -> None:
        self.sampler = batches  # which is told the epoch under this name
        self.accumulation, self.processes, self.rank = accumulation, processes, rank
        self.batch_size, self.drop_last = 1, False

    def __len__(self) -> int:
        return len(self.sampler) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.sampler:
            mine = torch.tensor(batch).tensor_split(self.processes)[self.rank]
            for part in mine.tensor_split(self.accumulation):
                yield part.tolist()


def batches(examples: Any, settings: Mapping[str, Any], seed: int, *, processes: int, rank: int) -> BatchSampler:
    """The batches of a run: of `settings["tokens"]` tokens, or of `settings["batch_size"]` examples.

    Raises:
        UserError: they cannot be divided among the processes and the parts of each.
    """
    divided = {"accumulation": int(settings.get("accumulation", 1)), "processes": processes, "rank": rank}
    if "tokens" not in settings:
        return Batches(Order(len(examples), seed), settings["batch_size"], **divided)
    from labo.tasks.translation.batching import TokenBatches

    least = processes * divided["accumulation"]
    return TokenParts(TokenBatches(examples.lengths, settings["tokens"], seed, least=least), **divided)


def check(examples: int, batch_size: int, accumulation: int, processes: int) -> None:
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


def near(examples: Examples, device: torch.device) -> Examples:
    """The examples on the device, where they stay for the whole training, if they `fit`; else as they are."""
    if not fit(examples, device):
        return examples
    return replace(examples, features=examples.features.to(device), target=examples.target.to(device))


def fit(examples: Examples, device: torch.device) -> bool:
    """Whether examples are kept on a device: one that is no CPU, and a tensor of at most `RESIDENT_BYTES`."""
    features: Any = examples.features  # pictures are perhaps still encoded
    return device.type != "cpu" and isinstance(features, Tensor) and features.nbytes <= RESIDENT_BYTES


def workers(examples: Examples, device: torch.device) -> int:
    """How many processes read ahead: none on a CPU, which trains meanwhile, nor for what is on the device already."""
    features: Any = examples.features
    if device.type == "cpu" or (isinstance(features, Tensor) and features.device.type == device.type):
        return 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_WORKERS, machine.cores() // beside - 1))


def loader(examples: Any, batches: BatchSampler, device: torch.device, count: int) -> DataLoader:
    """The batches, on the device, read ahead by `count` processes.

    The order of the examples is that of `batches` with any count. A loader without processes takes a number of torch's
    global generator each epoch, which is how torch has it; one with processes has a generator of its own, because it
    would take that number only when its processes start, which in a resumed run is in another epoch.
    """
    options: dict[str, Any] = {}
    if count:
        own = torch.Generator().manual_seed(0)
        options = {
            "num_workers": count,
            "persistent_workers": True,
            "generator": own,
            "pin_memory": device.type != "cpu",
        }
    made = DataLoader(examples, batch_sampler=batches, collate_fn=as_it_is, **options)
    # As one process: the batches are divided already.
    return prepare_data_loader(
        made, device, num_processes=1, process_index=0, put_on_device=True, rng_types=[], non_blocking=count > 0
    )


def as_it_is(batch: Any) -> Any:
    """A batch that comes whole needs no collating."""
    return batch


def told(error: UserError) -> UserError:
    """An error of a process that reads ahead, which torch tells with its traceback, as the one sentence it was."""
    lines = str(error).strip().splitlines()
    return error if len(lines) < 2 else UserError(lines[-1].partition(": ")[2])
