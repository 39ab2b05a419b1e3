"""Pictures that are still files or JPEG bytes: decoded all at once, or when a batch asks for them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from labo import machine
from labo.errors import UserError
from labo.tasks.images import pictures

MOST_THREADS = 16
# A piece of lazily decoded pictures holds at most so many bytes, and so few pictures where they are large.
PIECE_BYTES = 2**24


class Encoded(ABC):
    """Pictures in their files' encoding.

    `name` says what the picture at an index is called, and holds no picture in memory.
    """

    name: Callable[[int], str]

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def picture(self, index: int) -> tuple[str, Path | bytes]:
        """(what the picture is called, its file or its bytes)."""


@dataclass(frozen=True)
class Numbered:
    """Names of pictures that have none of their own: their number in what holds them, counted from 1."""

    source: str
    noun: str = "picture"

    def __call__(self, index: int) -> str:
        """`SOURCE, picture 18` of index 17."""
        return f"{self.source}, {self.noun} {index + 1}"


class Files(Encoded):
    """A file each."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [str(path) for path in paths]  # a million Path objects would take four times as much
        self.name = self.paths.__getitem__

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, index: int) -> tuple[str, Path | bytes]:
        """See `Encoded.picture`."""
        return self.paths[index], Path(self.paths[index])


class Blobs(Encoded):
    """Files put end to end in `data` (uint8), picture i from offsets[i] to offsets[i + 1].

    Raises:
        UserError: offsets that do not rise, or lead out of `data`.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray, source: str) -> None:
        self.offsets = offsets.astype(np.int64)
        fits = data.dtype == np.uint8 and data.ndim == self.offsets.ndim == 1 and len(self.offsets) > 0
        if not fits or self.offsets[0] < 0 or self.offsets[-1] > len(data) or (np.diff(self.offsets) < 0).any():
            raise UserError(f"The offsets of the pictures in '{source}' do not fit their bytes: the file is damaged.")
        self.data, self.name = data, Numbered(source)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def picture(self, index: int) -> tuple[str, Path | bytes]:
        """See `Encoded.picture`."""
        begin, end = self.offsets[index], self.offsets[index + 1]
        return self.name(index), self.data[begin:end].tobytes()


def decode_all(
    encoded: Encoded, size: int, crop: float, *, skip_unreadable: bool, keep: bool = True
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(pictures (M, size, size, 3), which of the N they are (M,), names of those that cannot be read).

    With `keep=False` the pictures are looked at and not kept: the first array is empty.

    Raises:
        UnreadableError: a picture cannot be read, unless `skip_unreadable`.
    """
    images = np.empty((len(encoded) if keep else 0, size, size, 3), np.uint8)
    readable = np.ones(len(encoded), bool)

    def put(index: int) -> str:
        name, content = encoded.picture(index)
        try:
            image = pictures.decode(content, name, size, crop)
        except pictures.UnreadableError:
            if not skip_unreadable:
                raise
            readable[index] = False
            return name
        if keep:
            images[index] = image
        return ""

    unreadable = [name for name in _map(put, range(len(encoded))) if name]
    kept = np.flatnonzero(readable)
    return (images[kept] if unreadable and keep else images), kept, unreadable


class Pictures:
    """Pictures decoded when they are asked for; used where a uint8 (N, 3, size, size) tensor is.

    `index` says which of `encoded` they are. Asking for a damaged one raises UserError and names it.
    """

    dtype = torch.uint8

    def __init__(self, encoded: Encoded, index: Tensor, size: int, crop: float = 1.0) -> None:
        self.encoded, self.index, self.size, self.crop = encoded, index, size, crop

    @property
    def shape(self) -> torch.Size:
        """(N, 3, size, size)."""
        return torch.Size((len(self.index), 3, self.size, self.size))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, chosen: Sequence[int] | slice | Tensor) -> Tensor:
        """The chosen pictures, decoded, uint8 (n, 3, size, size)."""

        def one(index: int) -> np.ndarray:
            name, content = self.encoded.picture(index)
            return pictures.decode(content, name, self.size, self.crop)

        images = list(_map(one, self.index[chosen].tolist()))
        if not images:
            return torch.empty((0, *self.shape[1:]), dtype=torch.uint8)
        return channels_first(np.stack(images))

    def subset(self, chosen: Tensor) -> Pictures:
        """Some of them, still encoded."""
        return Pictures(self.encoded, self.index[chosen], self.size, self.crop)

    def split(self, size: int) -> Iterator[Tensor]:
        """All of them in order, decoded piece by piece; a piece has at most `size`, and fewer large ones."""
        size = max(1, min(size, PIECE_BYTES // (3 * self.size**2)))
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    def to(self, *args: Any, **options: Any) -> Tensor:
        """All of them decoded, as one tensor."""
        return self[:].to(*args, **options)


def channels_first(images: np.ndarray) -> Tensor:
    """(N, H, W, C) to a tensor (N, C, H, W) of its own."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _map(work: Callable[[int], Any], indices: Sequence[int]) -> Iterator[Any]:
    if get_worker_info() is not None:  # one of several processes that read ahead: they are the threads
        yield from map(work, indices)
        return
    # Pillow lets go of Python's lock while it decodes. In chunks, so that a million pictures are no million futures.
    pool = _pool(os.getpid())
    for begin in range(0, len(indices), 4096):
        yield from pool.map(work, indices[begin : begin + 4096])


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process: after a fork the parent's are not there."""
    return ThreadPoolExecutor(min(MOST_THREADS, machine.cores()), thread_name_prefix="labo-pictures")
