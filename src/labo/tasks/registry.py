"""All tasks by name. The module of a task is imported when it is created."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from labo.errors import UserError, unknown
from labo.tasks.translation.corpora import CORPORA

if TYPE_CHECKING:
    from labo.tasks.base import Task


@dataclass(frozen=True)
class _Entry:
    """A task: "module:class" below `labo.tasks`, its options, one line on it, and fixed arguments of the class."""

    location: str
    options: tuple[str, ...]
    description: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


_SAMPLING = ("train_size", "label_noise")
_IMAGES = ("data", "fetch", "image_size", "validation_size", "skip_unreadable", *_SAMPLING)
_TEXT = ("vocabulary_size", "vocabulary_kind", "joint", "max_length", "max_ratio", "bleu_tokenizer", *_SAMPLING)
_FILES = ("source", "target", "validation_source", "validation_target", "test_source", "test_target", "data", "fetch")
_LANGUAGES = ("source_language", "target_language")
# Options whose values are strings, whatever they look like: `no` is Norwegian, and 5 may be a file.
TEXTS = (*_LANGUAGES, *(name for name in _FILES if name != "fetch"))

_REGISTRY: dict[str, _Entry] = {
    "digits": _Entry(
        "tabular.digits:Digits",
        _SAMPLING,
        "1,797 real 8x8 images of handwritten digits, 400 of them to train on; ships with scikit-learn",
    ),
    "table": _Entry(
        "tabular.custom:CustomTable",
        ("data", "target", "split", "separator", "decimal", "leave_out", "dates", *_SAMPLING),
        "your own table: --data FILE.csv|.parquet|.npz --target COLUMN",
    ),
    "cifar10": _Entry(
        "images.cifar:Cifar10",
        (*_IMAGES, "labels"),
        "CIFAR-10: 50,000 and 10,000 images of 32x32 pixels in ten classes",
    ),
    "cifar100": _Entry(
        "images.cifar:Cifar100",
        (*_IMAGES, "labels"),
        "CIFAR-100: 50,000 and 10,000 images of 32x32 pixels in a hundred classes",
    ),
    "tiny-imagenet": _Entry(
        "images.imagenet:TinyImageNet",
        _IMAGES,
        "Tiny-ImageNet: 100,000 and 10,000 images of 64x64 pixels in 200 classes",
    ),
    "imagenet": _Entry(
        "images.imagenet:ImageNet",
        tuple(option for option in _IMAGES if option != "fetch"),
        "ImageNet-1k: 1,281,167 and 50,000 images in a thousand classes, at 224x224 pixels",
    ),
    "image": _Entry(
        "images.custom:Image",
        ("target", *_IMAGES),
        "your own images: --data FOLDER of class folders, FILE.npz|.parquet, or a Hugging Face data set",
    ),
    "numbers": _Entry(
        "translation.numbers:Numbers",
        (*_LANGUAGES, *_TEXT),
        "translation of number names, German to English, 400 to train on; made by num2words",
    ),
    "translation": _Entry(
        "translation.custom:Translation",
        (*_FILES, *_LANGUAGES, *_TEXT),
        "your own sentence pairs: two files with one sentence a line, or --data FILE.tsv|.parquet or a folder",
    ),
    **{
        name: _Entry(
            "translation.task:CorpusTask",
            ("data", "fetch", *_TEXT),
            f"translation from {corpus.source} to {corpus.target}: {corpus.description}",
            {"name": name},
        )
        for name, corpus in CORPORA.items()
    },
}


def available() -> tuple[str, ...]:
    """The names of all tasks."""
    return tuple(_REGISTRY)


def describe(name: str) -> str:
    """One line on a task; imports nothing."""
    return _entry(name).description


def options(name: str) -> tuple[str, ...]:
    """The names of a task's options; imports nothing."""
    return _entry(name).options


def shifts(name: str) -> tuple[str, ...]:
    """The distribution shifts of a task's inputs; imports the task."""
    return _class(name).shifts


def kind(name: str) -> str:
    """The kind of a task, "classification" or "translation"; imports the task."""
    return _class(name).kind


def create(name: str, **options: Any) -> Task:
    """The task `name`; options that are None count as not given.

    Raises:
        UserError: unknown name, or an option that the task does not take.
    """
    entry = _entry(name)
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        if option not in entry.options:
            raise UserError(f"Task '{name}' takes no `{option}`; it takes {', '.join(entry.options)}.")
    return _class(name)(**entry.arguments, **options)


def _class(name: str) -> type[Task]:
    module, _, attribute = _entry(name).location.partition(":")
    return getattr(importlib.import_module(f"labo.tasks.{module}"), attribute)


def _entry(name: str) -> _Entry:
    if name not in _REGISTRY:
        raise unknown("task", name, _REGISTRY)
    return _REGISTRY[name]
