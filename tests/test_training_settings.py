"""The settings of training: ranges, one default each, and the flat form of the CLI and of JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from typing import Any

import pytest

from labo import tasks
from labo.errors import UserError
from labo.settings import CHOICES, DEFAULTS, TrainingSettings

LEAST: dict[str, Any] = {"epochs": 2, "batch_size": 64, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epochs": 0}, "`epochs` to be a finite number above 0, but got 0"),
        ({"epochs": None}, "exactly one of the settings `epochs` and `steps`"),
        ({"steps": 3}, "exactly one of the settings `epochs` and `steps`"),
        ({"tokens": 3}, "exactly one of the settings `batch_size` and `tokens`"),
        ({"batch_size": 2.5}, "`batch_size` to be a whole number above 0, but got 2.5"),
        ({"batch_size": True}, "`batch_size` to be a whole number above 0, but got True"),
        ({"learning_rate": float("nan")}, "`learning_rate` to be a finite number above 0, but got nan"),
        ({"weight_decay": -1e-9}, "`weight_decay` to be a finite number of at least 0, but got -1e-09"),
        ({"patience": -1}, "`patience` to be a whole number of at least 0, but got -1"),
        ({"ema": 1}, r"`ema` to be in \[0, 1\), but got 1"),
        ({"momentum": "big"}, r"`momentum` to be in \[0, 1\), but got 'big'"),
        ({"schedule": "cosin"}, "Unknown schedule 'cosin'; the nearest is 'cosine'"),
        ({"start_with": "label_smoothing"}, "requires `start_after`"),
    ],
)
def test_what_is_out_of_range_is_refused(given, told):
    with pytest.raises(UserError, match=told):
        TrainingSettings(**(LEAST | given))


def test_flat_settings_and_back():
    flat = {**LEAST, "epochs": 0.5, "batch_size": 32.0, "ema": 0.9, "schedule": "constant", "hidden": 256, "beam": 5}
    settings = TrainingSettings.from_mapping(flat)
    assert settings == TrainingSettings(epochs=0.5, batch_size=32, learning_rate=1e-3, ema=0.9)
    assert isinstance(settings.batch_size, int)
    # What has its default, and what is not of training, leaves no trace.
    assert settings.to_mapping() == {"epochs": 0.5, "batch_size": 32, "learning_rate": 1e-3, "ema": 0.9}
    assert TrainingSettings.from_mapping(json.loads(json.dumps(settings.to_mapping()))) == settings
    with pytest.raises(UserError, match="`learning_rate`"):
        TrainingSettings.from_mapping({"epochs": 1, "batch_size": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.epochs = 3  # pyright: ignore[reportAttributeAccessIssue] (meant)


@pytest.mark.parametrize("name", ["digits", "numbers"])
def test_the_defaults_of_tasks_are_settings(name):
    task = tasks.create(name)
    settings = task.training_settings()
    assert (settings.tokens is None) == (name == "digits")
    assert TrainingSettings.from_mapping(task.default_settings()) == settings


SGD = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4}
VIT = {"optimizer": "adamw", "learning_rate": 1.25e-4, "weight_decay": 0.05}
IMAGES = {
    "epochs": 20, "batch_size": 128, "momentum": 0.9, "precision": "float32", "schedule": "cosine", "warmup": 0.05,
    "model": "convnet", "stem": "auto", "dropout": 0.0, "width": 32, "patch": 0, "pretrained": False,
    "augment": "standard", "randaugment_count": 2, "randaugment_magnitude": 9, "mixup": 0.0, "cutmix": 0.0,
    "erasing": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("digits", None, {
            "epochs": 60, "batch_size": 64, "learning_rate": 2e-3, "weight_decay": 1e-2, "schedule": "constant",
            "model": "mlp", "hidden": 256, "layers": 2, "dropout": 0.0,
        }),
        ("numbers", None, {
            "epochs": 30, "tokens": 256, "optimizer": "adamw", "learning_rate": 1e-3, "adam_beta1": 0.9,
            "adam_beta2": 0.98, "weight_decay": 1e-4, "schedule": "inverse_sqrt", "warmup": 0.1,
            "precision": "float32", "model": "tiny", "dropout": 0.1, "beam": 5, "length_penalty": 1.0,
        }),
        ("cifar10", None, IMAGES | SGD),
        ("cifar10", "vit_small", IMAGES | VIT),
    ],
)  # fmt: skip
def test_flat_defaults_are_those_of_the_records_so_far(name, model, expected):
    assert tasks.create(name).default_settings(model) == expected


def test_every_setting_has_a_docstring_and_at_most_one_default():
    source = inspect.getsource(TrainingSettings)
    for field in dataclasses.fields(TrainingSettings):
        assert re.search(rf'\n    {field.name}: .*\n    """[A-Z]', source), field.name
    assert {"learning_rate", "epochs", "steps", "batch_size", "tokens"}.isdisjoint(DEFAULTS)
    assert all(DEFAULTS[name] in choices for name, choices in CHOICES.items())
