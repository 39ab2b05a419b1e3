"""The folder of a comparison: what is asked for, what was tried in tuning, and one line per finished trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from labo.errors import UserError
from labo.records.storage import append_line, drop_cut_line, read_lines, read_object, write_object

RESULTS, TUNING, COMPARISON, PLAN = "results.jsonl", "tuning.jsonl", "compare.json", "plan.json"
# A comparison may be continued with more methods and seeds, but not with these changed.
FIXED = (
    "task",
    "task_options",
    "data",
    "set",
    "checkpoint",
    "settings_per_method",
    "tuning_seeds",
)


class Records:
    """Reads and adds to the records of one folder, which the caller holds (lock.py); tells `warn` of damage."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder = folder
        for name in (RESULTS, TUNING):
            if drop_cut_line(folder / name):
                warn(f"The last line of '{folder / name}' was cut short and is dropped; its trial runs again.")
        self.results = read_lines(folder / RESULTS)
        self.tuning = read_lines(folder / TUNING)

    def run_folder(self, task: str, method: str, seed: int) -> Path:
        """Where a trial keeps its run."""
        return self.folder / task / method / str(seed)

    def teacher_folder(self, task: str, seed: int) -> Path:
        """Where the network lies that teaches the methods that need a teacher, on this seed."""
        return self.folder / task / ".teachers" / str(seed)

    def tuning_folder(self, task: str, method: str, index: int, seed: int) -> Path:
        """Where a tuning trial keeps its checkpoint while it runs."""
        return self.folder / task / ".tuning" / f"{method}-{index}-{seed}"

    def result(self, task: str, method: str, seed: int) -> dict[str, Any] | None:
        """The record of a finished trial, or None."""
        return _last(self.results, {"task": task, "method": method, "seed": seed})

    def tried(self, task: str, method: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a finished tuning trial, or None."""
        return _last(self.tuning, {"task": task, "method": method, "seed": seed, "settings": settings})

    def add(self, record: Mapping[str, Any], *, tuning: bool) -> None:
        """Add the record of a finished trial."""
        (self.tuning if tuning else self.results).append(dict(record))
        append_line(self.folder / (TUNING if tuning else RESULTS), record)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Write down what is asked for; refuse to mix it with what a task was run with before.

        Raises:
            UserError: one of `FIXED` differs from what the folder holds for this task.
        """
        if (self.folder / "run.json").exists():
            raise UserError(f"'{self.folder}' holds a single run: name another --output.")
        fixed: dict[str, Any] = {key: plan[key] for key in FIXED}
        home = self.folder / str(plan["task"])
        known = read_object(home / PLAN) or self._last_plan(plan["task"])
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
        for method, among in plan["candidates"].items():
            if before.get(method, among) != among:
                raise UserError(f"'{self.folder}' ran {method} with other candidate settings: name another --output.")
        fixed["candidates"] = {**before, **plan["candidates"]}
        home.mkdir(parents=True, exist_ok=True)
        write_object(home / PLAN, fixed)
        write_object(self.folder / COMPARISON, plan)

    def _last_plan(self, task: object) -> dict[str, Any] | None:
        """What the last command asked of `task`: records that were copied without their runs go on from it."""
        last = read_object(self.folder / COMPARISON)
        return last if last is not None and last.get("task") == task else None


def _last(records: list[dict[str, Any]], wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    for record in reversed(records):
        if all(record.get(key) == value for key, value in wanted.items()):
            return record
    return None
