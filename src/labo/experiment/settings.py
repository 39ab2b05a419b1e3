"""Flat settings: a task's defaults, a method's options, what was tuned, and what the user set, in this order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from labo import numeric, regularizers
from labo import settings as training_settings
from labo.errors import UserError, one_line, shorten, unknown
from labo.settings import DEFAULTS

Settings = dict[str, Any]

# Settings that any run takes beside its task's, with their defaults. With these values they are not recorded, so that a
# run of a version that did not know them is still the same run.
EXTRAS: Settings = {name: DEFAULTS[name] for name in ("ema", "accumulation", "average_epochs", "patience")}
EXTRAS |= {"channels_last": False, **{name: DEFAULTS[name] for name in ("start_after", "start_with")}}
MAX_BEAM, MAX_LENGTH_PENALTY = 1_000, 100
# How long a run is: exactly one of the two.
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
        settings[key] = value.strip() if key in as_text else _value(value.strip(), f"{option} {key}")
    return settings


def _value(text: str, source: str) -> Any:
    import yaml

    try:
        return _load_yaml(text, source)
    except yaml.YAMLError:
        return text


@cache
def _yaml_loader() -> Any:
    """YAML whose plain values are numbers as Python reads them: no dates, no sexagesimals, no octals."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    unread = ("int", "float", "timestamp")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in unread]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def scalar(loader: Any, node: Any) -> Any:
        text = loader.construct_scalar(node)
        number = numeric.parse(text)
        return text if number is None else number

    Loader.add_constructor("tag:yaml.org,2002:str", scalar)
    return Loader


def _load_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; `source` names it in errors.

    Raises:
        UserError: a number is too large, or lists are nested too deeply.
        yaml.YAMLError: it is not YAML.
    """
    import yaml

    try:
        return yaml.load(text, _yaml_loader())
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{source}: the value is nested too deeply.") from error
    except ValueError as error:  # an explicit tag, as in `!!int x`
        raise UserError(f"{source}: {one_line(error)}.") from error


def read_config(path: Path) -> Settings:
    """The settings in a YAML file, or in the run.json of a run.

    Raises:
        UserError: the file cannot be read or is not a mapping of keys to values.
    """
    import yaml

    try:
        content = _load_yaml(path.read_text(encoding="utf-8"), f"The config '{path}'")
    except OSError as error:
        raise UserError(f"Cannot read the config '{path}': {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The config '{path}' is not YAML: {one_line(error)}.") from error
    if isinstance(content, dict) and isinstance(content.get("settings"), dict):
        content = content["settings"]
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"Expected the config '{path}' to be lines of KEY: VALUE.")
    return content


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
    training_settings.check(settings)
    if "beam" in settings:
        numeric.setting("beam", settings["beam"], above=0, maximum=MAX_BEAM, whole=True)
    if "length_penalty" in settings:
        numeric.setting("length_penalty", settings["length_penalty"], maximum=MAX_LENGTH_PENALTY)
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
        raise UserError(f"Expected setting `{key}` to be {kind} (default {default}), but got {shorten(repr(value))}.")
    if isinstance(default, int) and isinstance(value, float):
        if not value.is_integer():
            raise UserError(f"Expected setting `{key}` to be a whole number, but got {value}.")
        return int(value)
    return float(value) if isinstance(default, float) else value
