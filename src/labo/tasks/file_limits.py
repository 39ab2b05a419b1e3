"""What is read whole: regular files, and archives that do not unpack to more than there is room for."""

from __future__ import annotations

import gzip
import os
import re
import stat
from pathlib import Path

from labo import machine
from labo.errors import UserError
from labo.wording import byte_size

# Archives may unpack to so many bytes; the command line sets it for its workers too. By default a share of the memory.
VARIABLE = "LABO_MAX_BYTES"
MEMORY_SHARE = 0.5
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_CHUNK = 2**20


def absolute(path: str | Path) -> Path:
    """The absolute path of the file that a link leads to; that of the link where it leads nowhere or to itself."""
    return Path(os.path.realpath(path))


def require_file(path: str | Path) -> None:
    """Refuse what is not a regular file: a pipe or a device may never end.

    Raises:
        UserError: there is no such file, or it is something else.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise UserError(f"The link '{path}' leads to no file.") from error
        raise UserError(f"No such file: '{path}'.") from error
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}.") from error
    if kind != stat.S_IFREG:
        raise UserError(f"Expected '{path}' to be a regular file, but it is {_KINDS.get(kind, 'something else')}.")


def max_bytes() -> int | None:
    """The number of bytes that an archive may unpack to; None where the size of the memory is unknown.

    Raises:
        UserError: the environment variable is not a size.
    """
    text = os.environ.get(VARIABLE)
    if text:
        return parse_size(text)
    memory = machine.memory()
    return None if memory is None else int(MEMORY_SHARE * memory)


def parse_size(text: str) -> int:
    """A number of bytes, with or without a unit.

    Raises:
        UserError: it is not a size.

    Example:
        >>> parse_size("2.5GB"), parse_size("1e6")
        (2500000000, 1000000)
    """
    match = re.fullmatch(r"\s*([\d.]+(?:e\d{1,2})?)\s*([kmgt]?b)?\s*", text.lower())
    try:
        size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    except ValueError:
        size = 0
    if size < 1:
        raise UserError(f"Expected --max-bytes to be a size such as 8GB or 500MB, but got '{text}'.")
    return size


def check_unpacked(path: str | Path, size: int) -> None:
    """Refuse an archive that unpacks to `size` bytes where this is too much.

    Raises:
        UserError: it is more than `max_bytes`.
    """
    limit = max_bytes()
    if limit is not None and size > limit:
        raise UserError(
            f"Refused to read '{path}': it unpacks to {byte_size(size)}, more than {byte_size(limit)}; --max-bytes, or "
            f"the environment variable {VARIABLE}, allows more."
        )


def gunzip(path: Path) -> bytes:
    """The content of a gzipped file.

    Raises:
        UserError: it unpacks to more than `max_bytes`.
        OSError, EOFError, zlib.error: it is damaged.
    """
    limit = max_bytes()
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        # The size modulo 2**32 of what was packed last: a file that is too large is mostly refused before it is read.
        check_unpacked(path, int.from_bytes(file.read(4), "little"))
    chunks, size = [], 0
    with gzip.open(path) as unpacked:
        while chunk := unpacked.read(_CHUNK):
            chunks.append(chunk)
            size += len(chunk)
            if limit is not None:
                check_unpacked(path, size)
    return b"".join(chunks)
