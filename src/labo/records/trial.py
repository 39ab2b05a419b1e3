"""A trial: one method on one seed with its settings, and what lies in the folder that it runs in."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from labo import digests
from labo.errors import UserError
from labo.records.storage import require_object, write_bytes, write_object, write_text
from labo.wording import unicode_name

# The files and folders of a trial. RUN describes it from its start, RECORD is there once it is finished.
RUN, RECORD, CURVE, ERROR = "run.json", "record.json", "curve.jsonl", "error.txt"
WEIGHTS, FIGURES = "model.safetensors", "figures.json"
# A method's memory of the training examples, and the logits of the examples that a fold left out.
MEMORY, HELD_OUT = "memory.safetensors", "held_out.safetensors"
# Translations of the test split and their references.
HYPOTHESES, REFERENCES = "test.hypotheses.txt", "test.references.txt"
# Written by `labo labels`: the first of the ranked examples, their page, and the folder of its folds.
LABEL_ISSUES, LABEL_ISSUES_PAGE, FOLDS = "labels.json", "labels.html", "labels"
# Of methods that learn labels: the examples whose label they replaced, and the page of what was learnt.
LEARNT, LEARNT_PAGE = "learnt.json", "learnt.html"
# A tuning trial ends where this file is in its folder, and its record has this reason.
STOP, PRUNED = ".stop", "pruned: other settings were better at this point"
# The digests of the files, in the record.
FILES = "files"
# Only unfinished trials have these: checkpoints, the weights of the best epoch so far, and trials of parts of the data
# (the halves of `labo_auto`, the folds of `labo[prior=channel]`).
CHECKPOINTS, BEST_WEIGHTS, AUTO, CROSS_FIT = "checkpoints", "best.safetensors", "auto", "cross_fit"

# What must be the same for a trial to be continued.
IDENTITY = ("task", "task_options", "data", "method", "seed", "settings", "checkpoint")
# So must these, which run.json has only where they are not the default.
_OPTIONAL = {"teacher": "", "fold": "", "threads": 1, "fsdp": False}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """The configuration of one trial; JSON-able.

    Args:
        task, task_options: the task's name and options.
        method, settings: the method's name; the flat settings of its training and its own options.
        seed: draws the split, the initialisation and the order of the examples.
        checkpoint: "last", or "best" for the weights of the best epoch on the validation split.
        curves: whether to measure the validation split every epoch.
        save_seconds: how often to write a checkpoint.
        tuning: whether the trial is for choosing settings: it is measured on the validation split and keeps nothing.
        data: the task's fingerprint of its data.
        teacher, teacher_folder: a description of the teacher, for methods that need one, and its folder.
        fold: "2/5" trains without the second of five parts of the training split and keeps that part's logits;
            "only 2/5" trains on that part alone and keeps the logits of the others.
        threads: of the CPU; another number adds up in another order, and gives other last digits.
        fsdp: whether the processes that train together split the network; it gives other last digits too.
    """

    task: str
    method: str
    seed: int
    settings: dict[str, Any]
    task_options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = "last"
    curves: bool = False
    save_seconds: float = 60.0
    tuning: bool = False
    data: str = ""
    teacher: str = ""
    teacher_folder: str = ""
    fold: str = ""
    threads: int = 1
    fsdp: bool = False

    @property
    def name(self) -> str:
        """The trial in words."""
        return f"{self.task}, {self.method}, seed {self.seed}" + (f", {self._part}" if self.fold else "")

    @property
    def _part(self) -> str:
        return self.fold.replace("only ", "fold ", 1) + " alone" if " " in self.fold else f"without fold {self.fold}"

    def identity(self) -> dict[str, Any]:
        """What must be the same for the trial to be continued."""
        own = asdict(self)
        optional = {key: own[key] for key, default in _OPTIONAL.items() if own[key] != default}
        return {key: value for key, value in own.items() if key in IDENTITY} | optional


@dataclass(frozen=True)
class Job:
    """A trial and the folder that it runs in."""

    trial: Trial
    folder: Path


def claim(trial: Trial, folder: Path) -> None:
    """Make the folder ready for a trial, or for going on with it.

    Raises:
        UserError: the folder holds another trial, a damaged one or other files, or it cannot be written.
    """
    if unicode_name(str(folder)) != str(folder):
        raise UserError(
            f"Expected a folder whose name is UTF-8, because safetensors opens no other, but got '{folder}'."
        )
    known = read_description(folder)
    if known is not None:
        own = trial.identity()
        for key in (*IDENTITY, *_OPTIONAL):
            default = _OPTIONAL.get(key)
            before, now = known.get(key, default), own.get(key, default)
            if before != now:
                raise UserError(f"'{folder}' holds another run ({_change(key, before, now)}): name another one.")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Lock and error files left by an aborted start do not count as a run.
        if any(not path.name.startswith(".") and path.name != ERROR for path in folder.iterdir()):
            raise UserError(f"'{folder}' is not empty and holds no run: name another folder.")
    except OSError as error:
        raise UserError(f"Cannot write into '{folder}': {error.strerror or error}.") from error


def _change(key: str, before: Any, now: Any) -> str:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            if before.get(name) != now.get(name):
                return f"{name} was {before.get(name)}, now {now.get(name)}"
    return "the data have changed" if key == "data" else f"{key} was {before}, now {now}"


def describe(trial: Trial, folder: Path, details: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write the trial's run.json with `details`, and the `files` that its task needs to use the trained network."""
    details = {**details, **({"files": sorted(files)} if files else {})}
    write_object(folder / RUN, {**trial.identity(), **details})
    for name, content in files.items():
        write_bytes(folder / name, content)


def read_description(folder: Path) -> dict[str, Any] | None:
    """What run.json says of a trial, or None.

    Raises:
        UserError: it is damaged.
    """
    if (description := require_object(folder / RUN)) is not None:
        from labo.records import schema

        schema.check(schema.Description, description, folder / RUN)
    return description


def plain_runs(record: Mapping[str, Any]) -> float:
    """What a run cost in plain trainings: what the stage before its training says, else one."""
    stages = (record.get(stage) for stage in ("decision", "channel", "pruning"))
    return next((float(stage["cost"]) for stage in stages if stage), 1.0)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a finished trial, or None.

    Raises:
        UserError: it is damaged.
    """
    if (record := require_object(folder / RECORD)) is not None:
        from labo.records import schema

        schema.check(schema.Record, record, folder / RECORD)
    return record


def finish(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write the record of a trial with the digests of its files, and remove what only an unfinished trial needs.

    Returns the record as it was written.
    """
    unfinished = {RECORD, BEST_WEIGHTS, ERROR}
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in unfinished]
    visible = sorted(path for path in files if not path.name.startswith("."))
    record = {**record, FILES: digests.manifest(visible)}
    write_object(folder / RECORD, record)
    remove_unfinished(folder)
    return record


def damage(folder: Path, name: str, record: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a file of a finished trial, as a phrase, by the digests in its record.

    None where nothing is, and where the record has no digests, of which a warning is logged once.
    """
    files = (record or {}).get(FILES)
    if files is None:
        if record is not None:
            _note_missing_digests()
        return None
    if name not in files:
        return "the file is not one of the trial"
    return digests.difference(folder / name, files[name])


def check_file(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """The path of a file of a finished trial, which is as it was when the trial finished.

    Raises:
        UserError: it is missing or damaged.
    """
    if (wrong := damage(folder, name, record)) is not None:
        raise UserError(
            f"The files of the run in '{folder}' are damaged ({name}: {wrong}): restore them from a copy, or train the "
            "run anew in another folder."
        )
    return folder / name


@cache
def _note_missing_digests() -> None:
    _log.warning(
        "The records of an earlier version of labo have no digests of their files, so that damage to those goes "
        "unnoticed unless it makes them unreadable."
    )


def remove_unfinished(folder: Path) -> None:
    """Remove what only an unfinished trial needs."""
    for name in (AUTO, CROSS_FIT, CHECKPOINTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (BEST_WEIGHTS, ERROR):
        (folder / name).unlink(missing_ok=True)


def write_translations(folder: Path, hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Write the translations of the test split and their references, one sentence a line.

    Any run of white space becomes one space, which changes neither BLEU nor chrF and keeps a sentence on its line.
    """
    for name, lines in ((REFERENCES, references), (HYPOTHESES, hypotheses)):
        write_text(folder / name, "".join(" ".join(line.split()) + "\n" for line in lines))


def read_translations(folder: Path) -> tuple[list[str], list[str]] | None:
    """(hypotheses, references), or None where one is missing or damaged, or their lengths differ."""
    try:
        record = read_record(folder)
        if any(damage(folder, name, record) for name in (HYPOTHESES, REFERENCES)):
            return None
        hypotheses, references = (
            (folder / name).read_text(encoding="utf-8").split("\n")[:-1] for name in (HYPOTHESES, REFERENCES)
        )
    except (OSError, UnicodeDecodeError, UserError):
        return None
    return (hypotheses, references) if hypotheses and len(hypotheses) == len(references) else None
