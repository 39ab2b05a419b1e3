"""What processes that train together tell each other, so that what a regularizer remembers is the same in all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from labo import machine
from labo.errors import UserError

Made = TypeVar("Made")
# What a process waits at when another has gone says one of these.
_GONE = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
_known: dict[str, Any] = {}


def together() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first() -> bool:
    """Whether this is the process that writes, shows and prints; the only one is it."""
    return together() == 1 or dist.get_rank() == 0


def wait() -> None:
    """Until all processes are here."""
    if together() > 1:
        dist.barrier()


def shared(make: Callable[[], Made]) -> Made:
    """What `make` gives the first process, in all of them; the others wait for it and do not call theirs."""
    if together() == 1:
        return make()
    found: list[Any] = [make() if first() else None]
    dist.broadcast_object_list(found)
    return found[0]


def in_turn(make: Callable[[], Made]) -> Made:
    """What `make` gives each process; the first goes first, and the others find what it left on the disk."""
    if not first():
        wait()
        return make()
    made = make()
    wait()
    return made


@contextmanager
def group() -> Iterator[None]:
    """The processes that torchrun started, joined; nothing to do where there is one.

    Raises:
        UserError: another process has gone, or there are more processes than GPUs here.
    """
    if machine.launched() == 1 or together() > 1:
        yield
        return
    from torch.distributed.rendezvous import rendezvous

    gpu = torch.cuda.is_available()
    if gpu:
        _take_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, count = next(rendezvous("env://"))
    _known["store"] = store
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=rank, world_size=count)
    try:
        yield
        wait()
    except BaseException as error:
        fails_first()
        if gone(error):
            raise UserError(
                "Another process of this run has ended; the same command goes on from the last checkpoint."
            ) from error
        raise
    finally:
        dist.destroy_process_group()
        _known.pop("store")


def _take_gpu(place: int) -> None:
    """Use the GPU of this place among those of the machine."""
    count = torch.cuda.device_count()
    if place >= count:
        raise UserError(f"Expected at most as many processes as there are GPUs here ({count}), but got more.")
    torch.cuda.set_device(place)


def gone(error: BaseException) -> bool:
    """Whether an error means that another process, which this one waited for, has ended."""
    return together() > 1 and isinstance(error, RuntimeError) and any(text in str(error) for text in _GONE)


def fails_first() -> bool:
    """Whether it is this process that tells of a failure: the first to ask, for the others fail because it did."""
    if machine.launched() == 1:
        return True
    if "fails" not in _known:
        try:
            _known["fails"] = _known["store"].add("labo/failures", 1) == 1
        except (KeyError, RuntimeError):  # never joined, or the store has gone with its process
            _known["fails"] = os.environ["RANK"] == "0"
    return _known["fails"]


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes; the tensor itself where there is one."""
    if together() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gathered(rows: Tensor) -> Tensor:
    """The rows (N, …) of all processes in the order of their ranks; N may differ between them."""
    count = together()
    if count == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(sizes))
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])
