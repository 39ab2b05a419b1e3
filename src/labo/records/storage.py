"""Crash-safe files: written whole or not at all, or only ever appended to."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from labo.errors import UserError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}


@contextmanager
def replacing(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """A file to write that takes the place of `path` when the block ends: a reader sees the old file or the new one.

    Text is UTF-8; a lone surrogate, such as a byte of a file name that is not UTF-8, is written as JSON escapes it.

    Args:
        mode: "w" or "wb".
        options: those of `open`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, mode, **({} if "b" in mode else _TEXT), **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk, or Ctrl-C, leaves a part of it
        raise


def write_text(path: Path, text: str) -> Path:
    """Write a file as `replacing` does."""
    with replacing(path, newline="") as file:
        file.write(text)
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file as `replacing` does."""
    with replacing(path, "wb") as file:
        file.write(content)
    return path


def write_object(path: Path, value: Mapping[str, Any]) -> Path:
    """Write one JSON object as `replacing` does."""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON object as a line, which is on the disk when this returns."""
    with open(path, "a", **_TEXT) as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a .jsonl file without damaged lines; [] without the file."""
    return [value for _, value in numbered_lines(path) if value is not None]


def numbered_lines(path: Path) -> list[tuple[int, dict[str, Any] | None]]:
    """The lines of a .jsonl file that are not empty, counted from 1, as JSON objects; None for a damaged one."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    return [(number, _parse(line)) for number, line in enumerate(lines, 1) if line.strip()]


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where it is missing or damaged."""
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def require_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None without the file.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    try:
        value = _parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}.") from error
    if value is None:
        raise UserError(f"'{path}' is damaged: it is not a JSON object.")
    return value


def drop_cut_line(path: Path) -> bool:
    """Remove a last line that a crash cut short; whether there was one. A missing file has none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return False
    if _parse(content[end:]) is not None:
        with open(path, "ab") as file:  # complete but for its newline
            file.write(b"\n")
        return False
    with open(path, "r+b") as file:
        file.truncate(end)
    return True


def lacks_room(error: BaseException) -> bool:
    """Whether an error means that a file could not grow: a full disk, a quota, the maximum file size."""
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    return type(error).__name__ == "SafetensorError" and any(
        f"os error {number}" in str(error) for number in _DISK_FULL
    )


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):  # brackets within brackets, thousands deep
        return None
    return value if isinstance(value, dict) else None
