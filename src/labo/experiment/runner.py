"""Where trials run: in this process, or in warm processes of one thread each."""

from __future__ import annotations

import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from types import TracebackType
from typing import Any

from labo import machine
from labo.errors import UserError
from labo.experiment.trial import ERROR, Trial

# How often a trial is tried whose process died.
TRIES = 2
# A guess, measured on none yet: few enough to fit side by side, and more than one, which rarely fills an accelerator.
ON_ACCELERATOR = 2


@dataclass(frozen=True)
class Job:
    """A trial and the folder that it runs in."""

    trial: Trial
    folder: Path


@dataclass(frozen=True)
class Lost:
    """A trial whose process died each time."""

    reason: str = "its process died (killed, or out of memory)"


Progress = Callable[[Job, float], None]


def at_once() -> int:
    """How many trials run at a time by default: one a core, or `ON_ACCELERATOR` where they share an accelerator."""
    import torch

    return min(machine.cores(), ON_ACCELERATOR) if torch.cuda.is_available() else machine.cores()


class Runner:
    """Runs jobs, `processes` at a time; a context manager. Records come in the order in which trials finish."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Runner:
        if self.processes > 1:
            self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def run(self, jobs: Sequence[Job], progress: Progress) -> Iterator[tuple[Job, dict[str, Any] | Lost]]:
        """Run all jobs and give (job, record) as they finish.

        Raises:
            UserError: what a trial refused, or broke by.
        """
        if self._pool is None:
            _one_thread()
            for job in jobs:
                yield job, run_job(job, lambda share, job=job: progress(job, share))
            return
        with _pressed() as pressed:
            yield from self._run_all(list(jobs), progress, pressed)

    def _run_all(
        self, jobs: list[Job], progress: Progress, pressed: threading.Event
    ) -> Iterator[tuple[Job, dict[str, Any] | Lost]]:
        waiting = list(jobs)
        suspects: dict[Path, int] = {}  # what ran when a process died, and how often
        running: dict[Future[dict[str, Any]], Job] = {}
        while waiting or running:
            while waiting and self._has_room(waiting[0], list(running.values()), suspects):
                job = waiting.pop(0)
                running[self._submit(job)] = job
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            if pressed.is_set():
                raise KeyboardInterrupt
            self._tell(progress, {job.folder: job for job in running.values()})
            died = [future for future in done if isinstance(future.exception(), BrokenProcessPool)]
            # Results before refusals: what is finished is recorded, whatever else went wrong.
            for future in sorted(done, key=lambda future: future.exception() is not None):
                job = running.pop(future)
                if future not in died:
                    yield job, future.result()
                    continue
                suspects[job.folder] = suspects.get(job.folder, 0) + 1
                if suspects[job.folder] < TRIES:
                    waiting.append(job)
                else:
                    yield job, Lost()
            if died:
                waiting += running.values()
                running.clear()
                self._stop()
                self._start()

    def _has_room(self, job: Job, running: list[Job], suspects: dict[Path, int]) -> bool:
        """Whether a job may start now. What ran when a process died runs alone: the next death names the guilty."""
        if job.folder in suspects or any(other.folder in suspects for other in running):
            return not running
        return len(running) < self.processes

    def _submit(self, job: Job) -> Future[dict[str, Any]]:
        assert self._pool is not None
        try:
            return self._pool.submit(_run_there, job)
        except BrokenProcessPool as error:
            failed: Future[dict[str, Any]] = Future()
            failed.set_exception(error)
            return failed

    def _tell(self, progress: Progress, running: dict[Path, Job]) -> None:
        while True:
            try:
                folder, share = self._queue.get_nowait()
            except queue.Empty:
                return
            if folder in running:
                progress(running[folder], share)

    def _start(self) -> None:
        # Spawned, not forked: torch's threads and an accelerator's state do not survive a fork.
        context = get_context("spawn")
        self._queue = context.Queue()
        there, self._alive = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(self.processes, context, _begin, (self._queue, there))
        # Processes are born deaf to Ctrl-C, so that none prints a traceback of its start.
        main = threading.current_thread() is threading.main_thread()
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
        try:
            for _ in range(self.processes):
                self._pool.submit(_warm)
        finally:
            if main:
                signal.signal(signal.SIGINT, heard)

    def _stop(self) -> None:
        if self._pool is not None:
            self._alive.close()  # which ends the processes, whatever they are at
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


@contextmanager
def _pressed() -> Iterator[threading.Event]:
    """Whether Ctrl-C was pressed, for a loop to ask where it is safe to stop.

    An exception out of nowhere could leave the pool's locks held, or be swallowed where Python ignores exceptions.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    heard = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, heard)


_told: Any = None


def _begin(told: Any, alive: connection.Connection) -> None:
    """Start of a process: one thread, deaf to Ctrl-C (the parent hears it), and gone when the parent is."""
    global _told
    _told = told
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()


def _end_with_parent(alive: connection.Connection) -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    connection.wait([alive] if parent is None else [alive, parent.sentinel])
    os._exit(1)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _warm() -> None:
    """Import what trials need before the first one comes."""
    _one_thread()
    from labo.training import loop  # noqa: F401 (imported for what it imports)


def _run_there(job: Job) -> dict[str, Any]:
    _one_thread()

    def tell(share: float) -> None:
        _told.put((job.folder, share))

    return run_job(job, tell)


def run_job(job: Job, progress: Callable[[float], None]) -> dict[str, Any]:
    """Run one job here; a mistake in a method of one's own becomes one sentence, its traceback a file in the run."""
    from labo import distributed
    from labo.experiment import trial

    try:
        return trial.run(job.trial, job.folder, progress)
    except UserError:
        raise
    except Exception as error:
        if distributed.is_peer_failure(error) or not distributed.should_report_failure():  # another process tells of it
            raise
        place = job.folder / ERROR
        job.folder.mkdir(parents=True, exist_ok=True)
        place.write_text(traceback.format_exc(), encoding="utf-8")
        first = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(
            f"The trial {job.trial.name} broke: {type(error).__name__}: {first}; the traceback is in '{place}'."
        ) from error
