"""Settings searched by Optuna: TPE over a method's ranges, the training's length and the optimizer's settings.

The budget is in plain trainings of the task's length, so that every method has the same, whatever it tries. Each seed
of each setting that was tried is a line of tuning.jsonl, with its `cost`; Optuna's own storage is an SQLite file beside
it. A search that was killed goes on with what it had begun.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from labo import regularizers
from labo.errors import UserError
from labo.experiment import tuning
from labo.experiment.settings import LENGTHS, Settings
from labo.records.comparison import ComparisonWriter
from labo.records.storage import read_lines, write_text
from labo.records.trial import CURVE, PRUNED, STOP, Job, plain_runs
from labo.regularizers.search_space import Range, spanned

# The shortest training that is tried, as a fraction of the task's.
MIN_LENGTH = 1 / 6
# Settings drawn at random before TPE proposes, and those that finish before one is pruned; the defaults are the first.
RANDOM_TRIALS, UNPRUNED_TRIALS = 5, 4
# Settings proposed one after another that were all tried before: then the space is exhausted.
MAX_REPEATED = 20
# Numbers have so many significant digits: the printed command gives the run that was tried.
DIGITS = 3
# In Optuna's steps, the means over several seeds come after all epochs.
_AFTER_EPOCHS = 1_000_000

Say = Callable[[str], None]


def parse(text: str) -> float:
    """("optuna:12") to 12.0, the budget of each method.

    Raises:
        UserError: it is not of this form.
    """
    name, colon, number = text.partition(":")
    try:
        budget = float(number) if name == "optuna" and colon else 0.0
    except ValueError:
        budget = 0.0
    if not 0 < budget < math.inf:
        raise UserError(f"Expected --tune optuna:N with a number N of plain trainings above 0, but got '{text}'.")
    return budget


def space(
    method: str, defaults: Mapping[str, Any], optimizer: Sequence[Mapping[str, Any]], fixed: Mapping[str, Any]
) -> dict[str, Range]:
    """The settings that are searched for a method and their ranges; those that the user `fixed` are not.

    `defaults` are the task's, `optimizer` its candidates for the optimizer's settings.
    """
    ranges = {**regularizers.ranges(method, fixed), **spanned(optimizer, defaults)}
    if "epochs" in defaults and not any(name in fixed for name in LENGTHS):
        longest = int(defaults["epochs"])
        ranges["epochs"] = Range(max(1, round(longest * MIN_LENGTH)), longest, log=True, whole=True)
    return {name: each for name, each in ranges.items() if name not in fixed and (each.choices or each.low < each.high)}


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Args:
        task, method: their names.
        space: of `space`.
        start: the values that are tried first.
        length: in epochs, of a plain training; 0 where the length is given in steps.
        seeds: that each setting is tried on.
        metric: of the validation split; higher is better, but for "nll…".
        resolve: values of the space to all settings of a run.
        job: (settings, seed, a number) to the tuning trial.
    """

    task: str
    method: str
    space: Mapping[str, Range]
    start: Mapping[str, Any]
    length: float
    seeds: Sequence[int]
    metric: str
    resolve: Callable[[Mapping[str, Any]], Settings]
    job: Callable[[Settings, int, int], Job]


@dataclass
class _Attempt:
    """Settings that are being tried: on one seed after another, as `job` while one runs."""

    trial: Any
    settings: Settings
    job: Job | None = None
    read: int = 0  # lines of the job's curve
    fraction: float = 0.0


class Search:
    """A search under way: `jobs` proposes, `update` prunes, `finished` records.

    Args:
        problem: what is searched.
        budget: in plain trainings.
        folder: of Optuna's file.
        records: where tuning trials are recorded.
        say: receives a sentence about each setting that was tried.

    Raises:
        UserError: the file is of another version of Optuna, or damaged.
    """

    def __init__(self, problem: Problem, budget: float, folder: Path, records: ComparisonWriter, say: Say) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.problem, self.budget, self.records, self.say = problem, budget, records, say
        self._optuna, self._states = optuna, optuna.trial.TrialState
        self._study = self._open(folder)
        running = self._study.get_trials(states=(self._states.RUNNING,))
        self._repeated, self._attempts = 0, list[_Attempt]()
        for each in running:  # what a kill has left
            self._attempts.append(self._attempt(optuna.trial.Trial(self._study, each._trial_id)))

    def _open(self, folder: Path) -> Any:
        optuna, problem = self._optuna, self.problem
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "optuna.db"
        descends = problem.metric.startswith("nll")
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=self._stages // 4, n_min_trials=2
        )
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{path.absolute()}",
                study_name=problem.method,
                direction="minimize" if descends else "maximize",
                pruner=pruner,
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy's and Optuna's own, which depend on where it is damaged
            raise UserError(f"Cannot read '{path}' ({type(error).__name__}): name another --output.") from error
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial({name: _stored(problem.start[name], each) for name, each in problem.space.items()})
        return study

    @property
    def spent(self) -> float:
        """What the tuning trials so far cost, in plain trainings."""
        return sum(float(line.get("cost", 0)) for line in self._lines())

    def run(self, execute: Callable[..., Iterator[tuple[Job, Any]]]) -> Iterator[tuple[Job, Any]]:
        """(job, record) of each tuning trial, as `execute(jobs, update)` runs them, until the budget is spent.

        The caller records what it gets by `finished`, before it asks for the next.
        """
        while True:
            count = 0
            for job, record in execute(self._jobs(), self.update):
                count += 1
                yield job, record
            if not count:  # what pruning has saved may allow more
                return

    def _jobs(self) -> Iterator[Job]:
        while (job := self._next()) is not None:
            yield job

    def update(self, job: Job, fraction: float) -> None:
        """Report the new epochs of a job to Optuna, and stop the job where its median pruner says so."""
        attempt = self._attempt_of(job)
        attempt.fraction = fraction
        if job.trial.seed != self.problem.seeds[0]:
            return
        epochs = attempt.settings.get("epochs")
        due = epochs is None or int(fraction * epochs + 1e-9) > attempt.read
        lines = read_lines(job.folder / CURVE) if due else []
        for line in lines[attempt.read :]:
            value = line.get(f"validation_{self.problem.metric}")
            if value is not None and self._report(attempt, value, self._stage(attempt, line)):
                write_text(job.folder / STOP, "pruned\n")
        attempt.read = max(attempt.read, len(lines))

    def finished(self, job: Job, record: Mapping[str, Any]) -> None:
        """Record a tuning trial."""
        attempt = self._attempt_of(job)
        fraction = attempt.fraction if record.get("failed") else 1.0
        cost = round(fraction * self._cost(attempt.settings) * plain_runs(record), 4)
        self.records.add({**record, "cost": cost}, tuning=True)
        attempt.job, attempt.read, attempt.fraction = None, 0, 0.0

    def chosen(self) -> Settings | None:
        """The best settings of those that finished on all seeds; None if none did."""
        lines, seeds = self._lines(), len(self.problem.seeds)
        counts: dict[str, list[Any]] = {}
        for line in lines:
            counts.setdefault(json.dumps(line["settings"], sort_keys=True), []).append(line)
        whole = [
            tried[0]["settings"]
            for tried in counts.values()
            if len({line["seed"] for line in tried}) == seeds and not any(line.get("failed") for line in tried)
        ]
        return tuning.choose(lines, whole, self.problem.metric) if whole else None

    def _lines(self) -> list[dict[str, Any]]:
        """The tuning trials of this method on these seeds."""
        own = (self.problem.task, self.problem.method)
        return [line for line in self.records.tuning if (line["task"], line["method"]) == own]

    def _next(self) -> Job | None:
        for attempt in [each for each in self._attempts if each.job is None]:
            if (job := self._next_seed(attempt)) is not None:
                return job
        while self._repeated < MAX_REPEATED and self._affordable():
            attempt = self._attempt(self._ask())
            self._attempts.append(attempt)
            if (job := self._next_seed(attempt)) is not None:
                self._repeated = 0
                return job
            self._repeated += 1
        return None

    def _next_seed(self, attempt: _Attempt) -> Job | None:
        """The job of the next seed; None, and Optuna is told the result, where there is none left."""
        values: list[float] = []
        for seed in self.problem.seeds:
            line = self.records.tuning_result(self.problem.task, self.problem.method, seed, attempt.settings)
            if line is None:
                stop = bool(values) and self._report(attempt, fmean(values), _AFTER_EPOCHS + len(values))
                return self._close(attempt, self._states.PRUNED) if stop else self._start(attempt, seed)
            if line.get("failed"):
                pruned = line["failed"]["reason"] == PRUNED
                return self._close(attempt, self._states.PRUNED if pruned else self._states.FAIL)
            values.append(float(line["validation"][self.problem.metric]))
        return self._close(attempt, self._states.COMPLETE, fmean(values))

    def _start(self, attempt: _Attempt, seed: int) -> Job:
        attempt.job = self.problem.job(attempt.settings, seed, attempt.trial.number)
        attempt.read, attempt.fraction = 0, 0.0
        return attempt.job

    def _close(self, attempt: _Attempt, state: Any, value: float | None = None) -> None:
        self._study.tell(attempt.trial.number, value, state=state)
        self._attempts.remove(attempt)
        result = state.name.lower() if value is None else f"{self.problem.metric} {value:.4g}"
        values = ", ".join(f"{name} {attempt.settings[name]}" for name in self.problem.space)
        spent = f"{self.spent:.1f} of {self.budget:g} trainings"
        self.say(f"{self.problem.method}, settings {attempt.trial.number + 1}: {result} ({values}); {spent}.")

    def _affordable(self) -> bool:
        """Whether the shortest training is, on all seeds, beside what is under way."""
        return self._left() >= self._shortest * len(self.problem.seeds) - 1e-9

    def _left(self) -> float:
        """The budget without what is spent, and without what the settings under way may still cost."""
        left = self.budget - self.spent
        for attempt in self._attempts:
            known = [self.records.tuning_result(self.problem.task, self.problem.method, seed, attempt.settings)
                     for seed in self.problem.seeds]  # fmt: skip
            left -= self._cost(attempt.settings) * known.count(None)
        return left

    @property
    def _shortest(self) -> float:
        """The cost of the shortest training on one seed."""
        epochs = self.problem.space.get("epochs")
        return epochs.low / self.problem.length if epochs else 1.0

    def _cost(self, settings: Settings) -> float:
        return float(settings["epochs"]) / self.problem.length if self.problem.length else 1.0

    def _ask(self) -> Any:
        number = len(self._study.get_trials(deepcopy=False))
        # A sampler of its own for each number: after a kill, the next proposal is the one that there would have been.
        self._study.sampler = self._optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=number)
        return self._study.ask()

    def _attempt(self, trial: Any) -> _Attempt:
        values: dict[str, Any] = {}
        for name, each in self.problem.space.items():
            if each.choices:  # by number: Optuna stores nothing but plain values
                values[name] = each.choices[trial.suggest_categorical(name, [*range(len(each.choices))])]
            elif each.whole:
                high = self._longest(trial, each) if name == "epochs" else each.high
                values[name] = trial.suggest_int(name, int(each.low), int(high), log=each.log)
            else:
                values[name] = _rounded(trial.suggest_float(name, each.low, each.high, log=each.log))
        return _Attempt(trial, self.problem.resolve(values))

    def _longest(self, trial: Any, epochs: Range) -> float:
        """The most epochs for which what is left suffices on all seeds; those that a trial before a kill had."""
        if known := trial.distributions.get("epochs"):
            return known.high
        left = self._left() / len(self.problem.seeds) * self.problem.length
        return max(epochs.low, min(epochs.high, left + 1e-6))

    def _attempt_of(self, job: Job) -> _Attempt:
        return next(attempt for attempt in self._attempts if attempt.job == job)

    @property
    def _stages(self) -> int:
        return int(self.problem.length) if self._constant else 10

    @property
    def _constant(self) -> bool:
        """Whether the learning rate does not depend on the length of the run, so that its epochs can be compared."""
        return bool(self.problem.length) and self.problem.resolve(self.problem.start)["schedule"] == "constant"

    def _stage(self, attempt: _Attempt, line: Mapping[str, Any]) -> int:
        """How far a run is: the epoch, or tenths of it where the learning rate decays."""
        if self._constant:
            return math.ceil(line["epoch"])
        whole = attempt.settings["steps"] if "steps" in attempt.settings else attempt.settings["epochs"]
        return int(10 * line["step" if "steps" in attempt.settings else "epoch"] / whole)

    def _report(self, attempt: _Attempt, value: float, step: int) -> bool:
        """Report a value, and return whether the settings are to be pruned."""
        if step in self._study.get_trials(deepcopy=False)[attempt.trial.number].intermediate_values:
            return False
        attempt.trial.report(value, step)
        return attempt.trial.should_prune()


def _stored(value: Any, each: Range) -> Any:
    """A value as Optuna stores it: that of choices is their number."""
    if each.choices:
        return each.choices.index(value)
    return int(value) if each.whole else float(value)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
