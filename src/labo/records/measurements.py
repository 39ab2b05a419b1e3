"""Measurements of finished trials that are made after training: what the lines of their files say.

Of several lines on the same trial the last one counts; damaged lines are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")
Line = Mapping[str, Any]
# (task, method, seed)
TrialKey = tuple[str, str, int]
# (kind, severity) -> scores by name
ShiftScores = dict[tuple[str, int], dict[str, float]]
# (task, baseline, method, seed)
PairKey = tuple[str, str, str, int]

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class BootstrapResult:
    """A method's BLEU minus the baseline's on one seed.

    `p` is the share of resampled test sets on which the difference is as large by chance; `digest` identifies the
    translations.
    """

    difference: float
    p: float
    draws: int
    digest: str


def shift_scores(lines: Iterable[Line]) -> dict[TrialKey, ShiftScores]:
    """The scores of each trial by kind and severity of corruption."""
    return _merged(lines, _by_severity)


def beam_bleu(lines: Iterable[Line]) -> dict[TrialKey, dict[int, float]]:
    """The BLEU of each trial by the width of the beam."""
    return _merged(lines, _by_width)


def bootstrap_results(lines: Iterable[Line]) -> dict[PairKey, BootstrapResult]:
    """The comparison of each trial with the baseline's of the same seed."""
    results: dict[PairKey, BootstrapResult] = {}
    for line in lines:
        try:
            pair = str(line["task"]), str(line["baseline"]), str(line["method"]), int(line["seed"])
            result = BootstrapResult(
                float(line["difference"]), float(line["p"]), int(line["draws"]), str(line["digest"])
            )
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(result.difference) and 0 <= result.p <= 1:
            results[pair] = result
    return results


def _merged(lines: Iterable[Line], scores: Callable[[Line], dict[K, V]]) -> dict[TrialKey, dict[K, V]]:
    """The scores of each trial; a line of other `weights` than its last one starts afresh: it was trained again."""
    merged: dict[TrialKey, dict[K, V]] = {}
    weights: dict[TrialKey, Any] = {}
    for line in lines:
        try:
            key = line["task"], line["method"], line["seed"]
            measured = scores(line)
            own = line.get("weights")
            if own is not None and weights.get(key) not in (None, own):
                merged[key] = {}
            merged.setdefault(key, {}).update(measured)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        weights[key] = own if own is not None else weights.get(key)
    return merged


def _by_severity(line: Line) -> ShiftScores:
    return {
        (kind, int(severity)): dict(values)
        for kind, severities in line["scores"].items()
        for severity, values in severities.items()
    }


def _by_width(line: Line) -> dict[int, float]:
    by_width = {int(width): float(values["bleu"]) for width, values in line["scores"].items()}
    return {width: bleu for width, bleu in by_width.items() if math.isfinite(bleu)}
