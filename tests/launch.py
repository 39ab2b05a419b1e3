"""Starts Python and the command line in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SECONDS = 120.0
# For children that import test modules.
TESTS_IMPORTABLE = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}


def run_python(
    *arguments: object, check: bool = True, cwd: Path | None = None, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Run Python to its end and capture its output; an environment variable of None is removed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=_environment(environment),
        timeout=SECONDS,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_labo(*arguments: object, check: bool = True, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end and capture its output."""
    return run_python("-m", "labo", *arguments, check=check, cwd=None, **environment)


def start_python(
    *arguments: object, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start Python; `options` are those of `subprocess.Popen`."""
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=_environment(environment or {}), **options)


def start_labo(*arguments: object, **options: Any) -> subprocess.Popen[Any]:
    """Start the command line; `options` are those of `subprocess.Popen`."""
    return start_python("-m", "labo", *arguments, **options)


def wait_until(condition: Callable[[], bool], child: subprocess.Popen[Any]) -> None:
    """Wait for a condition, while the child runs, for at most `SECONDS`."""
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.005)


def _environment(changes: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in {**os.environ, **changes}.items() if value is not None}


def run_ranks(work: Callable[..., None], count: int, folder: Path, *rest: Any) -> list[dict[Any, Any]]:
    """What `work(rank, count, folder, *rest)` saved as rank.pt in the folder, in each of `count` processes.

    A rank saves the traceback of an exception as "failed".
    """
    context = multiprocessing.get_context("forkserver")  # imports torch once, not once a process
    context.set_forkserver_preload(["torch", "torch.distributed.tensor"])
    processes = [context.Process(target=work, args=(rank, count, folder, *rest)) for rank in range(count)]
    end = time.monotonic() + SECONDS
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]
    for result in results:
        assert "failed" not in result, result["failed"]
    return results
