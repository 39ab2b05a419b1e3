"""The ranges in which settings are searched, from the candidates that `labo compare` tries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from labo.numeric import is_number

# A range whose ends differ by at least this factor is searched by factors.
_LOG_FACTOR = 10


@dataclass(frozen=True)
class Range:
    """Values of a setting: numbers from `low` to `high`, by factors if `log`, `whole` ones; or one of the `choices`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()


def spanned(candidates: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]) -> dict[str, Range]:
    """The range that the candidates' values of each setting span; a candidate without it has the default.

    Settings of one value are left out. Numbers span from the least to the largest, anything else is one of the values.

    Example:
        >>> spanned([{"alpha": 0.1}, {"alpha": 0.4, "kind": "hard"}], {"kind": "soft"})["alpha"]
        Range(low=0.1, high=0.4, log=False, whole=False, choices=())
    """
    candidates = list(candidates)
    found: dict[str, Range] = {}
    for name in dict.fromkeys(name for candidate in candidates for name in candidate):
        values = list(dict.fromkeys(candidate.get(name, defaults.get(name)) for candidate in candidates))
        if len(values) == 1:
            continue
        if all(map(is_number, values)):
            low, high = float(min(values)), float(max(values))
            found[name] = Range(
                low, high, low > 0 and high >= _LOG_FACTOR * low, all(isinstance(value, int) for value in values)
            )
        else:
            found[name] = Range(choices=tuple(values))
    return found
