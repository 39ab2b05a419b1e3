"""The types of what records hold, one model a kind of record; other entries are kept as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError

from labo.errors import UserError, shorten

_Count = Annotated[int, Field(ge=0)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Of any characters: a name of a file that is not UTF-8 has lone surrogates, which pydantic's own strings refuse.
_Text = InstanceOf[str]
# Their types are those of the task's defaults and of the method's options.
_Settings = dict[str, Any]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class File(_Model):
    """A file of a finished trial."""

    bytes: _Count
    sha256: _Text


class Failure(_Model):
    """Where a trial diverged."""

    step: int
    reason: _Text


class Metrics(_Model):
    """The scores of a finished trial, all of them numbers."""

    __pydantic_extra__: dict[str, float]
    temperature: _Positive | None = None


class Decision(_Model):
    """What a method that decides for itself decided."""

    name: _Text
    method: _Text
    options: _Settings
    cost: float
    evidence: dict[str, Any] | None = None


class _Trial(_Model):
    task: _Text
    method: _Text
    seed: int
    failed: Failure | None = None
    validation: dict[str, Any] | None = None


class Line(_Trial):
    """A line of results.jsonl or tuning.jsonl."""

    settings: _Settings = {}
    metrics: dict[str, Any] | None = None


class Record(_Trial):
    """record.json, the record of a finished trial."""

    settings: _Settings
    metrics: Metrics | None = None
    seconds: float
    step: _Count | None = None
    versions: dict[str, _Text]
    decision: Decision | None = None
    held_out: dict[str, float] | None = None
    notes: list[_Text] = []
    signatures: dict[str, _Text] = {}
    files: dict[str, File] | None = None


class Column(_Model):
    """A column of a table, as its features are computed."""

    name: _Text
    kind: _Text
    mean: _Finite | None = None
    scale: _Positive | None = None
    categories: list[Any] | None = None


class Preprocessing(_Model):
    """How the inputs of a task are prepared; each kind of task has some of these."""

    columns: list[Column] | None = None
    image_size: Annotated[int, Field(gt=0)] | None = None
    folders: list[_Text] | None = None
    mean: list[_Finite] | None = None
    deviation: list[_Positive] | None = None
    vocabulary_size: Annotated[int, Field(gt=0)] | None = None
    source: _Text | None = None
    target: _Text | None = None


class Description(_Model):
    """run.json, the description of a run."""

    task: _Text
    task_options: dict[str, Any]
    data: _Text
    method: _Text
    seed: _Count
    settings: _Settings
    checkpoint: Literal["last", "best"]
    classes: list[_Text]
    preprocessing: Preprocessing
    class_counts: list[_Count] | None = None
    files: list[_Text] = []


class Plan(_Model):
    """plan.json, what must not change in the comparison of a task."""

    task: _Text
    task_options: dict[str, Any]
    candidates: dict[str, list[_Settings]] = {}


class Comparison(_Model):
    """compare.json, the configuration of the last command."""

    task: _Text | None = None
    task_options: dict[str, Any] = {}
    methods: list[_Text] = []
    baseline: _Text | None = None
    candidates: dict[str, list[_Settings]] = {}


def fault(model: type[BaseModel], content: Mapping[str, Any]) -> str | None:
    """What is wrong with a record, as a phrase that names its first wrong entry; None where nothing is."""
    try:
        model.model_validate(content)
    except ValidationError as errors:
        error = errors.errors(include_url=False)[0]
        place = ".".join(map(str, error["loc"]))
        if error["type"] == "missing":
            return f"its entry `{place}` is missing"
        return f"its entry `{place}` has the wrong type or value: {shorten(repr(error['input']))}"
    return None


def check(model: type[BaseModel], content: Mapping[str, Any], path: Path) -> None:
    """Check the types of a record.

    Raises:
        UserError: an entry is missing or has the wrong type; the sentence names the file and the entry.
    """
    if (wrong := fault(model, content)) is not None:
        raise UserError(f"'{path}' is damaged: {wrong}.")
