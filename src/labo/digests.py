"""Digests of files: whether a file is still the one that was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# {"bytes": size, "sha256": hexadecimal digits} of files, by name.
Manifest = dict[str, dict[str, Any]]


def hash_file(path: str | Path, algorithm: str = "sha256", size: int | None = None) -> str:
    """The hexadecimal digest of a file's content, or of its first `size` bytes."""
    result = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(2**20 if size is None else min(size, 2**20)):
            result.update(chunk)
            size = None if size is None else size - len(chunk)
    return result.hexdigest()


def manifest(files: Iterable[Path]) -> Manifest:
    """Sizes and digests of files, by name."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in files}


def difference(path: Path, entry: Mapping[str, Any], *, prefix: bool = False) -> str | None:
    """What tells a file from its entry in a manifest, as a phrase; None where they agree.

    With `prefix`, the file may have grown: its first bytes are compared.
    """
    try:
        size, expected = path.stat().st_size, entry["bytes"]
        if size < expected or (size > expected and not prefix):
            return f"the file was cut or changed: it has {size:,} bytes, not {expected:,}"
        if hash_file(path, size=expected) != entry["sha256"]:
            return "the file was changed: its SHA-256 is another"
    except FileNotFoundError:
        return "the file is missing"
    except TypeError:
        return "its size and digest were changed"
    except OSError as error:
        return f"the file cannot be read: {error.strerror or error}"
    return None
