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
from labo.wording import counted

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
        self._pace = Pace(0, 0)

    def __enter__(self) -> ConsoleProgress:
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), _time_left(self), console=self.console)
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
        self._done, self._total, self._pace = done, total, Pace(total, done)
        if done:
            self.message(f"{done} of {counted(total, 'trial is', 'trials are')} recorded already.")
        if self._bar is not None:
            amount = _amount(done, done, total)
            self._task = self._bar.add_task("", total=total, completed=done, amount=amount)
        else:
            self._lines = _Lines(total)

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
        elif self._lines is not None and (line := self._lines.line(completed, self._done, self.seconds_left())):
            self.message(line)

    def seconds_left(self) -> float | None:
        """The time left at the pace of this command; None where it is unknown."""
        return self._pace.seconds_left(time.monotonic(), self._done + sum(self._fractions.values()))


class _Lines:
    """The plain lines, one every `LINE_INTERVAL` seconds and a last one."""

    def __init__(self, total: int) -> None:
        self.name, self.total = "", total
        self.start = self.last_line = time.monotonic()

    def line(self, completed: float, done: int, left: float | None) -> str | None:
        """The line to print now, or None; `left` are the seconds left, if known."""
        now = time.monotonic()
        if now - self.last_line < LINE_INTERVAL and done < self.total:
            return None
        self.last_line = now
        about = "" if left is None or done == self.total else f", about {clock(left)} left"
        return f"{self.name}: {_amount(completed, done, self.total)}, {clock(now - self.start)} elapsed{about}"


class Pace:
    """How fast trials go, from the first progress on: what comes before it, such as starting workers, comes once.

    The time left is unknown until there is something to go by: `MIN_SECONDS` in which `MIN_FRACTION` of what was
    missing is done, or `ENOUGH_SECONDS`.

    Args:
        total: number of trials.
        done: number of trials that are recorded already.
    """

    MIN_SECONDS, ENOUGH_SECONDS, MIN_FRACTION = 3.0, 60.0, 0.02

    def __init__(self, total: int, done: float) -> None:
        self.total, self.done = total, done
        self.start: float | None = None

    def seconds_left(self, now: float, completed: float) -> float | None:
        """The time for what is missing, in seconds, or None where it is unknown.

        Args:
            now: time in seconds.
            completed: number of trials, with the fractions of those that run.
        """
        if self.start is None:
            if completed > self.done:
                self.start, self.done = now, completed
            return None
        seconds, done, missing = now - self.start, completed - self.done, self.total - completed
        known = seconds >= self.MIN_SECONDS and done >= self.MIN_FRACTION * (done + missing)
        return seconds / done * missing if done > 0 and (known or seconds >= self.ENOUGH_SECONDS) else None


def _amount(completed: float, done: int, total: int) -> str:
    """`12 of 36`, or the percentage of a single trial."""
    return f"{min(1.0, completed):.0%}" if total == 1 else f"{done} of {total}"


def clock(seconds: float) -> str:
    """0:42, 12:05, 3:10:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _time_left(progress: ConsoleProgress) -> Any:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        """The time left at the pace of this command; what earlier commands recorded does not count."""

        def render(self, task: Any) -> Text:
            left = progress.seconds_left()
            return Text("–:–– left" if left is None else f"{clock(left)} left", style="progress.remaining")

    return TimeLeft()
