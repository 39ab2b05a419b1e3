"""What a comparison comes to: which trials there are, which are recorded, which are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labo import machine, tasks
from labo.experiment import settings as flat
from labo.experiment import tuning
from labo.experiment.executor import Job
from labo.experiment.records import Records
from labo.experiment.run_trial import Trial, build, build_method, finished
from labo.metrics import significance
from labo.tasks.base import Splits

# From this share of the test split on, the user is told of the largest class.
MAJORITY = 0.8
# The method whose network teaches those that need a teacher.
TEACHER = "none"


@dataclass(frozen=True)
class Comparison:
    """What is asked for. `set` is what the user fixed for every method that has it; `seeds` how many there are."""

    methods: Sequence[str]
    output: Path
    task: str = "digits"
    task_options: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 8
    baseline: str = "label_smoothing"
    settings_per_method: int = 3
    tuning_seeds: int = 3
    set: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = "last"
    curves: bool = False
    save_seconds: float = 60.0
    jobs: int = 0
    first_seed: int = 0
    command: Sequence[str] = ()


class Plan:
    """What the comparison comes to, found out and checked before anything runs."""

    def __init__(self, asked: Comparison, say: Callable[[str], None]) -> None:
        self.asked = asked
        self.task = tasks.create(asked.task, **asked.task_options)
        defaults = self.task.default_settings(asked.set.get("model"))
        flat.check_known(asked.set, defaults, asked.methods)
        count, optimizer = asked.settings_per_method, self.task.optimizer_candidates(asked.set.get("model"))
        self.candidates = {
            method: tuning.candidates(method, count, defaults, optimizer, asked.set) for method in asked.methods
        }
        self.data = self.task.fingerprint()
        splits = self.task.splits(0)
        for method, among in self.candidates.items():
            for settings in among:
                build(self._trial(method, 0, settings), self.task, splits)
        self.taught = [name for name in asked.methods if self._needs_teacher(name)]
        self.teacher = flat.resolve(defaults, TEACHER, asked.set)
        tried = (settings for among in self.candidates.values() for settings in among)
        notes = dict.fromkeys(note for settings in tried for note in self.task.notes(splits, settings))
        for note in (*notes, *_majority(splits)):
            say(note)

    def written(self) -> dict[str, Any]:
        """The plan as it is recorded."""
        asked = self.asked
        return {
            "command": list(asked.command),
            "task": asked.task,
            "task_options": self.task.options,
            "data": self.data,
            "methods": list(asked.methods),
            "baseline": asked.baseline,
            "seeds": asked.seeds,
            **({"first_seed": asked.first_seed} if asked.first_seed else {}),
            "settings_per_method": asked.settings_per_method,
            "tuning_seeds": asked.tuning_seeds if asked.settings_per_method > 1 else 0,
            "set": dict(asked.set),
            "checkpoint": asked.checkpoint,
            "candidates": self.candidates,
            "versions": machine.versions(),
        }

    def reach(self, records: Records) -> str:
        """What so many seeds can tell at best, with all that is recorded and will be."""
        recorded = [record for record in records.results if record["task"] == self.asked.task]
        seeds = len({record["seed"] for record in recorded} | set(self.seeds))
        others = len({record["method"] for record in recorded} | set(self.asked.methods)) - 1
        least = significance.smallest_p(seeds)
        told = f"{_many(seeds, 'seed')}: the smallest p that the sign-flip test can reach is {least:.3g}"
        if others > 1:
            told += f", {min(1.0, others * least):.3g} after Holm's correction over {others} comparisons"
        if min(1.0, max(others, 1) * least) > 0.05:
            told += "; with so few seeds nothing can be told apart at 0.05"
        return told + "."

    @property
    def seeds(self) -> range:
        """The seeds of the verdict."""
        return range(self.asked.first_seed, self.asked.first_seed + self.asked.seeds)

    def _needs_teacher(self, method: str) -> bool:
        return any("teacher" in build_method(method, settings).needs for settings in self.candidates[method])

    def _trial(
        self, method: str, seed: int, settings: dict[str, Any], *, tuned: bool = False, teacher: Path | None = None
    ) -> Trial:
        asked = self.asked
        return Trial(
            asked.task,
            method,
            seed,
            settings,
            dict(self.task.options),
            asked.checkpoint,
            curves=asked.curves and not tuned,
            save_seconds=asked.save_seconds,
            tuning=tuned,
            data=self.data,
            teacher="" if teacher is None else f"{TEACHER} with the task's default settings, the same seed",
            teacher_folder="" if teacher is None else str(teacher),
        )

    @property
    def total(self) -> int:
        """How many trials there are in all; one candidate needs no tuning."""
        asked = self.asked
        tried = sum(len(among) for among in self.candidates.values() if len(among) > 1)
        return tried * asked.tuning_seeds + len(asked.methods) * asked.seeds + len(self._teacher_seeds())

    def _teacher_seeds(self) -> list[int]:
        """The seeds that need a teacher: all, where a method does."""
        asked = self.asked
        tuned = tuning.seeds(asked.tuning_seeds) if asked.settings_per_method > 1 else []
        return [*tuned, *self.seeds] if self.taught else []

    def teacher_jobs(self, records: Records) -> list[Job]:
        """The teachers that are still to be trained."""
        folders = {seed: records.teacher_folder(self.asked.task, seed) for seed in self._teacher_seeds()}
        return [
            Job(self._trial(TEACHER, seed, self.teacher), folder)
            for seed, folder in folders.items()
            if finished(folder) is None
        ]

    def _teacher_of(self, records: Records, method: str, seed: int) -> Path | None:
        return records.teacher_folder(self.asked.task, seed) if method in self.taught else None

    def tuning_jobs(self, records: Records) -> list[Job]:
        """What is still to be tried."""
        jobs = []
        for seed in tuning.seeds(self.asked.tuning_seeds):
            for method, among in self.candidates.items():
                for index, settings in enumerate(among if len(among) > 1 else ()):
                    if records.tried(self.asked.task, method, seed, settings) is None:
                        folder = records.tuning_folder(self.asked.task, method, index, seed)
                        teacher = self._teacher_of(records, method, seed)
                        jobs.append(Job(self._trial(method, seed, settings, tuned=True, teacher=teacher), folder))
        return jobs

    def missing(self, records: Records) -> int:
        """How many trials of the verdict are still to be run."""
        return sum(1 for _ in self._left(records))

    def jobs(self, records: Records) -> list[Job]:
        """What is still to be run, seed by seed, with the settings that tuning chose."""
        chosen = {method: self._chosen(records, method) for method in self.candidates}
        task = self.asked.task
        jobs = []
        for method, seed in self._left(records):
            teacher = self._teacher_of(records, method, seed)
            found = self._trial(method, seed, chosen[method], teacher=teacher)
            jobs.append(Job(found, records.run_folder(task, method, seed)))
        return jobs

    def _left(self, records: Records) -> Iterator[tuple[str, int]]:
        for seed in self.seeds:
            for method in self.candidates:
                if records.result(self.asked.task, method, seed) is None:
                    yield method, seed

    def _chosen(self, records: Records, method: str) -> dict[str, Any]:
        among = self.candidates[method]
        if len(among) == 1:
            return among[0]
        wanted = (self.asked.task, method)
        tried = [record for record in records.tuning if (record["task"], record["method"]) == wanted]
        return tuning.choose(tried, among, self.task.metric)


def _majority(splits: Splits) -> list[str]:
    """What to say where one class holds most of the test split: accuracy begins there."""
    if splits.sequences:
        return []
    counts = splits.test.target.bincount(minlength=len(splits.classes))
    share = counts.max().item() / max(1, len(splits.test))
    if share < MAJORITY:
        return []
    name = splits.classes[int(counts.argmax())]
    return [f"The class '{name}' alone is {share:.1%} of the test split: an accuracy of so much tells nothing."]


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
