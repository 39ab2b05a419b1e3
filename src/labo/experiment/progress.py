"""What the user sees while trials run: a bar with the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from labo.experiment.executor import Job, Lost

# Seconds between two plain lines.
PAUSE = 10.0


class Progress:
    """Tells on `out` (stderr) how a comparison goes; a context manager. Results go to stdout, so they can be piped."""

    def __init__(self, out: TextIO | None = None) -> None:
        from rich.console import Console

        self.console = Console(file=out or sys.stderr, highlight=False, soft_wrap=True)
        self._bar: Any = None
        self._task: Any = None
        self._lines: _Lines | None = None
        self._shares: dict[Path, float] = {}
        self._done = self._total = 0

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
            self._bar = Bar(*columns, TimeElapsedColumn(), _time_left(), console=self.console)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, sentence: str) -> None:
        """A sentence for the user."""
        self.console.print(sentence, markup=False)

    def begin(self, total: int, done: int) -> None:
        """There are `total` trials, `done` of which are recorded already."""
        self._done, self._total = done, total
        if done:
            self.say(f"{done} of {total} trials are recorded already.")
        if self._bar is not None:
            amount = _amount(done, done, total)
            self._task = self._bar.add_task("", total=total, completed=done, started_with=done, amount=amount)
        else:
            self._lines = _Lines(total, done)

    def phase(self, name: str) -> None:
        """What the trials that come now are for."""
        if self._bar is not None:
            self._bar.update(self._task, description=name)
        elif self._lines is not None:
            self._lines.name = name

    def share(self, job: Job, share: float) -> None:
        """How much of a running trial is done, 0 to 1."""
        self._shares[job.folder] = share
        self._show()

    def finished(self, job: Job, record: Mapping[str, Any] | Lost) -> None:
        """A trial ended."""
        self._shares.pop(job.folder, None)
        self._done += 1
        if isinstance(record, Lost):
            self.say(f"Lost: {job.trial.name}: {record.reason}.")
        elif record.get("failed"):
            self.say(f"Failed: {job.trial.name}: {record['failed']['reason']} at step {record['failed']['step']}.")
        self._show()

    def _show(self) -> None:
        completed = self._done + sum(self._shares.values())
        if self._bar is not None and self._task is not None:
            amount = _amount(completed, self._done, self._total)
            self._bar.update(self._task, completed=completed, amount=amount)
        elif self._lines is not None and (line := self._lines.line(completed, self._done)):
            self.say(line)


class _Lines:
    """The plain lines, one every `PAUSE` seconds and a last one."""

    def __init__(self, total: int, done: int) -> None:
        self.name, self.total, self.start = "", total, done
        self.began = self.told = time.monotonic()

    def line(self, completed: float, done: int) -> str | None:
        """The line to print now, or None."""
        now = time.monotonic()
        if now - self.told < PAUSE and done < self.total:
            return None
        self.told = now
        left = seconds_left(now - self.began, completed - self.start, self.total - completed)
        about = "" if left is None or done == self.total else f", about {clock(left)} left"
        return f"{self.name}: {_amount(completed, done, self.total)}, {clock(now - self.began)} elapsed{about}"


def _amount(completed: float, done: int, total: int) -> str:
    """`12 of 36`, or the share of a single trial."""
    return f"{min(1.0, completed):.0%}" if total == 1 else f"{done} of {total}"


def seconds_left(elapsed: float, done: float, missing: float) -> float | None:
    """The time that what is missing takes at the pace so far; None before anything is done."""
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
        """From the pace since the beginning; what earlier commands had recorded does not count."""

        def render(self, task: Any) -> Text:
            start = task.fields.get("started_with", 0)
            left = seconds_left(task.elapsed or 0.0, task.completed - start, task.remaining or 0.0)
            return Text("–:–– left" if left is None else f"{clock(left)} left", style="progress.remaining")

    return TimeLeft()
