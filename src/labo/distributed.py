"""Communication between the processes of a run, which keeps the state of a regularizer identical in all of them."""

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

T = TypeVar("T")
# Substrings of the errors of a collective whose peer has exited.
_PEER_FAILURES = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
# "store": the store that this process joined; "reports": whether this process reports failures.
_state: dict[str, Any] = {}


def world_size() -> int:
    """The number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the process that writes files and prints: rank 0."""
    return rank() == 0


def device() -> torch.device:
    """The accelerator that this process trains on, or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None and accelerator.type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    # Processes communicate over gloo where there is no CUDA, and gloo needs tensors on the CPU.
    return torch.device("cpu") if accelerator is None or world_size() > 1 else accelerator


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def broadcast_from_main(function: Callable[[], T], errors: tuple[type[Exception], ...] = ()) -> T:
    """Call `function` in the main process alone, and return its result in all of them, or raise its error of `errors`.

    Any other error ends the main process, and the others fail because their peer has exited.
    """
    if world_size() == 1:
        return function()
    result: list[Any] = [None, None]
    if is_main_process():
        try:
            result[0] = function()
        except errors as error:
            result[1] = error
    dist.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]


def main_process_first(function: Callable[[], T]) -> T:
    """Call `function` in every process: first in the main one, then in the others, which can read its files."""
    if not is_main_process():
        barrier()
        return function()
    result = function()
    barrier()
    return result


@contextmanager
def process_group() -> Iterator[None]:
    """Within this context, the processes started by torchrun form a process group; a single process needs none.

    Raises:
        UserError: another process has exited, or there are more processes than GPUs.
    """
    if machine.launched() == 1 or world_size() > 1:
        yield
        return
    from torch.distributed.rendezvous import rendezvous

    gpu = torch.cuda.is_available()
    if gpu:
        _select_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    store, own_rank, count = next(rendezvous("env://"))
    _state["store"] = store
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=own_rank, world_size=count)
    try:
        yield
        barrier()
    except BaseException as error:
        should_report_failure()
        if is_peer_failure(error):
            raise UserError(
                "Another process of this run has exited; the same command resumes from the last checkpoint."
            ) from error
        raise
    finally:
        dist.destroy_process_group()
        _state.pop("store")


def _select_gpu(local_rank: int) -> None:
    """Select the GPU with index `local_rank`."""
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(f"Expected at most one process per GPU ({count} on this machine), but got more.")
    torch.cuda.set_device(local_rank)


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error means that another process, which this one was waiting for, has exited."""
    return world_size() > 1 and isinstance(error, RuntimeError) and any(text in str(error) for text in _PEER_FAILURES)


def should_report_failure() -> bool:
    """Whether this process reports the failure: only the first process that fails does."""
    if machine.launched() == 1:
        return True
    if "reports" not in _state:
        try:
            _state["reports"] = _state["store"].add("labo/failures", 1) == 1
        except (KeyError, RuntimeError):  # never joined, or the process of the store has exited
            _state["reports"] = os.environ["RANK"] == "0"
    return _state["reports"]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor itself in a single process."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def all_gather(rows: Tensor) -> Tensor:
    """The rows (N, …) of all processes in the order of their ranks; N may differ between processes."""
    count = world_size()
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


def all_gather_objects(value: T) -> list[T]:
    """The values of all processes in the order of their ranks; they are pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
