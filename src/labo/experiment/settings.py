"""Flat settings: a task's defaults, a method's options, what was tuned, and what the user set, in this order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labo import regularizers
from labo.errors import UserError, unknown

Settings = dict[str, Any]

SCHEDULES = ("constant", "linear", "cosine", "steps", "inverse_sqrt")
# Settings of training with a fixed set of values.
CHOICES = {"schedule": SCHEDULES, "optimizer": ("adamw", "sgd"), "precision": ("float32", "bfloat16")}
CHOICES["start_with"] = ("none", "label_smoothing")
# Settings of training in [0, 1).
FRACTIONS = ("momentum", "warmup", "ema", "adam_beta1", "adam_beta2")
# Settings of any training beside those of its task, with their defaults. A run is recorded without them where they have
# these values, so that runs of a version that did not know them are still the same runs.
EXTRAS: Settings = {"ema": 0.0, "accumulation": 1, "channels_last": False, "average_epochs": 0, "patience": 0}
EXTRAS |= {"start_after": 0, "start_with": "none"}
# The length of a run: exactly one of the two.
LENGTHS = ("epochs", "steps")


def parse(texts: Iterable[str], option: str = "--set", *, as_text: Sequence[str] = ()) -> Settings:
    """Strings `key=value` to settings; values are read as YAML: 0.1, .inf, inf, true and strings.

    Values of the keys `as_text` stay strings: `no` is a language there, and false anywhere else.

    Raises:
        UserError: a string is not key=value, or a key is given twice.

    Example:
        >>> parse(["alpha=0.4", "beta=inf", "model=linear"])
        {'alpha': 0.4, 'beta': inf, 'model': 'linear'}
    """
    settings: Settings = {}
    for text in texts:
        key, separator, value = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise UserError(f"Expected {option} KEY=VALUE, but got '{text}'.")
        if key in settings:
            raise UserError(f"{option} {key} is given twice.")
        settings[key] = value.strip() if key in as_text else _value(value.strip())
    return settings


def _value(text: str) -> Any:
    import yaml

    for read in (int, float):  # YAML takes 1e-3 and inf for strings
        try:
            return read(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def read_config(path: Path) -> Settings:
    """The settings in a YAML file, or in the run.json of a run.

    Raises:
        UserError: the file cannot be read or is not a mapping of keys to values.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the config '{path}': {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The config '{path}' is not YAML: {' '.join(str(error).split())}.") from error
    if isinstance(content, dict) and isinstance(content.get("settings"), dict):
        content = content["settings"]
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"Expected the config '{path}' to be lines of KEY: VALUE.")
    return {key: _value(value) if isinstance(value, str) else value for key, value in content.items()}


def method_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method with their defaults, which may depend on options that are `given`."""
    return regularizers.describe(method, given).defaults


def resolve(defaults: Mapping[str, Any], method: str, *layers: Mapping[str, Any]) -> Settings:
    """All settings of one run: the task's `defaults`, the method's options, then each layer over those before it.

    Keys that neither the task nor this method has are dropped: `check_known` refuses keys that no method of a run has.
    So are `EXTRAS` with their default values.

    Raises:
        UserError: a value has the wrong type or is out of range.
    """
    options = method_options(method, {key: value for layer in layers for key, value in layer.items()})
    settings = {**defaults, **options}
    for layer in layers:
        for key, value in layer.items():
            if key in LENGTHS:
                for other in LENGTHS:
                    settings.pop(other, None)
            if key in settings or key in LENGTHS or key in EXTRAS:
                settings[key] = _cast(key, value, defaults.get(key, EXTRAS.get(key)))
    _check_training(settings)
    return {key: value for key, value in settings.items() if key not in EXTRAS or value != EXTRAS[key]}


def check_known(given: Mapping[str, Any], defaults: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Refuse keys that nothing in the run has."""
    known = {*defaults, *LENGTHS, *EXTRAS}.union(*(method_options(method, given) for method in methods))
    for key in given:
        if key not in known:
            raise unknown("setting", key, known)
    if all(key in given for key in LENGTHS):
        raise UserError("Expected either epochs or steps, but got both.")


def split(settings: Mapping[str, Any], method: str) -> tuple[Settings, Settings]:
    """(settings of the training, options of the method)."""
    names = method_options(method, settings)
    training = {key: value for key, value in settings.items() if key not in names}
    return training, {key: value for key, value in settings.items() if key in names}


def create_method(method: str, settings: Mapping[str, Any]) -> Any:
    """The regularizer of this name, with its options among `settings`.

    Raises:
        UserError: an option is out of range.
    """
    _, options = split(settings, method)
    try:
        return regularizers.create(method, **options)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def _cast(key: str, value: Any, default: Any) -> Any:
    """`value` with the type of the default; options of methods check themselves."""
    if default is None or key in LENGTHS:
        return value
    wrong = not isinstance(value, str | int | float) or isinstance(default, str) != isinstance(value, str)
    if wrong or isinstance(value, bool) != isinstance(default, bool):
        kind = "a boolean" if isinstance(default, bool) else "a string" if isinstance(default, str) else "a number"
        raise UserError(f"Expected setting `{key}` to be {kind} (default {default}), but got {value!r}.")
    if isinstance(default, int) and isinstance(value, float):
        if not value.is_integer():
            raise UserError(f"Expected setting `{key}` to be a whole number, but got {value}.")
        return int(value)
    return float(value) if isinstance(default, float) else value


def _check_training(settings: Mapping[str, Any]) -> None:
    for key, minimum, whole in (
        ("epochs", 0, False),
        ("steps", 0, True),
        ("batch_size", 0, True),
        ("accumulation", 0, True),
        ("tokens", 0, True),
        ("average_epochs", -1, True),
        ("patience", -1, True),
        ("start_after", -1, True),
        ("learning_rate", 0, False),
        ("beam", 0, True),
        ("length_penalty", -math.inf, False),
    ):
        if key in settings:
            _check_number(key, settings[key], above=minimum, whole=whole)
    if "weight_decay" in settings:
        _check_number("weight_decay", settings["weight_decay"], above=-1e-300, whole=False)
    for key, choices in CHOICES.items():
        if key in settings and settings[key] not in choices:
            raise unknown(key, settings[key], choices)
    if settings.get("start_with", "none") != "none" and not settings.get("start_after"):
        raise UserError("Setting `start_with` requires `start_after`, the number of steps before the method's loss.")
    for key in FRACTIONS:
        if key in settings and not 0 <= settings[key] < 1:
            raise UserError(f"Expected setting `{key}` to be in [0, 1), but got {settings[key]!r}.")


def _check_number(key: str, value: Any, *, above: float, whole: bool) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > above
    if not fits or (whole and value != int(value)):
        kind = "a whole number" if whole else "a finite number"
        minimum = "" if above == -math.inf else " of at least 0" if above < 0 else f" above {above:g}"
        raise UserError(f"Expected setting `{key}` to be {kind}{minimum}, but got {value!r}.")
