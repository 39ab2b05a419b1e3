"""Where trials run: in this process, or in worker processes. A trial has one thread unless it says otherwise.

`ray_executor` runs them on other machines.
"""

from __future__ import annotations

import math
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from labo import interrupts, machine
from labo.errors import UserError, first_line
from labo.records.storage import read_lines
from labo.records.trial import CURVE, ERROR, PRUNED, STOP, Job

# How often a trial is started whose worker dies.
MAX_ATTEMPTS = 2
# Trials that share an accelerator: one rarely fills it. A guess that has not been measured.
TRIALS_PER_ACCELERATOR = 2
# How long the end of the workers is waited for.
SECONDS_TO_STOP = 5.0
# A step of a small network takes less than telling another process of it.
SECONDS_BETWEEN_UPDATES = 0.1

# Receives the fraction of a job that is done, 0 to 1.
UpdateJob = Callable[[Job, float], None]
Record = dict[str, Any]


@dataclass(frozen=True)
class WorkerDied:
    """Takes the place of a record where the worker of a trial died at each attempt."""

    reason: str = "the worker process died (killed, or out of memory)"


class Executor(Protocol):
    """Runs jobs somewhere."""

    def run(self, jobs: Iterable[Job], update: UpdateJob) -> Iterator[tuple[Job, Record | WorkerDied]]:
        """Run all jobs and yield (job, record) as they finish."""
        ...


def default_processes() -> int:
    """How many trials run at a time by default: one a core, or `TRIALS_PER_ACCELERATOR` with an accelerator."""
    import torch

    return min(machine.cores(), TRIALS_PER_ACCELERATOR) if torch.cuda.is_available() else machine.cores()


class StoppedError(Exception):
    """A tuning trial is stopped before its end, because its settings are not worth it."""


class TrialExecutor:
    """Runs jobs, `processes` at a time; a context manager."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None
        self._queue: Any = None

    def __enter__(self) -> TrialExecutor:
        if self.processes > 1:
            try:
                self._start()
            except KeyboardInterrupt:
                self._stop()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def run(self, jobs: Iterable[Job], update: UpdateJob) -> Iterator[tuple[Job, Record | WorkerDied]]:
        """Run all jobs and yield (job, record) as they finish; a job is taken from `jobs` when there is room for it.

        Raises:
            UserError: a trial was refused, or its code raised.
        """
        if self._pool is None:
            for job in jobs:
                yield job, run_job(job, lambda fraction, job=job: update(job, fraction))
            return
        with interrupts.flag() as interrupted:
            yield from self._run_all(iter(jobs), update, interrupted)

    def _run_all(
        self, jobs: Iterator[Job], update: UpdateJob, interrupted: Callable[[], bool]
    ) -> Iterator[tuple[Job, Record | WorkerDied]]:
        waiting: list[Job] = []  # taken from `jobs`, but not running
        deaths: dict[Path, int] = {}  # what ran when a worker died, and how often
        running: dict[Future[Record], Job] = {}
        while True:
            while (job := self._next_job(waiting, jobs, list(running.values()), deaths)) is not None:
                running[self._submit(job)] = job
            if not running:
                return
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            if interrupted():
                raise KeyboardInterrupt
            self._forward_updates(update, {job.folder: job for job in running.values()})
            died = [future for future in done if isinstance(future.exception(), BrokenProcessPool)]
            # Results before errors: what is finished is recorded, whatever else went wrong.
            for future in sorted(done, key=lambda future: future.exception() is not None):
                job = running.pop(future)
                if future not in died:
                    yield job, future.result()
                    continue
                deaths[job.folder] = deaths.get(job.folder, 0) + 1
                if deaths[job.folder] < MAX_ATTEMPTS:
                    waiting.append(job)
                else:
                    yield job, WorkerDied()
            if died:
                waiting += running.values()
                running.clear()
                self._stop()
                self._start()

    def _next_job(
        self, waiting: list[Job], jobs: Iterator[Job], running: list[Job], deaths: dict[Path, int]
    ) -> Job | None:
        """A job that may start now: what ran when a worker died runs alone, to find which trial it was."""
        alone = any(job.folder in deaths for job in (*waiting[:1], *running))
        if running and (alone or len(running) >= self.processes):
            return None
        return waiting.pop(0) if waiting else next(jobs, None)

    def _submit(self, job: Job) -> Future[Record]:
        assert self._pool is not None
        try:
            return self._pool.submit(_run_in_worker, job)
        except BrokenProcessPool as error:
            failed: Future[Record] = Future()
            failed.set_exception(error)
            return failed

    def _forward_updates(self, update: UpdateJob, running: dict[Path, Job]) -> None:
        while True:
            try:
                folder, fraction = self._queue.get_nowait()
            except queue.Empty:
                return
            if folder in running:
                update(running[folder], fraction)

    def _start(self) -> None:
        # Spawned, not forked: torch's threads and an accelerator's state do not survive a fork.
        context = get_context("spawn")
        self._queue = context.Queue()
        reader, self._alive = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(self.processes, context, _start_worker, (self._queue, reader))
        with interrupts.ignored_by_children():  # only the parent handles it
            for _ in range(self.processes):
                self._pool.submit(_warm_up)

    def _stop(self) -> None:
        if self._pool is None:
            return
        self._alive.close()  # which ends the workers, whatever they are doing
        # Waited for, because what they share with this process, semaphores, is freed only after their end.
        end = threading.Thread(target=self._pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
        self._pool = self._queue = None
        end.start()
        end.join(SECONDS_TO_STOP)


# Of a worker: where it reports progress.
_updates: Any = None


def _start_worker(updates: Any, alive: connection.Connection) -> None:
    """Workers have one thread, ignore SIGINT and end with their parent."""
    global _updates
    _updates = updates
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(alive,), daemon=True).start()


def _exit_with_parent(alive: connection.Connection) -> None:
    parent = parent_process()
    connection.wait([alive] if parent is None else [alive, parent.sentinel])
    os._exit(1)


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _warm_up() -> None:
    """Import what trials need before the first one arrives."""
    _use_threads(1)
    from labo.experiment import run_trial  # noqa: F401 (imported for what it imports)


def _run_in_worker(job: Job) -> Record:
    sent = -math.inf

    def update(fraction: float) -> None:
        nonlocal sent
        if (now := time.monotonic()) - sent >= SECONDS_BETWEEN_UPDATES:
            sent = now
            _updates.put((job.folder, fraction))

    return run_job(job, update)


def run_job(job: Job, progress: Callable[[float], None], **how: Any) -> Record:
    """Run one job in this process; `how` are the keyword arguments of `run_trial.run`.

    Raises:
        UserError: the trial was refused, or its code raised: then the traceback is in a file of its folder.
    """
    # Here, so that who only shows progress need not import torch.
    from labo import distributed
    from labo.experiment import run_trial

    machine.keep_freed_memory()
    _use_threads(job.trial.threads)
    begin = time.monotonic()

    def report(fraction: float) -> None:
        progress(fraction)
        if job.trial.tuning and (job.folder / STOP).exists():
            raise StoppedError

    try:
        return run_trial.run(job.trial, job.folder, report, **how)
    except StoppedError:
        return _stopped(job, time.monotonic() - begin)
    except UserError:
        raise
    except Exception as error:
        if distributed.is_peer_failure(error) or not distributed.should_report_failure():  # another process reports it
            raise
        path = job.folder / ERROR
        job.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        raise UserError(
            f"The trial {job.trial.name} broke: {type(error).__name__}: {first_line(error)}; the traceback is in "
            f"'{path}'."
        ) from error


def _stopped(job: Job, seconds: float) -> Record:
    """The record of a tuning trial that was stopped."""
    identity = {key: job.trial.identity()[key] for key in ("task", "method", "seed", "settings")}
    step = max((line["step"] for line in read_lines(job.folder / CURVE)), default=0)
    failed = {"step": step, "reason": PRUNED}
    return {**identity, "failed": failed, "seconds": round(seconds, 3), "versions": machine.versions()}
