"""What the finished runs of a comparison are measured on afterwards: a line for each run, and once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labo import machine
from labo.experiment import saved_run
from labo.experiment.compare import Watcher
from labo.experiment.executor import Job
from labo.experiment.run_lines import Run
from labo.experiment.run_trial import WEIGHTS
from labo.records import lock
from labo.records.storage import append_line, drop_cut_line, read_lines

Tell = Callable[[float], None]


@dataclass(frozen=True)
class Measurement:
    """What is measured, and where it is written.

    Args:
        file: of the comparison's folder, a line a run.
        phase: what the user is told meanwhile.
        wanted: what every run is measured on.
        known: of lines of the file, what each run has been measured on.
        find: the "scores" of a line: of a run's test examples, on what is missing. It tells how much is done.
    """

    file: str
    phase: str
    wanted: Sequence[Any]
    known: Callable[[Iterable[Mapping[str, Any]]], Mapping[Run, Mapping[Any, Any]]]
    find: Callable[[saved_run.Run, Any, Sequence[Any], Tell], Any]


def measure(folder: Path, jobs: Sequence[Job], asked: Measurement, watcher: Watcher) -> None:
    """Measure the runs of a comparison, and add a line for each; what is there is not done again.

    A line of other weights, of a run that was trained anew, does not count.

    Args:
        folder: of the comparison.
        jobs: its finished trials and the folders where they keep their weights.
        asked: what is measured.
        watcher: is told how it goes.

    Raises:
        UserError: a run is damaged, its data have changed, or another process holds the folder.
    """
    from labo.tasks.files import digest  # which imports pandas, and scoring one run has no need of it

    path = folder / asked.file
    with lock.hold(folder):
        if drop_cut_line(path):
            watcher.say(f"The last line of '{path}' was cut short and is dropped; its run is measured again.")
        lines, left = read_lines(path), []
        for job in jobs:
            weights = digest(job.folder / WEIGHTS)
            mine = [line for line in lines if line.get("weights") in (None, weights)]
            have = asked.known(mine).get(_key(job), {})
            if missing := [each for each in asked.wanted if each not in have]:
                left.append((job, weights, missing))
        watcher.begin(len(jobs), len(jobs) - len(left))
        watcher.phase(asked.phase)
        examples = _LastExamples()
        for job, weights, missing in left:
            began = time.monotonic()
            run = saved_run.load(job.folder)
            found = asked.find(run, examples.of(run), missing, lambda share, job=job: watcher.share(job, share))
            line = {"task": job.trial.task, "method": job.trial.method, "seed": job.trial.seed, "scores": found}
            line |= {"weights": weights, "seconds": round(time.monotonic() - began, 3)}
            line |= {"versions": machine.versions()}
            append_line(path, line)
            watcher.finished(job, line)


def _key(job: Job) -> Run:
    return job.trial.task, job.trial.method, job.trial.seed


class _LastExamples:
    """The test examples of the run before, for the next one if it has the same: methods share those of a seed."""

    def __init__(self) -> None:
        self.key, self.found = "", None

    def of(self, run: saved_run.Run) -> Any:
        key = json.dumps([run.about[name] for name in ("task", "task_options", "data", "seed")])
        if key != self.key:
            self.found = None  # let go of it before the next is made
            self.key, self.found = key, run.examples("test")
        return self.found
