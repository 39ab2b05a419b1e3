"""What the lines of a comparison's bootstrap.jsonl tell; imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

BOOTSTRAP = "bootstrap.jsonl"
DRAWS = 1000
# (task, baseline, method, seed)
Pair = tuple[str, str, str, int]


@dataclass(frozen=True)
class Drawn:
    """A method's BLEU minus the baseline's on one seed, and how often drawn test sentences differ as much."""

    difference: float
    p: float
    draws: int
    digest: str


def measured(lines: Iterable[Mapping[str, Any]]) -> dict[Pair, Drawn]:
    """What the lines of a bootstrap.jsonl tell, the last one of a pair; damaged ones are left out."""
    found: dict[Pair, Drawn] = {}
    for line in lines:
        try:
            pair = str(line["task"]), str(line["baseline"]), str(line["method"]), int(line["seed"])
            drawn = Drawn(float(line["difference"]), float(line["p"]), int(line["draws"]), str(line["digest"]))
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(drawn.difference) and 0 <= drawn.p <= 1:
            found[pair] = drawn
    return found
