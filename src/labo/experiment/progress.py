"""Progress of trials on the terminal: a bar with the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from typing_extensions import override

from labo.experiment.executor import WorkerDied
from labo.records.trial import Job

# Seconds between two plain lines.
LINE_INTERVAL = 10.0


class ProgressReporter(Protocol):
    """Receives progress events."""

    def message(self, sentence: str) -> None:
        """A sentence for the user."""
        ...

    def begin(self, total: int, done: int) -> None:
        """There are `total` trials, of which `done` are recorded already."""
        ...

    def phase(self, name: str) -> None:
        """The purpose of the trials that follow."""
        ...

    def update(self, job: Job, fraction: float) -> None:
        """The fraction of a running trial that is done, 0 to 1."""
        ...

    def finished(self, job: Job, record: Mapping[str, Any] | WorkerDied) -> None:
        """A trial ended."""
        ...


class ConsoleProgress(ProgressReporter):
    """Shows progress on `out` (stderr), so that results on stdout can be piped; a context manager."""

    def __init__(self, out: TextIO | None = None) -> None:
        from rich.console import Console

        self.console = Console(file=out or sys.stderr, highlight=False, soft_wrap=True)
        self._bar: Any = None
        self._task: Any = None
        self._lines: _Lines | None = None
        self._fractions: dict[Path, float] = {}
        self._done = self._total = 0

    def __enter__(self) -> ConsoleProgress:
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), _time_left(), console=self.console)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @override
    def message(self, sentence: str) -> None:
        self.console.print(sentence, markup=False)

    @override
    def begin(self, total: int, done: int) -> None:
        self._done, self._total = done, total
        if done:
            self.message(f"{done} of {total} trials are recorded already.")
        if self._bar is not None:
            amount = _amount(done, done, total)
            self._task = self._bar.add_task("", total=total, completed=done, started_with=done, amount=amount)
        else:
            self._lines = _Lines(total, done)

    @override
    def phase(self, name: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=name)
        elif self._lines is not None:
            self._lines.name = name

    @override
    def update(self, job: Job, fraction: float) -> None:
        self._fractions[job.folder] = fraction
        self._show()

    @override
    def finished(self, job: Job, record: Mapping[str, Any] | WorkerDied) -> None:
        self._fractions.pop(job.folder, None)
        self._done += 1
        if isinstance(record, WorkerDied):
            self.message(f"Not finished: {job.trial.name}: {record.reason}.")
        elif failed := record.get("failed"):
            self.message(f"Failed: {job.trial.name}: {failed['reason']} at step {failed['step']}.")
        self._show()

    def _show(self) -> None:
        completed = self._done + sum(self._fractions.values())
        if self._bar is not None and self._task is not None:
            amount = _amount(completed, self._done, self._total)
            self._bar.update(self._task, completed=completed, amount=amount)
        elif self._lines is not None and (line := self._lines.line(completed, self._done)):
            self.message(line)


class _Lines:
    """The plain lines, one every `LINE_INTERVAL` seconds and a last one."""

    def __init__(self, total: int, done: int) -> None:
        self.name, self.total, self.done_at_start = "", total, done
        self.start = self.last_line = time.monotonic()

    def line(self, completed: float, done: int) -> str | None:
        """The line to print now, or None."""
        now = time.monotonic()
        if now - self.last_line < LINE_INTERVAL and done < self.total:
            return None
        self.last_line = now
        elapsed = now - self.start
        left = seconds_left(elapsed, completed - self.done_at_start, self.total - completed)
        about = "" if left is None or done == self.total else f", about {clock(left)} left"
        return f"{self.name}: {_amount(completed, done, self.total)}, {clock(elapsed)} elapsed{about}"


def _amount(completed: float, done: int, total: int) -> str:
    """`12 of 36`, or the percentage of a single trial."""
    return f"{min(1.0, completed):.0%}" if total == 1 else f"{done} of {total}"


def seconds_left(elapsed: float, done: float, missing: float) -> float | None:
    """The time for what is missing at the pace so far; None before anything is done."""
    return elapsed / done * missing if done > 0 else None


def clock(seconds: float) -> str:
    """0:42, 12:05, 3:10:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _time_left() -> Any:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        """The time left at the pace of this command; what earlier commands recorded does not count."""

        def render(self, task: Any) -> Text:
            done_at_start = task.fields.get("started_with", 0)
            left = seconds_left(task.elapsed or 0.0, task.completed - done_at_start, task.remaining or 0.0)
            return Text("–:–– left" if left is None else f"{clock(left)} left", style="progress.remaining")

    return TimeLeft()
