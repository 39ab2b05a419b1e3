"""Reads a folder of recorded trials, changing nothing in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labo.errors import UserError
from labo.records.storage import read_lines, read_object


@dataclass(frozen=True)
class Recorded:
    """What a folder holds: its records, its tuning lines and how the comparison was asked for ({} when not known).

    `shifted` maps a task to the (kind, severity) pairs that its "accuracy_shifted" is the mean over.
    """

    directory: Path
    records: list[dict[str, Any]]
    tuning: list[dict[str, Any]] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    shifted: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The tasks of the records, in the order they first came."""
        return list(dict.fromkeys(str(record["task"]) for record in self.records))

    def run_folder(self, task: str, method: str, seed: int) -> Path | None:
        """The folder of one trial, or None where there is none (or the names would lead out of the directory)."""
        folder = self.directory / task / method / str(seed)
        inside = folder.resolve().is_relative_to(self.directory.resolve())
        return folder if inside and folder.is_dir() else None


def read(directory: str | Path) -> Recorded:
    """The records under `directory`; raises UserError where it holds no finished trial."""
    directory = Path(directory)
    path = directory / "results.jsonl"
    if (directory / "run.json").is_file():
        raise UserError(f"'{directory}' holds a single run, which `labo evaluate` shows; a report is of a comparison.")
    if not path.is_file():
        raise UserError(f"No results.jsonl in '{directory}': nothing was recorded there; run `labo compare` first.")
    lines = read_lines(path)
    records = [line for line in lines if "method" in line and "task" in line and isinstance(line.get("seed"), int)]
    if not records:
        raise UserError(f"No finished trial in '{path}': run `labo compare` until at least one is done.")
    comparison = read_object(directory / "compare.json")
    return Recorded(directory, latest(records), read_lines(directory / "tuning.jsonl"), comparison or {})


def latest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per task, method and seed, the last one written, in the order they first came."""
    newest: dict[tuple[str, str, int], dict[str, Any]] = {}
    for record in records:
        newest[(str(record["task"]), str(record["method"]), record["seed"])] = record
    return list(newest.values())
