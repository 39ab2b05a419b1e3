"""Locks of folders: one process at a time writes into a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from labo.errors import UserError
from labo.records.storage import read_object, write_object

LOCK, HOLDER = ".lock", ".holder.json"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if missing; the system releases it when the process ends.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_object(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    except Timeout as error:
        raise UserError(f"'{folder}' is in use by {_holder(folder)}.") from error
    except OSError as error:
        raise UserError(f"Cannot write into '{folder}': {error.strerror or error}.") from error
    try:
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    holder = read_object(folder / HOLDER) or {}
    if "pid" not in holder:
        return "another process"
    return f"process {holder['pid']} on {holder.get('host', 'this machine')}, since {holder.get('since', 'just now')}"
