"""Which tasks there are. A task's module is imported when it is created."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from labo.errors import UserError, unknown

if TYPE_CHECKING:
    from labo.tasks.base import Task

# name -> ("module:class", the options it takes, what it is)
_DRAWN = ("train_size", "label_noise")
_IMAGES = ("data", "fetch", "image_size", "validation_size", "skip_unreadable", *_DRAWN)
_TEXT = ("vocabulary_size", "vocabulary_kind", "joint", "max_length", "max_ratio", *_DRAWN)
_FILES = ("source", "target", "validation_source", "validation_target", "test_source", "test_target", "data", "fetch")
_LANGUAGES = ("source_language", "target_language")
# Options whose values are texts, whatever they look like: `no` is Norwegian, and 5 may be a file.
TEXTS = (*_LANGUAGES, *(name for name in _FILES if name != "fetch"))
_CORPORA = {
    "iwslt14": ("IWSLT 2014, talks", ("de-en", "en-de")),
    "iwslt17": ("IWSLT 2017, talks", ("fr-en", "en-fr")),
    "wmt14": ("WMT 2014, news and parliament", ("en-de", "de-en", "en-fr")),
    "multi30k": ("Multi30k, 29,000 captions of pictures", ("de-en", "en-de", "fr-en", "en-fr")),
    "tatoeba": ("Tatoeba, short sentences by volunteers", ("de-en", "en-de", "fr-en")),
}
_HOMES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "digits": (
        "labo.tasks.tabular.digits:Digits",
        _DRAWN,
        "1,797 real 8x8 images of handwritten digits, 400 of them to train on; ships with scikit-learn",
    ),
    "table": (
        "labo.tasks.tabular.custom:Table",
        ("data", "target", "split", *_DRAWN),
        "your own table: --data FILE.csv|.parquet|.npz --target COLUMN",
    ),
    "cifar10": (
        "labo.tasks.images.custom:Cifar10",
        ("parts", *_IMAGES),
        "CIFAR-10: 50,000 and 10,000 pictures of 32x32 pixels in ten classes",
    ),
    "cifar100": (
        "labo.tasks.images.custom:Cifar100",
        ("parts", *_IMAGES),
        "CIFAR-100: 50,000 and 10,000 pictures of 32x32 pixels in a hundred classes",
    ),
    "tiny-imagenet": (
        "labo.tasks.images.custom:TinyImageNet",
        _IMAGES,
        "Tiny-ImageNet: 100,000 and 10,000 pictures of 64x64 pixels in 200 classes",
    ),
    "imagenet": (
        "labo.tasks.images.custom:ImageNet",
        tuple(option for option in _IMAGES if option != "fetch"),
        "ImageNet-1k: 1,281,167 and 50,000 pictures in a thousand classes, at 224x224 pixels",
    ),
    "image": (
        "labo.tasks.images.custom:Image",
        ("target", *_IMAGES),
        "your own pictures: --data FOLDER of class folders, FILE.npz|.parquet, or a Hugging Face data set",
    ),
    "numbers": (
        "labo.tasks.translation.corpora:Numbers",
        (*_LANGUAGES, *_TEXT),
        "translation of number names, German to English, 400 to train on; made by num2words",
    ),
    "translation": (
        "labo.tasks.translation.custom:Translation",
        (*_FILES, *_LANGUAGES, *_TEXT),
        "your own pairs of sentences: two files with one a line, or --data FILE.tsv|.parquet or a folder",
    ),
}


def _corpora() -> dict[str, tuple[str, tuple[str, ...], str]]:
    found = {}
    for corpus, (what, directions) in _CORPORA.items():
        for direction in directions:
            name, (source, target) = f"{corpus}-{direction}", direction.split("-")
            home = "labo.tasks.translation.corpora:" + "".join(part.capitalize() for part in name.split("-"))
            found[name] = (home, ("data", "fetch", *_TEXT), f"translation from {source} to {target}: {what}")
    return found


_HOMES |= _corpora()


def available() -> tuple[str, ...]:
    """The names of all tasks."""
    return tuple(_HOMES)


def describe(name: str) -> str:
    """What a task is, in one line; imports nothing."""
    return _home(name)[2]


def options(name: str) -> tuple[str, ...]:
    """The names of the options that a task takes; imports nothing."""
    return _home(name)[1]


def shifts(name: str) -> tuple[str, ...]:
    """The ways in which a task's inputs can be made worse; imports the task."""
    return _class(name).shifts


def kind(name: str) -> str:
    """Which kind of task this is: "classification" or "translation"; imports the task."""
    return _class(name).kind


def create(name: str, **options: Any) -> Task:
    """The task `name`; options that are None count as not given.

    Raises:
        UserError: unknown name, or an option that the task does not take.
    """
    _, known, _ = _home(name)
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in known:
            raise UserError(f"Task '{name}' takes no `{option}`; it takes {', '.join(known)}.")
    return _class(name)(**given)


def _class(name: str) -> type[Task]:
    module, _, attribute = _home(name)[0].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _home(name: str) -> tuple[str, tuple[str, ...], str]:
    if name not in _HOMES:
        raise unknown("task", name, _HOMES)
    return _HOMES[name]
