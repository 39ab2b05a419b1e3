"""Ctrl-C, SIGTERM and SIGHUP end a command in the same way: what is finished is recorded, and the terminal restored."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labo import machine

# Signals that are handled as Ctrl-C is, where the system has them.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _State:
    """The signal that was passed on as Ctrl-C, if one was."""

    passed_on: int | None = None


def passed_on() -> bool:
    """Whether SIGTERM or SIGHUP came since the command began."""
    return _State.passed_on is not None


def exit_status() -> int:
    """The status that shells give a program that the signal ended: 130, 143 or 129."""
    return 128 + (_State.passed_on or signal.SIGINT)


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Within this context SIGTERM and SIGHUP do what Ctrl-C does at that moment.

    A signal that is ignored, as by nohup, stays so. Ctrl-C stays ignored where a script runs the command in the
    background, and the other signals end it all the same. Nothing changes outside of the main thread, and under
    torchrun, which ends its processes itself, even where they wait for each other.
    """
    if not _in_main_thread() or machine.launched() > 1:
        yield
        return
    _State.passed_on = None

    def handle(number: int, frame: Any) -> None:
        _State.passed_on = number
        signal.raise_signal(signal.SIGINT)

    def interrupt(number: int, frame: Any) -> None:
        if passed_on():
            raise KeyboardInterrupt

    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    changed: dict[int, Any] = {number: handle for number, handler in before.items() if handler == signal.SIG_DFL}
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        changed[signal.SIGINT], before[signal.SIGINT] = interrupt, signal.SIG_IGN
    for number, handler in changed.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


@contextmanager
def flag() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C came, for a loop to call where it is safe to stop.

    A KeyboardInterrupt anywhere could leave a pool's locks held, or be swallowed where Python ignores exceptions.
    """
    event = threading.Event()
    if not _in_main_thread():
        yield event.is_set
        return
    handler = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event.is_set
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def ignored_by_children() -> Iterator[None]:
    """Processes that are started within this context ignore Ctrl-C; SIGTERM or SIGHUP is raised at its end."""
    if not _in_main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = _State.passed_on
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if _State.passed_on != before:
        signal.raise_signal(signal.SIGINT)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
