"""Where data files are, how they are downloaded, and fingerprints of them."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from labo.digests import hash_file
from labo.errors import UserError, first_line

VARIABLE = "LABO_DATA"
# The fingerprint covers the contents of files up to this many bytes in total; beyond it, their names and sizes.
MAX_HASHED_BYTES = 2**28


def search_roots(data: str | None, fetch: bool = False) -> list[Path]:
    """The folders (or the file) to search: `data`, else $LABO_DATA and the download cache.

    With `fetch`, the first need not exist yet.

    Raises:
        UserError: the folder that --data or LABO_DATA names does not exist.
    """
    variable = os.environ.get(VARIABLE)
    root = data or variable
    if root and not fetch and not Path(root).exists():
        raise UserError(f"No such file or folder: '{root}', named by {'--data' if data else VARIABLE}.")
    return [Path(data)] if data else [*([Path(variable)] if variable else []), cache_folder()]


def cache_folder() -> Path:
    """Where downloads go when no folder is named."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labo" / "data"


def writable_folder(folders: Sequence[Path]) -> Path:
    """The first of `folders` that can be written or created; the first of all if none can."""

    def is_writable(folder: Path) -> bool:
        existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
        return os.access(existing, os.W_OK | os.X_OK)

    return next((folder for folder in folders if is_writable(folder)), folders[0])


def describe_location(data: str | None) -> str:
    """The folder that was searched, for the sentence that no data were found."""
    root = data or os.environ.get(VARIABLE)
    return f"in '{root}'" if root else f"(neither --data nor {VARIABLE} names a folder)"


def download(url: str, md5: str, folder: Path) -> Path:
    """Download a file into a folder; it is kept only if its checksum is right.

    Raises:
        UserError: it cannot be downloaded or written, or its checksum is wrong.
    """
    path = folder / url.rpartition("/")[2]
    partial = path.with_name(f".{path.name}.part")
    checksum = hashlib.md5(usedforsecurity=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as source, open(partial, "wb") as file:
            while chunk := source.read(2**20):
                checksum.update(chunk)
                file.write(chunk)
        if checksum.hexdigest() != md5:
            raise UserError(
                f"The download of {url} has the md5 {checksum.hexdigest()}, expected {md5}: fetch it again."
            )
        partial.replace(path)
    except OSError as error:
        raise UserError(f"Cannot fetch {url} into '{folder}': {error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def check_md5(path: Path, md5: str) -> None:
    """Refuse a file with a wrong checksum.

    Raises:
        UserError: the checksum is wrong, or the file cannot be read.
    """
    try:
        state = path.stat()
        actual = _cached_hash(path, state.st_mtime_ns, state.st_size, "md5")
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}.") from error
    if actual != md5:
        raise UserError(f"The archive '{path}' has the md5 {actual}, but {md5} is published: download it again.")


def fingerprint(files: Iterable[Path], root: Path) -> str:
    """16 hexadecimal digits that change with the files' names, relative to `root`, and with their contents or sizes."""
    try:
        named = sorted(
            (path.relative_to(root).as_posix() if root in path.parents else path.name, path) for path in files
        )
        states = [path.stat() for _, path in named]
        hash_contents = sum(state.st_size for state in states) <= MAX_HASHED_BYTES
        result = hashlib.sha256()
        for (name, path), state in zip(named, states, strict=True):
            key = (path, state.st_mtime_ns, state.st_size, "sha256")
            content = _cached_hash(*key) if hash_contents else state.st_size
            result.update(f"{name}\0{content}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise UserError(f"Cannot read the data: {error}.") from error
    return result.hexdigest()[:16]


def digest(path: str | Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    return hash_file(path)[:16]


def load_hf_splits(name: str, load: Callable[[Any], Any]) -> Mapping[Any, Any]:
    """The splits of a data set by name, as Hugging Face's `datasets` reads them.

    Args:
        name: of the data set, for errors.
        load: called with the module `datasets`, without its progress bars; returns one split or a mapping of them.

    Raises:
        UserError: `datasets` cannot read it.
    """
    import datasets

    shows_bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        splits = load(datasets)
    except Exception as error:  # the library passes on the errors of every library below it
        raise UserError(f"Cannot read the data set '{name}': {first_line(error)}.") from error
    finally:
        if shows_bars:
            datasets.enable_progress_bars()
    return splits if isinstance(splits, Mapping) else {"train": splits}


def hf_fingerprint(splits: Mapping[Any, Any]) -> str:
    """The fingerprint that `datasets` itself keeps of each split."""
    return "-".join(str(rows._fingerprint) for _, rows in sorted(splits.items()))


@lru_cache(maxsize=100_000)
def _cached_hash(path: Path, modified_ns: int, size: int, algorithm: str) -> str:
    return hash_file(path, algorithm)
