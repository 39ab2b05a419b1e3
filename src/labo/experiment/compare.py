"""The comparison: every method tuned alike, run on the same seeds, recorded as it goes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from labo import tasks
from labo.errors import UserError, unknown
from labo.experiment import tuning
from labo.experiment.executor import Job, Lost, Runner, at_once
from labo.experiment.plan import Comparison, Plan
from labo.experiment.records import Records
from labo.records import lock


class Watcher(Protocol):
    """Who is told how it goes."""

    def say(self, sentence: str) -> None:
        """A sentence for the user."""
        ...

    def begin(self, total: int, done: int) -> None:
        """There are `total` trials, `done` of which are recorded already."""
        ...

    def phase(self, name: str) -> None:
        """What the trials that come now are for."""
        ...

    def share(self, job: Job, share: float) -> None:
        """How much of a running trial is done, 0 to 1."""
        ...

    def finished(self, job: Job, record: Mapping[str, Any] | Lost) -> None:
        """A trial ended."""
        ...


def run(asked: Comparison, watcher: Watcher) -> int:
    """Run what is not recorded yet; how many trials were lost (they run again with the same command).

    Raises:
        UserError: something asked for is not there, out of range, or does not fit what the folder holds.
    """
    _check(asked)
    with ExitStack() as stack:
        stack.enter_context(lock.hold(asked.output))
        processes = min(asked.jobs or at_once(), most_at_once(asked))
        runner = stack.enter_context(Runner(processes))  # its processes warm up meanwhile
        plan = Plan(asked, watcher.say)
        records = Records(asked.output, watcher.say)
        records.begin(plan.written())
        watcher.say(plan.reach(records))
        first, teachers = plan.tuning_jobs(records), plan.teacher_jobs(records)
        watcher.begin(plan.total, plan.total - len(teachers) - len(first) - plan.missing(records))
        if teachers:
            watcher.phase("training teachers")
            if lost := _teach(runner, teachers, watcher):
                raise UserError(f"{lost} teachers were lost ({Lost().reason}); the same command trains them again.")
        watcher.phase("choosing settings")
        lost = _run(runner, records, first, watcher)
        if lost:
            raise UserError(f"{lost} tuning trials were lost ({Lost().reason}); the same command tries them again.")
        watcher.phase("running the chosen")
        return _run(runner, records, plan.jobs(records), watcher)


def _check(asked: Comparison) -> None:
    if not asked.methods:
        raise UserError("Expected at least one method.")
    twice = [name for name in asked.methods if list(asked.methods).count(name) > 1]
    if twice:
        raise UserError(f"Method '{twice[0]}' is named twice.")
    if asked.baseline not in asked.methods:
        raise unknown("baseline", asked.baseline, asked.methods)
    for name in ("seeds", "settings_per_method", "tuning_seeds", "jobs"):
        least = 0 if name == "jobs" else 1
        if getattr(asked, name) < least:
            raise UserError(f"Expected --{name.replace('_', '-')} of at least {least}, but got {getattr(asked, name)}.")
    last = asked.first_seed + asked.seeds
    if asked.first_seed < 0 or not (last <= tuning.FIRST_SEED or asked.first_seed >= 2 * tuning.FIRST_SEED):
        raise UserError(
            f"Expected --first-seed and the seeds after it from 0 to {tuning.FIRST_SEED - 1} or from "
            f"{2 * tuning.FIRST_SEED}, for the tuning seeds lie between, but got {asked.first_seed}."
        )
    tasks.describe(asked.task)


def most_at_once(asked: Comparison) -> int:
    """How many trials can ever run at the same time."""
    tuned = asked.settings_per_method * asked.tuning_seeds if asked.settings_per_method > 1 else 0
    return len(asked.methods) * max(asked.seeds, tuned)


def _run(runner: Runner, records: Records, jobs: list[Job], watcher: Watcher) -> int:
    lost = 0
    for job, record in runner.run(jobs, watcher.share):
        if isinstance(record, Lost):
            lost += 1
        else:
            records.add(record, tuning=job.trial.tuning)
            if job.trial.tuning:
                shutil.rmtree(job.folder, ignore_errors=True)
        watcher.finished(job, record)
    return lost


def _teach(runner: Runner, jobs: list[Job], watcher: Watcher) -> int:
    """Train the teachers, whose records stay in their folders."""
    lost = 0
    for job, record in runner.run(jobs, watcher.share):
        lost += isinstance(record, Lost)
        watcher.finished(job, record)
        if not isinstance(record, Lost) and record.get("failed"):
            raise UserError(f"The teacher of seed {job.trial.seed} failed: {record['failed']['reason']}.")
    return lost
