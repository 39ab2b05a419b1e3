"""What the lines of a comparison's beams.jsonl tell; imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from labo.experiment.run_lines import Run, merged

BEAMS = "beams.jsonl"


def measured(lines: Iterable[Mapping[str, Any]]) -> dict[Run, dict[int, float]]:
    """The run -> width of the beam -> BLEU, of the lines of a beams.jsonl; damaged ones are left out."""
    return merged(lines, _by_width)


def _by_width(line: Mapping[str, Any]) -> dict[int, float]:
    found = {int(width): float(values["bleu"]) for width, values in line["scores"].items()}
    return {width: bleu for width, bleu in found.items() if math.isfinite(bleu)}
