"""Signals that end a command: the status that shells know, one line, the cursor shown, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from launch import SECONDS, start_labo, start_python, wait_until
from test_compare import members

pty = pytest.importorskip("pty")  # what follows needs a terminal of Unix
ENDINGS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
INTERRUPTED = "Interrupted. Finished work is recorded; run the same command again to resume."


def begun(output: Path) -> Callable[[], bool]:
    """Whether a run of many epochs has finished one."""
    curve = output / "curve.jsonl"
    return lambda: curve.exists() and curve.stat().st_size > 0


def shown(terminal: int) -> str:
    """All that a child writes to a terminal, to its end."""
    content = b""
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # Linux reports the end of the other side as an error
            part = b""
        if not part:
            return content.decode(errors="replace")
        content += part


def train_on_a_terminal(folder: Path, **options: Any) -> tuple[Any, int]:
    """(a run that has begun, our side of its terminal)."""
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    child = start_labo(
        "train", "digits", "--method", "none", "--epochs", 100_000, "--output", folder,
        environment={"TERM": "xterm"}, **streams, **options,
    )  # fmt: skip
    os.close(theirs)
    wait_until(begun(folder), child)
    return child, ours


@pytest.mark.parametrize(("number", "status"), ENDINGS)
def test_a_run_on_a_terminal_ends_with_a_line_and_the_cursor(tmp_path, number, status):
    child, ours = train_on_a_terminal(tmp_path, start_new_session=True)
    child.send_signal(number)
    text = shown(ours)
    os.close(ours)
    assert child.wait(SECONDS) == status
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert hide in text
    assert text.rfind(show) > text.rfind(hide)
    assert text.endswith(f"{INTERRUPTED}\r\n")
    assert "Traceback" not in text


@pytest.mark.parametrize(("number", "status"), [ENDINGS[1], pytest.param(*ENDINGS[2], marks=pytest.mark.slow)])
def test_a_comparison_ends_its_workers_and_frees_their_semaphores(tmp_path, number, status):
    child = start_labo(
        "compare", "--methods", "none,labo", "--epochs", 300, "--jobs", 2, "--output", tmp_path,
        stdout=PIPE, stderr=PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: any(tmp_path.glob("digits/.tuning/*/curve.jsonl")), child)
    child.send_signal(number)
    _, told = child.communicate(timeout=SECONDS)
    assert child.returncode == status
    assert told.endswith(f"{INTERRUPTED}\n")
    assert "semaphore" not in told
    assert "Traceback" not in told
    deadline = time.monotonic() + 10
    while (left := members(child.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_a_terminal_that_goes_away_is_no_traceback(tmp_path):
    """The other side is closed before the signal comes, so that nothing can be written any more."""
    child, ours = train_on_a_terminal(tmp_path)
    os.close(ours)
    child.send_signal(signal.SIGHUP)
    assert child.wait(SECONDS) == 129


def test_nohup_stays_nohup(tmp_path):
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); import runpy, sys; sys.argv[0] = 'labo';"
    code += "runpy.run_module('labo', run_name='__main__')"
    command = ["train", "digits", "--method", "none", "--steps", 2_000, "--output", tmp_path]
    child = start_python("-c", code, *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(begun(tmp_path), child)
    child.send_signal(signal.SIGHUP)
    assert child.wait(SECONDS) == 0


def test_a_command_in_the_background_of_a_script_ends_by_sigterm():
    """Shells without job control let such a command ignore Ctrl-C."""
    from labo import interrupts

    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.as_ctrl_c():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupts.as_ctrl_c():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), interrupts.as_ctrl_c(), interrupts.ignored_by_children():
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.exit_status() == 143
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


def test_handlers_of_the_program_that_calls_stay():
    from labo import interrupts

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt), interrupts.as_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert interrupts.exit_status() == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with interrupts.as_ctrl_c(), interrupts.flag() as came:
        assert not came()
        signal.raise_signal(signal.SIGHUP)
        assert came()
    with pytest.raises(KeyboardInterrupt), interrupts.as_ctrl_c(), interrupts.ignored_by_children():
        signal.raise_signal(signal.SIGTERM)  # while Ctrl-C is ignored
    assert sys.exc_info() == (None, None, None)
