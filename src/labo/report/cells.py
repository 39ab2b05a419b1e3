"""A cell of a table: the mean of some seeds, ± half of the 95% interval."""

from __future__ import annotations

from collections.abc import Iterable

from labo.report.measures import Measure
from labo.report.verdict import estimate


def cell(measure: Measure, values: Iterable[float], *, signed: bool = False) -> str:
    """The mean of a measure's values, with its sign if it is `signed`; no interval where there is one value."""
    found = estimate(dict(enumerate(values)))
    spread = measure.spread(found.half_width)
    return (measure.signed if signed else measure.value)(found.mean) + (f" ± {spread}" if spread else "")
