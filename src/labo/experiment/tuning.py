"""Tuning: the same number of candidate settings for every method, compared on the validation split alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from labo import regularizers
from labo.errors import UserError
from labo.experiment import settings as flat
from labo.experiment.settings import Settings

# The first tuning seed, and far from the seeds of the verdict.
FIRST_SEED = 10_000


def seeds(count: int) -> list[int]:
    """The first `count` tuning seeds."""
    return [FIRST_SEED + index for index in range(count)]


def candidates(
    method: str,
    count: int,
    defaults: Mapping[str, Any],
    optimizer: Sequence[Mapping[str, Any]],
    fixed: Mapping[str, Any],
) -> list[Settings]:
    """The first `count` different settings to try: the method's candidates, then also with each of the optimizer's.

    A method without options varies the optimizer alone; a method that decides for itself has one candidate, its
    defaults. `fixed` holds what the user set.

    Raises:
        UserError: there are fewer than `count`.
    """
    distinct: list[Settings] = []
    if not regularizers.is_tuned(method):
        return [flat.resolve(defaults, method, fixed)]
    for varied, options in itertools.product(optimizer, regularizers.candidates(method, fixed)):
        settings = flat.resolve(defaults, method, options, varied, fixed)
        if settings not in distinct:
            distinct.append(settings)
        if len(distinct) == count:
            return distinct
    raise UserError(
        f"Method '{method}' has {len(distinct)} different settings to try here, but --settings-per-method asks for "
        f"{count} of every method; fix fewer settings, or take --settings-per-method {len(distinct)}."
    )


def choose(tried: Iterable[Mapping[str, Any]], candidates: Sequence[Settings], metric: str) -> Settings:
    """The candidate with the best mean of `metric` on validation over the tuning seeds.

    Ties go to the lower temperature-scaled NLL, then to the earlier candidate. A candidate with a failed trial ranks
    below all without.

    Args:
        tried: tuning records.
        candidates: the settings to choose from.
        metric: a key of their "validation"; higher is better, but for "nll…".
    """
    tried = list(tried)
    sign = 1.0 if metric.startswith("nll") else -1.0

    def rank(candidate: Settings) -> tuple[float, float]:
        records = [record for record in tried if record["settings"] == candidate]
        return sign * _mean(records, metric, sign * math.inf), _mean(records, "nll_scaled", math.inf)

    return min(candidates, key=rank)


def _mean(records: Sequence[Mapping[str, Any]], key: str, failed: float) -> float:
    values = [record.get("validation", {}).get(key) for record in records]
    known = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return fmean(known) if known and len(known) == len(records) else failed
