"""Decoding images: files and encoded bytes to RGB, all at once or batch by batch."""

from __future__ import annotations

import io
import os
import stat
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
from typing_extensions import override

from labo import machine
from labo.errors import UserError, first_line

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".tga"
)  # fmt: skip
# Suffixes of image files, certain or possible, that are not read.
UNSUPPORTED_SUFFIXES = (".avif", ".heic", ".heif", ".jxl", ".svg", ".raw", ".dng", ".nef", ".cr2", ".psd", "")
MAX_THREADS = 16
# Lazily decoded images are split into chunks of at most this many bytes.
CHUNK_BYTES = 2**24


class UnreadableError(UserError):
    """An image that cannot be decoded; the message names it."""


class EncodedImages(ABC):
    """N images in the encoding of their files.

    `name` maps an index to the image's display name, without reading the image.
    """

    name: Callable[[int], str]

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def entry(self, index: int) -> tuple[str, Path | bytes]:
        """(the image's display name, its file or its encoded bytes)."""


@dataclass(frozen=True)
class NumberedNames:
    """Display names of images without names of their own: `SOURCE, image 18` for index 17."""

    source: str
    noun: str = "image"

    def __call__(self, index: int) -> str:
        """The name of the image at `index`."""
        return f"{self.source}, {self.noun} {index + 1}"


class ImageFiles(EncodedImages):
    """Images in a file each."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [str(path) for path in paths]  # a quarter of the memory of Path objects
        self.name = self.paths.__getitem__

    def __len__(self) -> int:
        return len(self.paths)

    @override
    def entry(self, index: int) -> tuple[str, Path | bytes]:
        return self.paths[index], Path(self.paths[index])


class EncodedSubset(EncodedImages):
    """The images of `images` at `indices` (M,)."""

    def __init__(self, images: EncodedImages, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices
        self.name = lambda index: images.name(int(indices[index]))

    def __len__(self) -> int:
        return len(self.indices)

    @override
    def entry(self, index: int) -> tuple[str, Path | bytes]:
        return self.images.entry(int(self.indices[index]))


class LazyImages:
    """Images decoded on access, in place of a uint8 (N, 3, size, size) tensor.

    `index` (N,) selects them from `encoded`. Access to a damaged image raises UnreadableError.
    """

    dtype = torch.uint8

    def __init__(self, encoded: EncodedImages, index: Tensor, size: int, crop: float = 1.0) -> None:
        self.encoded, self.index, self.size, self.crop = encoded, index, size, crop

    @property
    def shape(self) -> torch.Size:
        """(N, 3, size, size)."""
        return torch.Size((len(self.index), 3, self.size, self.size))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, indices: Sequence[int] | slice | Tensor) -> Tensor:
        """The images at `indices`, decoded, uint8 (n, 3, size, size)."""

        def decode_one(index: int) -> np.ndarray:
            name, content = self.encoded.entry(index)
            return decode(content, name, self.size, self.crop)

        images = list(_map(decode_one, self.index[indices].tolist()))
        if not images:
            return torch.empty((0, *self.shape[1:]), dtype=torch.uint8)
        return channels_first(np.stack(images))

    def subset(self, indices: Tensor) -> LazyImages:
        """The images at `indices`, still encoded."""
        return LazyImages(self.encoded, self.index[indices], self.size, self.crop)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, decoded in chunks of at most `size` images, fewer if they are large."""
        size = max(1, min(size, CHUNK_BYTES // (3 * self.size**2)))
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(self, *args: Any, **options: Any) -> Tensor:
        """All images decoded, as one tensor."""
        return self[:].to(*args, **options)


def decode(content: Path | bytes, name: str, size: int, crop: float = 1.0) -> np.ndarray:
    """An image as uint8 (size, size, 3).

    The centre square, or the fraction `crop` of its side, is resized (bicubic) to `size` pixels; an image of this size
    is left unchanged. crop = 224 / 256 is the test preprocessing of ImageNet. Grey, palette, CMYK and 16-bit images are
    converted to RGB, transparency to white; the EXIF orientation is applied.

    Raises:
        UnreadableError: damaged, truncated, not an image, or values of more than 16 bits.
    """
    from PIL import Image, ImageOps

    try:
        with _open(content) as image:
            image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size
            rgb = _to_rgb(
                ImageOps.exif_transpose(image), name, deep=image.format == "TIFF" and image.mode in ("I", "F")
            )
    except UnreadableError:
        raise
    except Exception as error:  # the error of a damaged image depends on where it is damaged
        raise UnreadableError(f"Cannot read the image '{name}': {_reason(error)}.") from error
    if rgb.size != (size, size) or crop < 1:
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC, bleed=(1 - crop) / 2)
    return np.asarray(rgb)


def resize(image: np.ndarray, size: int, crop: float = 1.0) -> np.ndarray:
    """An image uint8 (H, W, 3) as (size, size, 3), cropped and resized as in `decode`."""
    from PIL import Image, ImageOps

    if image.shape[:2] == (size, size) and crop == 1:
        return image
    return np.asarray(
        ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.BICUBIC, bleed=(1 - crop) / 2)
    )


def read_size(content: Path | bytes) -> tuple[int, int] | None:
    """(width, height) from an image's header; None where it cannot be read."""
    try:
        with _open(content) as image:
            return image.size
    except Exception:
        return None


def decode_all(
    encoded: EncodedImages, size: int, crop: float, *, skip_unreadable: bool, keep: bool = True
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(images (M, size, size, 3), their indices (M,) among the N, the names of the unreadable ones).

    With `keep=False` images are only checked, and the first array is empty.

    Raises:
        UnreadableError: an image cannot be read, unless `skip_unreadable`.
    """
    images = np.empty((len(encoded) if keep else 0, size, size, 3), np.uint8)
    readable = np.ones(len(encoded), bool)

    def decode_into(index: int) -> str:
        name, content = encoded.entry(index)
        try:
            image = decode(content, name, size, crop)
        except UnreadableError:
            if not skip_unreadable:
                raise
            readable[index] = False
            return name
        if keep:
            images[index] = image
        return ""

    unreadable = [name for name in _map(decode_into, range(len(encoded))) if name]
    indices = np.flatnonzero(readable)
    return (images[indices] if unreadable and keep else images), indices, unreadable


def channels_first(images: np.ndarray) -> Tensor:
    """A contiguous tensor (N, C, H, W) of an array (N, H, W, C)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _open(content: Path | bytes) -> Any:
    """An image in a regular file or in bytes; a pipe or a device may never end."""
    from PIL import Image

    if isinstance(content, bytes):
        return Image.open(io.BytesIO(content))
    if not stat.S_ISREG(content.stat().st_mode):
        raise OSError("it is not a regular file")
    return Image.open(content)


def _to_rgb(image: Any, name: str, *, deep: bool) -> Any:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bits(np.asarray(image), name, deep=deep))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray, name: str, *, deep: bool) -> np.ndarray:
    """0 to 65535 as 0 to 255; Pillow's own conversion clips everything above 255.

    A `deep` image is a TIFF of 32 bits, whose format names no white: its values are 0 to 255 if none is above 255, and
    0 to 65535 else. It is unknown for fractions from 0 to 1.
    """
    is_8_bits = deep and values.min() >= 0 and values.max() <= 255
    if is_8_bits and (values.dtype.kind != "f" or values.max() > 1 or not values.any()):
        return values.round().astype(np.uint8)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise UnreadableError(f"Cannot read the image '{name}': its values are not of 8 or 16 bits; save it as such.")
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is damaged or not an image"
    return first_line(error) if not isinstance(error, OSError) else error.strerror or first_line(error)


def _map(function: Callable[[int], Any], indices: Sequence[int]) -> Iterator[Any]:
    if get_worker_info() is not None:  # data loader workers decode in parallel already
        yield from map(function, indices)
        return
    # Pillow releases the GIL while decoding. In chunks, to bound the number of futures.
    pool = _thread_pool(os.getpid())
    for start in range(0, len(indices), 4096):
        yield from pool.map(function, indices[start : start + 4096])


@lru_cache(maxsize=1)
def _thread_pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process: a fork does not inherit its parent's."""
    return ThreadPoolExecutor(min(MAX_THREADS, machine.cores()), thread_name_prefix="labo-images")
