"""Standard streams that any text can be written to, whatever the locale, and that may be closed."""

from __future__ import annotations

import codecs
import os
import select
import sys
from typing import TextIO

# What a terminal without these characters shows; as wide as they are where a table has them.
_PLAIN = {"−": "-", "–": "-", "±": "~", "≈": "=", "▲": "+", "▼": "-", "·": ".", "…": ".", "×": "x"}
_PLAIN |= {"“": '"', "”": '"', "’": "'", "≤": "<=", "≥": ">=", "→": "->"}
# The name of the error handler that shows them so.
_HANDLER = "labo-plain"


def prepare() -> None:
    """Make the standard streams fit for any text; a stream that is closed becomes one without content.

    A terminal keeps its encoding and shows plain characters for what it cannot show, such as a hyphen for a minus sign,
    or `?`. A file or a pipe gets UTF-8, so that nothing in a table is lost; the bytes of a file name that is not UTF-8
    are written as escapes.
    """
    codecs.register_error(_HANDLER, _plain)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
        elif mode == "w" and hasattr(stream, "reconfigure"):
            if stream.isatty():
                stream.reconfigure(errors=_HANDLER)
            else:
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def silence_if_left() -> bool:
    """Whether what reads standard output, or standard error, has exited; if so, nothing more is written to it.

    Where the system cannot say, the reader of standard output has.
    """
    left = [stream for stream in (sys.stdout, sys.stderr) if _has_left(stream)]
    for stream in left:  # what is buffered goes nowhere, at exit too
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    return bool(left)


def _has_left(stream: TextIO) -> bool:
    if not hasattr(select, "poll"):
        return stream is sys.stdout
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end
