"""What the lines of a comparison's shift.jsonl tell; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from labo.experiment.run_lines import Run, merged

SHIFTS = "shift.jsonl"
SEVERITIES = (1, 2, 3, 4, 5)
Pairs = dict[tuple[str, int], dict[str, float]]


def measured(lines: Iterable[Mapping[str, Any]]) -> dict[Run, Pairs]:
    """The run -> (kind, severity) -> scores, of the lines of a shift.jsonl; damaged ones are left out."""
    return merged(lines, _by_pair)


def _by_pair(line: Mapping[str, Any]) -> Pairs:
    return {
        (kind, int(severity)): dict(values)
        for kind, severities in line["scores"].items()
        for severity, values in severities.items()
    }
