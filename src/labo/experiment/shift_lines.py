"""What the lines of a comparison's shift.jsonl tell; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SHIFTS = "shift.jsonl"
SEVERITIES = (1, 2, 3, 4, 5)
Run = tuple[str, str, int]
Pairs = dict[tuple[str, int], dict[str, float]]


def measured(lines: Iterable[Mapping[str, Any]]) -> dict[Run, Pairs]:
    """(task, method, seed) -> (kind, severity) -> scores, of the lines of a shift.jsonl; damaged ones are left out."""
    found: dict[Run, Pairs] = {}
    for line in lines:
        try:
            pairs = {
                (kind, int(severity)): dict(values)
                for kind, severities in line["scores"].items()
                for severity, values in severities.items()
            }
            found.setdefault((line["task"], line["method"], line["seed"]), {}).update(pairs)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return found
