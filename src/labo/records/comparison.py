"""The folder of a comparison: one reader, which changes nothing in it, and one writer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labo.errors import UserError, first_line
from labo.records import measurements
from labo.records.measurements import BootstrapResult, PairKey, ShiftScores, TrialKey
from labo.records.storage import (
    append_line,
    drop_cut_line,
    numbered_lines,
    read_lines,
    read_object,
    require_object,
    write_object,
)
from labo.records.trial import CURVE, FIGURES, FILES, LABEL_ISSUES, RUN, Job, Trial, damage, read_record

_log = logging.getLogger(__name__)

# One line per finished trial and tuning trial; the last command's configuration, and each task's in its folder.
RESULTS, TUNING, COMPARISON, PLAN = "results.jsonl", "tuning.jsonl", "compare.json", "plan.json"
# Measurements of finished trials, a line each.
SHIFTS, BEAMS, BOOTSTRAP = "shift.jsonl", "beams.jsonl", "bootstrap.jsonl"
# A comparison may be continued with more methods and seeds, but not with these changed.
FIXED = (
    "task",
    "task_options",
    "data",
    "set",
    "checkpoint",
    "settings_per_method",
    "tuning_seeds",
    "tune",
)


def trial_folder(folder: Path, task: str, method: str, seed: int) -> Path:
    """The folder of a trial in that of its comparison."""
    return folder / task / method / str(seed)


@dataclass(frozen=True)
class Recorded:
    """What the folder of a comparison holds.

    Args:
        directory: the folder.
        records: one per finished trial, the last one written.
        tuning: the lines of tuning trials.
        comparison: the configuration of the last command; {} where it is not known.
        shifts, beams, bootstrap: measurements of finished trials.
        shifted: the (kind, severity) pairs of each task that its "accuracy_shifted" is the mean over.
    """

    directory: Path
    records: list[dict[str, Any]]
    tuning: list[dict[str, Any]] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    shifts: Mapping[TrialKey, ShiftScores] = field(default_factory=dict)
    beams: Mapping[TrialKey, Mapping[int, float]] = field(default_factory=dict)
    bootstrap: Mapping[PairKey, BootstrapResult] = field(default_factory=dict)
    shifted: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The tasks of the records, in order of appearance."""
        return list(dict.fromkeys(str(record["task"]) for record in self.records))

    def run_folder(self, task: str, method: str, seed: int) -> Path | None:
        """The folder of a trial, or None where it is missing or its name leads out of the directory."""
        folder = trial_folder(self.directory, task, method, seed)
        inside = Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.directory))
        return folder if inside and folder.is_dir() else None

    def figures(self, task: str, method: str, seed: int) -> dict[str, Any] | None:
        """The data of a trial's figures, or None."""
        path = self._intact_file(task, method, seed, FIGURES)
        return read_object(path) if path else None

    def curve(self, task: str, method: str, seed: int) -> list[dict[str, Any]]:
        """A trial's training curve, one line an epoch; [] where there is none."""
        path = self._intact_file(task, method, seed, CURVE)
        return read_lines(path) if path else []

    def _intact_file(self, task: str, method: str, seed: int, name: str) -> Path | None:
        """The path of a file of a trial, or None where it is missing or, of which a warning is logged, damaged."""
        folder = self.run_folder(task, method, seed)
        if folder is None or not (folder / name).is_file():
            return None
        try:
            wrong = damage(folder, name, read_record(folder))
        except UserError as error:
            wrong = first_line(error)
        if wrong is not None:
            _log.warning("'%s' is left out of the report: %s.", folder / name, wrong)
        return folder / name if wrong is None else None

    def label_issues(self, task: str, method: str, seed: int) -> dict[str, Any] | None:
        """What `labo labels` wrote about a trial, or None."""
        folder = self.run_folder(task, method, seed)
        return read_object(folder / LABEL_ISSUES) if folder else None

    def finished_jobs(self, tasks: Collection[str], file: str) -> tuple[list[Job], int]:
        """(the trials of some tasks that did not fail and whose folders hold `file`, how many do not hold it)."""
        jobs, without = [], 0
        for record in self.records:
            trial = Trial(str(record["task"]), str(record["method"]), record["seed"], record.get("settings", {}))
            if record.get("failed") or trial.task not in tasks:
                continue
            folder = self.run_folder(trial.task, trial.method, trial.seed)
            if folder is not None and (folder / file).is_file():
                jobs.append(Job(trial, folder))
            else:
                without += 1
        return jobs, without

    def with_measurements(self) -> Recorded:
        """The same with the measurements that the folder holds now."""
        lines = {name: read_lines(self.directory / name) for name in (SHIFTS, BEAMS, BOOTSTRAP)}
        return replace(
            self,
            shifts=measurements.shift_scores(lines[SHIFTS]),
            beams=measurements.beam_bleu(lines[BEAMS]),
            bootstrap=measurements.bootstrap_results(lines[BOOTSTRAP]),
        )


def read(directory: str | Path) -> Recorded:
    """What the folder of a comparison holds.

    Raises:
        UserError: it holds no finished trial, or a single run.
    """
    directory = Path(directory)
    path = directory / RESULTS
    if (directory / RUN).is_file():
        raise UserError(f"'{directory}' holds a single run, which `labo evaluate` shows; a report is of a comparison.")
    if not path.is_file():
        raise UserError(f"No {RESULTS} in '{directory}': nothing was recorded there; run `labo compare` first.")
    records = _read_trials(path, _log.warning)
    if not records:
        raise UserError(f"No finished trial in '{path}': run `labo compare` until at least one is done.")
    tuning, comparison = _read_trials(directory / TUNING, _log.warning), _read_comparison(directory)
    return Recorded(directory, latest(records), tuning, comparison or {}).with_measurements()


def _read_trials(path: Path, warn: Callable[[str], None]) -> list[dict[str, Any]]:
    """The lines of finished trials; damaged ones are left out, of which a sentence is given to `warn`."""
    from labo.records import schema

    records, damaged = [], []
    for number, line in numbered_lines(path):
        wrong = "it is not a JSON object" if line is None else schema.fault(schema.Line, line)
        if line is None or wrong is not None:
            damaged.append(f"line {number}, {wrong}")
        else:
            records.append(line)
    if damaged:
        others = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        warn(f"'{path}' is damaged, and the trials of its damaged lines do not count ({damaged[0]}{others}).")
    return records


def _read_comparison(directory: Path) -> dict[str, Any] | None:
    return _checked(directory / COMPARISON, "Comparison")


def _checked(path: Path, kind: str) -> dict[str, Any] | None:
    """The JSON object in a file, of a kind that `schema` names; None without the file."""
    if (content := require_object(path)) is not None:
        from labo.records import schema

        schema.check(getattr(schema, kind), content, path)
    return content


def latest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per task, method and seed, the last one written, in order of first appearance."""
    newest: dict[TrialKey, dict[str, Any]] = {}
    for record in records:
        newest[(str(record["task"]), str(record["method"]), record["seed"])] = record
    return list(newest.values())


class ComparisonWriter:
    """Adds to the records of a folder, whose lock the caller holds.

    Args:
        folder: of the comparison.
        warn: receives a sentence about each damaged file.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder = folder
        for name in (RESULTS, TUNING):
            if drop_cut_line(folder / name):
                warn(f"The last line of '{folder / name}' was cut short and is dropped; its trial runs again.")
        self.results = _read_trials(folder / RESULTS, warn)
        self.tuning = _read_trials(folder / TUNING, warn)

    def run_folder(self, task: str, method: str, seed: int) -> Path:
        """The folder of a trial."""
        return trial_folder(self.folder, task, method, seed)

    def teacher_folder(self, task: str, seed: int) -> Path:
        """The folder of the teacher on this seed."""
        return self.folder / task / ".teachers" / str(seed)

    def tuning_folder(self, task: str, method: str, index: int, seed: int) -> Path:
        """The folder of a tuning trial, which is removed when it is recorded."""
        return self.folder / task / ".tuning" / f"{method}-{index}-{seed}"

    def optuna_folder(self, task: str) -> Path:
        """The folder of Optuna's storage."""
        return self.folder / task / ".tuning"

    def result(self, task: str, method: str, seed: int) -> dict[str, Any] | None:
        """The record of a finished trial, or None."""
        return _last(self.results, {"task": task, "method": method, "seed": seed})

    def tuning_result(self, task: str, method: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a finished tuning trial, or None."""
        return _last(self.tuning, {"task": task, "method": method, "seed": seed, "settings": settings})

    def add(self, record: Mapping[str, Any], *, tuning: bool) -> None:
        """Add the record of a finished trial, without the digests of its files, which stay beside them."""
        record = {key: value for key, value in record.items() if key != FILES}
        (self.tuning if tuning else self.results).append(record)
        append_line(self.folder / (TUNING if tuning else RESULTS), record)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Write the configuration of a comparison, which must agree with that of the task's earlier records.

        Raises:
            UserError: one of `FIXED` differs from what the folder holds for this task.
        """
        if (self.folder / RUN).exists():
            raise UserError(f"'{self.folder}' holds a single run: name another --output.")
        fixed: dict[str, Any] = {key: plan[key] for key in FIXED}
        task_folder = self.folder / str(plan["task"])
        known = _checked(task_folder / PLAN, "Plan") or self._last_plan(plan["task"])
        if known is None and any(str(record.get("task")) == plan["task"] for record in self.results):
            raise UserError(
                f"'{self.folder}' has records of {plan['task']} but no {PLAN} for it: name another --output."
            )
        for key, value in fixed.items():
            if known is not None and known.get(key) != value:
                change = "" if key == "data" else f" ({known.get(key)}, now {value})"
                raise UserError(
                    f"'{self.folder}' holds a comparison with another {key}{change}: name another --output."
                )
        before = (known or {}).get("candidates", {})
        for method, candidates in plan["candidates"].items():
            if before.get(method, candidates) != candidates:
                raise UserError(f"'{self.folder}' ran {method} with other candidate settings: name another --output.")
        fixed["candidates"] = {**before, **plan["candidates"]}
        task_folder.mkdir(parents=True, exist_ok=True)
        write_object(task_folder / PLAN, fixed)
        write_object(self.folder / COMPARISON, plan)

    def _last_plan(self, task: object) -> dict[str, Any] | None:
        """The configuration of the last command if it was of `task`: records may be copied without their runs."""
        last = _read_comparison(self.folder)
        return last if last is not None and last.get("task") == task else None


def _last(records: list[dict[str, Any]], wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    for record in reversed(records):
        if all(record.get(key) == value for key, value in wanted.items()):
            return record
    return None
