"""A comparison: every method tuned alike, run on the same seeds, recorded as it goes.

`Plan` says which trials there are and which are left; `run` runs them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labo import machine, regularizers, tasks
from labo.errors import UserError, unknown
from labo.experiment import outlook, run_trial, tuning
from labo.experiment import settings as flat
from labo.experiment.executor import Executor, TrialExecutor, WorkerDied, default_processes
from labo.experiment.progress import ProgressReporter
from labo.experiment.ray_executor import RayCluster, RayExecutor
from labo.experiment.search import MIN_LENGTH, Problem, Search, space
from labo.experiment.settings import Settings
from labo.metrics import significance
from labo.records import lock
from labo.records.comparison import ComparisonWriter
from labo.records.trial import CHECKPOINTS, Job, Trial, read_record
from labo.tasks.base import Splits
from labo.training import checkpoints
from labo.wording import counted

# The user is told of a class that has at least this fraction of the test split.
MAJORITY = 0.8
# The method whose network is the teacher of those that need one.
TEACHER = "none"


@dataclass(frozen=True)
class ComparisonConfig:
    """The configuration of a comparison; see the options of `labo compare`.

    `set` has the settings that the user fixed for every method that has them; `jobs` is 0 for the default;
    with a `cluster` trials run there, otherwise in processes of this machine. With `tune`,
    settings are searched with this budget instead of chosen from candidates (see `labo.experiment.search`). `margin` is
    for the report: the points within which a difference is practically none, None for its default.
    """

    methods: Sequence[str]
    output: Path
    task: str = "digits"
    task_options: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 8
    baseline: str = "label_smoothing"
    settings_per_method: int = 3
    tuning_seeds: int = 3
    tune: float = 0.0
    set: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = "last"
    curves: bool = False
    save_seconds: float = 60.0
    jobs: int = 0
    cluster: RayCluster | None = None
    first_seed: int = 0
    command: Sequence[str] = ()
    margin: float | None = None

    @property
    def tries_several(self) -> bool:
        """Whether methods are tuned."""
        return bool(self.tune) or self.settings_per_method > 1


def run(config: ComparisonConfig, reporter: ProgressReporter) -> int:
    """Run the trials that are not recorded yet.

    Returns:
        How many trials did not finish because their worker died; the same command runs them again.

    Raises:
        UserError: something in the configuration is unknown, out of range, or does not fit what the folder holds.
    """
    with _begun(config, reporter) as (plan, records, executor):
        reporter.message(plan.power(records))
        teachers, tuning_jobs = plan.teacher_jobs(records), plan.tuning_jobs(records)
        left = len(teachers) + len(tuning_jobs) + plan.missing(records)
        if left == plan.total and config.cluster is None and (estimate := plan.first_estimate(left, processes(config))):
            reporter.message(estimate)
        reporter.begin(plan.total, plan.total - left)
        if teachers:
            reporter.phase("training teachers")
            if died := _run_teachers(executor, teachers, reporter):
                raise UserError(
                    f"{died} teachers did not finish ({WorkerDied().reason}); the same command trains them again."
                )
        reporter.phase("choosing settings")
        _search(plan, records, executor, reporter)
        if died := _run_jobs(executor, records, tuning_jobs, reporter):
            raise UserError(
                f"{died} tuning trials did not finish ({WorkerDied().reason}); the same command runs them again."
            )
        reporter.phase("running the chosen")
        return _run_jobs(executor, records, plan.jobs(records), reporter)


def tune(config: ComparisonConfig, reporter: ProgressReporter) -> tuple[Settings, list[str]]:
    """Search the settings of the only method of a comparison, which `run` can go on with.

    Returns:
        The best settings, and the names of those that were searched.

    Raises:
        UserError: as for `run`; the method decides by itself or needs a teacher, or all settings fail.
    """
    method = config.methods[0]
    if not regularizers.is_tuned(method):
        raise UserError(f"Method '{method}' chooses its settings by itself: train it with labo train.")
    with _begun(config, reporter) as (plan, records, executor):
        if plan.taught:
            raise UserError(
                f"Method '{method}' needs a teacher on each seed: search its settings in labo compare, with --tune."
            )
        _search(plan, records, executor, reporter)
        return plan.searched[method], list(plan.spaces[method])


@contextmanager
def _begun(config: ComparisonConfig, reporter: ProgressReporter) -> Iterator[tuple[Plan, ComparisonWriter, Executor]]:
    """(the plan of a comparison, the records in its folder, which is locked, where its trials run)."""
    _check(config)
    with ExitStack() as stack:
        stack.enter_context(lock.hold(config.output))
        executor = stack.enter_context(_executor(config))  # its workers start up meanwhile
        plan = Plan(config)
        for note in plan.notes:
            reporter.message(note)
        records = ComparisonWriter(config.output, reporter.message)
        records.begin(plan.as_json())
        yield plan, records, executor


def _search(plan: Plan, records: ComparisonWriter, executor: Executor, reporter: ProgressReporter) -> None:
    """Search the settings of each method within its budget.

    Raises:
        UserError: a worker died, or all settings of a method fail.
    """
    for problem in plan.problems(records) if plan.config.tune else ():
        folder = records.optuna_folder(problem.task)
        search = Search(problem, plan.config.tune, folder, records, reporter.message)
        for job, record in search.run(executor.run):
            if isinstance(record, WorkerDied):
                raise UserError(f"A tuning trial did not finish ({record.reason}); the same command runs it again.")
            search.finished(job, record)
            shutil.rmtree(job.folder, ignore_errors=True)
        if (chosen := search.chosen()) is None:
            raise UserError(f"All settings of method '{problem.method}' failed: a smaller learning rate may help.")
        plan.searched[problem.method] = chosen


def _check(config: ComparisonConfig) -> None:
    if not config.methods:
        raise UserError("Expected at least one method.")
    twice = [name for name in config.methods if list(config.methods).count(name) > 1]
    if twice:
        raise UserError(f"Method '{twice[0]}' is named twice.")
    if config.baseline not in config.methods:
        raise unknown("baseline", config.baseline, config.methods)
    for name in ("seeds", "settings_per_method", "tuning_seeds", "jobs"):
        value, minimum = getattr(config, name), 0 if name == "jobs" else 1
        if value < minimum:
            raise UserError(f"Expected --{name.replace('_', '-')} of at least {minimum}, but got {value}.")
    if config.tune and config.cluster is not None:
        raise UserError("A search with --tune runs on this machine: leave out --launcher ray, or --tune.")
    if config.tune and config.tune < config.tuning_seeds:
        raise UserError(
            f"Expected a budget of at least {counted(config.tuning_seeds, 'plain training')}, one for each tuning "
            f"seed, but got {config.tune:g}."
        )
    end = config.first_seed + config.seeds
    if config.first_seed < 0 or not (end <= tuning.FIRST_SEED or config.first_seed >= 2 * tuning.FIRST_SEED):
        raise UserError(
            f"Expected --first-seed and the seeds after it from 0 to {tuning.FIRST_SEED - 1} or from "
            f"{2 * tuning.FIRST_SEED}, for the tuning seeds lie between, but got {config.first_seed}."
        )
    tasks.describe(config.task)


def _executor(config: ComparisonConfig) -> TrialExecutor | RayExecutor:
    if config.cluster is not None:
        return RayExecutor(config.cluster, config.jobs)
    return TrialExecutor(processes(config))


def processes(config: ComparisonConfig) -> int:
    """How many processes of this machine run trials."""
    return min(config.jobs or default_processes(), max_concurrent_trials(config))


def max_concurrent_trials(config: ComparisonConfig) -> int:
    """How many trials can ever run at the same time."""
    candidates = math.ceil(config.tune / MIN_LENGTH) if config.tune else config.settings_per_method
    tuned = candidates * config.tuning_seeds if config.tries_several else 0
    return len(config.methods) * max(config.seeds, tuned)


def _run_jobs(executor: Executor, records: ComparisonWriter, jobs: list[Job], reporter: ProgressReporter) -> int:
    """Run and record jobs; returns how many did not finish."""
    died = 0
    _restart_outdated(jobs, reporter)
    for job, record in executor.run(jobs, reporter.update):
        if isinstance(record, WorkerDied):
            died += 1
        else:
            records.add(record, tuning=job.trial.tuning)
            if job.trial.tuning:
                shutil.rmtree(job.folder, ignore_errors=True)
        reporter.finished(job, record)
    return died


def _restart_outdated(jobs: list[Job], reporter: ProgressReporter) -> None:
    """Remove checkpoints that an earlier version wrote: its training loop was another."""
    count = sum(checkpoints.remove_outdated(job.folder / CHECKPOINTS) for job in jobs)
    if count:
        reporter.message(f"{counted(count, 'trial')} that an earlier version interrupted start again.")


def _run_teachers(executor: Executor, jobs: list[Job], reporter: ProgressReporter) -> int:
    """Train the teachers, whose records stay in their folders; returns how many did not finish."""
    died = 0
    _restart_outdated(jobs, reporter)
    for job, record in executor.run(jobs, reporter.update):
        died += isinstance(record, WorkerDied)
        reporter.finished(job, record)
        if not isinstance(record, WorkerDied) and record.get("failed"):
            raise UserError(f"The teacher of seed {job.trial.seed} failed: {record['failed']['reason']}.")
    return died


class Plan:
    """The trials of a comparison, all checked before the first one runs.

    Raises:
        UserError: a setting or a method is unknown, out of range or unfit for the task.
    """

    def __init__(self, config: ComparisonConfig) -> None:
        self.config = config
        self.task = tasks.create(config.task, **config.task_options)
        model = config.set.get("model")
        defaults = self.task.default_settings(model)
        flat.check_known(config.set, defaults, config.methods)
        optimizer = self.task.optimizer_candidates(model)
        count = 1 if config.tune else config.settings_per_method
        self.candidates = {
            method: tuning.candidates(method, count, defaults, optimizer, config.set) for method in config.methods
        }
        self.spaces = {
            method: space(method, defaults, optimizer, config.set)
            for method in (config.methods if config.tune else ())
            if regularizers.is_tuned(method)
        }
        # By method, what Optuna has found.
        self.searched: dict[str, Settings] = {}
        self.defaults = defaults
        self.data = self.task.fingerprint()
        splits = self.task.splits(0)
        for method, candidates in self.candidates.items():
            for settings in candidates:
                run_trial.build(self._trial(method, 0, settings), self.task, splits)
        self.taught = [method for method in config.methods if self._needs_teacher(method)]
        self.teacher_settings = flat.resolve(defaults, TEACHER, config.set)
        everything = [settings for candidates in self.candidates.values() for settings in candidates]
        notes = dict.fromkeys(note for settings in everything for note in self.task.notes(splits, settings))
        self.notes = [outlook.data_sentence(splits), *notes, *_majority_note(splits)]
        self._splits = splits

    def as_json(self) -> dict[str, Any]:
        """The plan as it is recorded."""
        config = self.config
        return {
            "command": list(config.command),
            "task": config.task,
            "task_options": self.task.options,
            "data": self.data,
            "methods": list(config.methods),
            "baseline": config.baseline,
            "seeds": config.seeds,
            **({"first_seed": config.first_seed} if config.first_seed else {}),
            "settings_per_method": 0 if config.tune else config.settings_per_method,
            "tuning_seeds": config.tuning_seeds if config.tries_several else 0,
            "tune": f"optuna:{config.tune:g}" if config.tune else None,
            "set": dict(config.set),
            "checkpoint": config.checkpoint,
            **({} if config.margin is None else {"margin": config.margin}),
            "candidates": self.candidates,
            "versions": machine.versions(),
        }

    def power(self, records: ComparisonWriter) -> str:
        """The smallest p that the seeds can reach, recorded ones included, in a sentence."""
        recorded = [record for record in records.results if record["task"] == self.config.task]
        seeds = len({record["seed"] for record in recorded} | set(self.seeds))
        comparisons = len({record["method"] for record in recorded} | set(self.config.methods)) - 1
        smallest = significance.smallest_p(seeds)
        sentence = f"{counted(seeds, 'seed')}: the smallest p that the sign-flip test can reach is {smallest:.3g}"
        if comparisons > 1:
            corrected = min(1.0, comparisons * smallest)
            sentence += f", {corrected:.3g} after Holm's correction over {comparisons} comparisons"
        if min(1.0, max(comparisons, 1) * smallest) > 0.05:
            sentence += "; with so few seeds no difference can be significant at 0.05"
        return sentence + "."

    def first_estimate(self, trials: int, processes: int) -> str | None:
        """A first estimate of the time of so many trials, in a sentence; None where its steps diverge."""
        trial = self._trial(TEACHER, 0, self.teacher_settings)
        return outlook.time_sentence(trial, self.task, self._splits, trials, processes)

    @property
    def seeds(self) -> range:
        """The seeds of the verdict."""
        return range(self.config.first_seed, self.config.first_seed + self.config.seeds)

    @property
    def total(self) -> int:
        """How many trials there are in all; one candidate needs no tuning."""
        config = self.config
        tuned = sum(len(candidates) for candidates in self.candidates.values() if len(candidates) > 1)
        return tuned * config.tuning_seeds + len(config.methods) * config.seeds + len(self._teacher_seeds())

    def teacher_jobs(self, records: ComparisonWriter) -> list[Job]:
        """The teachers that are still to be trained."""
        folders = {seed: records.teacher_folder(self.config.task, seed) for seed in self._teacher_seeds()}
        return [
            Job(self._trial(TEACHER, seed, self.teacher_settings), folder)
            for seed, folder in folders.items()
            if read_record(folder) is None
        ]

    def tuning_jobs(self, records: ComparisonWriter) -> list[Job]:
        """The tuning trials that are still to be run."""
        task, jobs = self.config.task, []
        for seed in tuning.seeds(self.config.tuning_seeds):
            for method, candidates in self.candidates.items():
                for index, settings in enumerate(candidates if len(candidates) > 1 else ()):
                    if records.tuning_result(task, method, seed, settings) is None:
                        teacher = self._teacher(records, method, seed)
                        trial = self._trial(method, seed, settings, tuned=True, teacher=teacher)
                        jobs.append(Job(trial, records.tuning_folder(task, method, index, seed)))
        return jobs

    def problems(self, records: ComparisonWriter) -> Iterator[Problem]:
        """What is searched, method by method."""
        for method, ranges in self.spaces.items():

            def resolve(values: Mapping[str, Any], method: str = method) -> Settings:
                return flat.resolve(self.defaults, method, values, self.config.set)

            def job(settings: Settings, seed: int, number: int, method: str = method) -> Job:
                teacher = self._teacher(records, method, seed)
                trial = self._trial(method, seed, settings, tuned=True, teacher=teacher)
                folder = records.tuning_folder(self.config.task, method, number, seed)
                return Job(replace(trial, curves=True), folder)

            start = self.candidates[method][0]
            yield Problem(
                task=self.config.task,
                method=method,
                space=ranges,
                start=start,
                length=float(start.get("epochs", 0)),
                seeds=tuning.seeds(self.config.tuning_seeds),
                metric=self.task.metric,
                resolve=resolve,
                job=job,
            )

    def missing(self, records: ComparisonWriter) -> int:
        """How many trials of the verdict are still to be run."""
        return sum(1 for _ in self._missing(records))

    def jobs(self, records: ComparisonWriter) -> list[Job]:
        """The trials of the verdict that are still to be run, seed by seed, with the settings that tuning chose."""
        chosen = {method: self._chosen_settings(records, method) for method in self.candidates}
        jobs = []
        for method, seed in self._missing(records):
            trial = self._trial(method, seed, chosen[method], teacher=self._teacher(records, method, seed))
            jobs.append(Job(trial, records.run_folder(self.config.task, method, seed)))
        return jobs

    def _missing(self, records: ComparisonWriter) -> Iterator[tuple[str, int]]:
        for seed in self.seeds:
            for method in self.candidates:
                if records.result(self.config.task, method, seed) is None:
                    yield method, seed

    def _trial(
        self, method: str, seed: int, settings: dict[str, Any], *, tuned: bool = False, teacher: Path | None = None
    ) -> Trial:
        config = self.config
        return Trial(
            config.task,
            method,
            seed,
            settings,
            dict(self.task.options),
            config.checkpoint,
            curves=config.curves and not tuned,
            save_seconds=config.save_seconds,
            tuning=tuned,
            data=self.data,
            teacher="" if teacher is None else f"{TEACHER} with the task's default settings, the same seed",
            teacher_folder="" if teacher is None else str(teacher),
        )

    def _needs_teacher(self, method: str) -> bool:
        return any("teacher" in flat.create_method(method, settings).needs for settings in self.candidates[method])

    def _teacher_seeds(self) -> list[int]:
        """The seeds that need a teacher: all, where a method does."""
        config = self.config
        tuned = tuning.seeds(config.tuning_seeds) if config.tries_several else []
        return [*tuned, *self.seeds] if self.taught else []

    def _teacher(self, records: ComparisonWriter, method: str, seed: int) -> Path | None:
        return records.teacher_folder(self.config.task, seed) if method in self.taught else None

    def _chosen_settings(self, records: ComparisonWriter, method: str) -> dict[str, Any]:
        candidates = self.candidates[method]
        if method in self.searched:
            return self.searched[method]
        if len(candidates) == 1:
            return candidates[0]
        key = (self.config.task, method)
        tried = [record for record in records.tuning if (record["task"], record["method"]) == key]
        return tuning.choose(tried, candidates, self.task.metric)


def _majority_note(splits: Splits) -> list[str]:
    """A warning where one class has most of the test split, so that accuracy starts high."""
    if splits.sequences:
        return []
    counts = splits.test.target.bincount(minlength=len(splits.classes))
    fraction = counts.max().item() / max(1, len(splits.test))
    if fraction < MAJORITY:
        return []
    name = splits.classes[int(counts.argmax())]
    return [f"The class '{name}' alone is {fraction:.1%} of the test split: always predicting it has this accuracy."]
