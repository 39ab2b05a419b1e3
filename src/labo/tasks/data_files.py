"""Where data lie, how they are fetched, and a fingerprint of them."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from labo.errors import UserError

VARIABLE = "LABO_DATA"
# Files that are smaller together go into the fingerprint with all they hold; of others, names and sizes.
READ_WHOLE = 2**28


def roots(data: str | None, fetch: bool = False) -> list[Path]:
    """The folders (or the file) to look into: `data`, else $LABO_DATA and where fetched data are kept.

    With `fetch`, the first need not be there yet.

    Raises:
        UserError: the one that is named is not there.
    """
    given, variable = data, os.environ.get(VARIABLE)
    named = given or variable
    if named and not fetch and not Path(named).exists():
        raise UserError(f"No such file or folder: '{named}', named by {'--data' if given else VARIABLE}.")
    return [Path(data)] if data else [*([Path(variable)] if variable else []), cache()]


def cache() -> Path:
    """Where fetched data are kept when no folder is named."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labo" / "data"


def writable(looked: Sequence[Path]) -> Path:
    """The first of the folders looked into that can be written, or made; the first of all if none can."""

    def can(folder: Path) -> bool:
        there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
        return os.access(there, os.W_OK | os.X_OK)

    return next((folder for folder in looked if can(folder)), looked[0])


def told(data: str | None) -> str:
    """The folder looked into, in words, for the sentence that data are not there."""
    named = data or os.environ.get(VARIABLE)
    return f"in '{named}'" if named else f"(neither --data nor {VARIABLE} names a folder)"


def fetch(url: str, md5: str, folder: Path) -> Path:
    """Download a file into a folder; what arrived is kept only if its checksum is right.

    Raises:
        UserError: it cannot be downloaded or written, or its checksum is wrong.
    """
    path = folder / url.rpartition("/")[2]
    beside = path.with_name(f".{path.name}.part")
    found = hashlib.md5(usedforsecurity=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as source, open(beside, "wb") as file:
            while piece := source.read(2**20):
                found.update(piece)
                file.write(piece)
        if found.hexdigest() != md5:
            raise UserError(f"What came from {url} has the md5 {found.hexdigest()}, expected {md5}: fetch it again.")
        beside.replace(path)
    except OSError as error:
        raise UserError(f"Cannot fetch {url} into '{folder}': {error}.") from error
    finally:
        beside.unlink(missing_ok=True)
    return path


def check_md5(path: Path, md5: str) -> None:
    """Refuse a file with another checksum.

    Raises:
        UserError: it has, or cannot be read.
    """
    try:
        state = path.stat()
        found = _hash(path, state.st_mtime_ns, state.st_size, "md5")
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}.") from error
    if found != md5:
        raise UserError(f"The archive '{path}' has the md5 {found}, but {md5} is published: download it again.")


def fingerprint(files: Iterable[Path], root: Path) -> str:
    """16 hexadecimal digits that change with the files' names, below `root`, and with their contents or sizes."""
    try:
        found = sorted(
            (path.relative_to(root).as_posix() if root in path.parents else path.name, path) for path in files
        )
        states = [path.stat() for _, path in found]
        whole = sum(state.st_size for state in states) <= READ_WHOLE
        digest = hashlib.sha256()
        for (name, path), state in zip(found, states, strict=True):
            content = _hash(path, state.st_mtime_ns, state.st_size, "sha256") if whole else state.st_size
            digest.update(f"{name}\0{content}\n".encode())
    except OSError as error:
        raise UserError(f"Cannot read the data: {error}.") from error
    return digest.hexdigest()[:16]


@lru_cache(maxsize=100_000)
def _hash(path: Path, changed: int, size: int, kind: str) -> str:
    found = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()
