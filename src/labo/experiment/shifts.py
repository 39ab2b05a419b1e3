"""How finished runs fare on inputs made worse: a run's scores, and a line for each run of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from labo import tasks
from labo.errors import UserError, unknown
from labo.experiment import post_hoc, saved_run
from labo.experiment.compare import Watcher
from labo.experiment.executor import Job
from labo.experiment.post_hoc import Measurement
from labo.experiment.shift_lines import SEVERITIES, SHIFTS, measured
from labo.tasks.base import no_shifts

# kind -> severity, as JSON has it -> scores
Scores = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Asked:
    """Which shifts, each at which severities."""

    kinds: tuple[str, ...]
    severities: tuple[int, ...] = SEVERITIES

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Every (kind, severity)."""
        return [(kind, severity) for kind in self.kinds for severity in self.severities]


def asked(names: Sequence[str], kinds: str, severity: int | None) -> Asked:
    """What a list of kinds, separated by commas, and a severity (None for all five) ask of some tasks.

    Raises:
        UserError: none of the tasks has shifts, there is none of this name, or the severity is none from 1 to 5.
    """
    known = next(filter(None, map(tasks.shifts, names)), ())
    if not known:
        raise no_shifts(names[0])
    wanted = list(dict.fromkeys(kind.strip() for kind in kinds.split(",") if kind.strip()))
    if not wanted:
        raise UserError(f"Expected --shift to name some of {', '.join(known)}, separated by commas, but got '{kinds}'.")
    for kind in wanted:
        if kind not in known:
            raise unknown("shift", kind, known)
    if severity is not None and severity not in SEVERITIES:
        raise UserError(f"Expected --severity to be a whole number from 1 to 5, but got {severity}.")
    return Asked(tuple(wanted), SEVERITIES if severity is None else (severity,))


def scores(
    run: saved_run.Run,
    examples: Any,
    pairs: Sequence[tuple[str, int]],
    tell: Callable[[float], None] = lambda share: None,
) -> Scores:
    """A run's scores on examples made worse, by kind and severity, at the temperature fitted on clean validation.

    The run's seed draws the noise, so that the methods of a comparison meet the same. `tell` hears how much is done.
    """
    from labo.metrics.scores import scores_at

    found: Scores = {}
    for done, (kind, severity) in enumerate(pairs, 1):
        worse = run.task.shifted(examples.features, kind, severity, run.about["seed"], run.device)
        measured = scores_at(run.temperature, run.logits(worse), examples.target)
        del measured["temperature"]
        found.setdefault(kind, {})[str(severity)] = measured
        tell(done / len(pairs))
    return found


def means(found: Scores) -> dict[str, dict[str, float]]:
    """Each kind's scores, their means over its severities, and "mean", the mean over the kinds.

    Example:
        >>> means({"noise": {"1": {"nll": 1.0}, "2": {"nll": 3.0}}, "blur": {"1": {"nll": 4.0}}})
        {'noise': {'nll': 2.0}, 'blur': {'nll': 4.0}, 'mean': {'nll': 3.0}}
    """
    by_kind = {kind: _mean(severities.values()) for kind, severities in found.items()}
    return {**by_kind, "mean": _mean(by_kind.values())}


def _mean(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    rows = list(found)
    return {key: fmean(row[key] for row in rows) for key in rows[0]}


def measure(folder: Path, jobs: Sequence[Job], asked: Asked, watcher: Watcher) -> None:
    """Measure the runs of a comparison, with a line for each in its shift.jsonl; see `post_hoc.measure`."""
    wanted = Measurement(SHIFTS, "measuring shifted inputs", asked.pairs, measured, scores)
    post_hoc.measure(folder, jobs, wanted, watcher)
