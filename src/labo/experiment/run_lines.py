"""What lines about the finished runs of a comparison have in common; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

# (task, method, seed)
Run = tuple[str, str, int]
K = TypeVar("K")
V = TypeVar("V")


def merged(
    lines: Iterable[Mapping[str, Any]], scores: Callable[[Mapping[str, Any]], dict[K, V]]
) -> dict[Run, dict[K, V]]:
    """What `scores` finds in the lines of each run, the last line counting; damaged lines are left out.

    A line of other `weights` than the run's last one begins anew: the run was trained again.
    """
    found: dict[Run, dict[K, V]] = {}
    weights: dict[Run, Any] = {}
    for line in lines:
        try:
            run = line["task"], line["method"], line["seed"]
            measured = scores(line)
            own = line.get("weights")
            if own is not None and weights.get(run) not in (None, own):
                found[run] = {}
            found.setdefault(run, {}).update(measured)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        weights[run] = own if own is not None else weights.get(run)
    return found
