"""What the lines of a comparison's beams.jsonl tell; imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

BEAMS = "beams.jsonl"
Run = tuple[str, str, int]


def measured(lines: Iterable[Mapping[str, Any]]) -> dict[Run, dict[int, float]]:
    """(task, method, seed) -> width of the beam -> BLEU, of the lines of a beams.jsonl; damaged ones are left out."""
    found: dict[Run, dict[int, float]] = {}
    for line in lines:
        try:
            by_width = {int(width): float(values["bleu"]) for width, values in line["scores"].items()}
            run = line["task"], line["method"], line["seed"]
            found.setdefault(run, {}).update({w: bleu for w, bleu in by_width.items() if math.isfinite(bleu)})
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return found
