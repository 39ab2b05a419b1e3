"""One line that says where a comparison's numbers come from, for papers, as sacreBLEU's signature does for a score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from labo.records.comparison import Recorded
from labo.tasks.registry import TEXTS

# Of a data fingerprint: enough to tell one from another.
_DIGITS = 12
_VERSIONS = ("labo", "torch", "python")


def signature(recorded: Recorded) -> str:
    """`labo|task:digits|…|labo:0.1.0`: task, data, methods, seeds, tuning, checkpoint and versions.

    What the folder does not say is left out.
    """
    config = recorded.comparison
    parts = [("task", "+".join(recorded.tasks))]
    if len(recorded.tasks) == 1 and config:
        options = config.get("task_options")
        listed = [f"{key}={without_folder(key, value)}" for key, value in _mapping(options).items()]
        parts += [("options", ";".join(listed))] if listed else []
        parts.append(("data", str(config.get("data") or "")[:_DIGITS] or "built-in"))
        parts += (
            [("set", ";".join(f"{key}={value}" for key, value in given.items()))] if (given := _given(config)) else []
        )
    parts.append(("methods", "+".join(dict.fromkeys(str(record["method"]) for record in recorded.records))))
    parts.append(("seeds", ranges({record["seed"] for record in recorded.records})))
    if isinstance(candidates := config.get("settings_per_method"), int):
        searched = config.get("tune") or (candidates if candidates > 1 else None)
        parts.append(("tuning", f"{searched}x{config.get('tuning_seeds')}" if searched else "none"))
    parts += [("checkpoint", str(config["checkpoint"]))] if "checkpoint" in config else []
    parts += [(name, version) for name in _VERSIONS if (version := _version(recorded, name))]
    return "|".join(["labo", *(f"{key}:{''.join(str(value).split())}" for key, value in parts)])


def ranges(seeds: Iterable[int]) -> str:
    """Whole numbers as ranges.

    Example:
        >>> ranges({0, 1, 2, 5, 7, 8})
        '0-2,5,7-8'
    """
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _given(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that the user fixed for all methods."""
    return _mapping(config.get("set"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _version(recorded: Recorded, name: str) -> str:
    """The version of a distribution in the records; several where they differ."""
    known = [str(version) for record in recorded.records if (version := _mapping(record.get("versions")).get(name))]
    return "+".join(dict.fromkeys(known))


def short(value: Any) -> str:
    """A setting as a report shows it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def without_folder(key: str, value: Any) -> str:
    """An option of a task as a report shows it: files without their folders."""
    # A report is shown to others, whom the folders of one machine do not concern. A target that is no absolute path is
    # a column, whose name may hold a slash.
    absolute = PurePosixPath(str(value)).is_absolute() or PureWindowsPath(str(value)).is_absolute()
    if key == "data" or (key in TEXTS and absolute):
        return str(value).replace("\\", "/").rpartition("/")[2]
    return short(value)
