"""What each recorded measure is called, which direction is better, and how its values are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from labo.report.model import Cell

LEADERBOARD, CALIBRATION, SELECTIVE = "leaderboard", "calibration", "selective"


@dataclass(frozen=True)
class Measure:
    """How one key of a record's metrics is shown; `factor` turns the recorded value into the shown unit.

    `group` is the table that it stands in: that of the leaderboard, of calibration or of selective prediction.
    """

    key: str
    label: str
    higher_is_better: bool
    factor: float = 1.0
    digits: int = 4
    unit: str = ""
    difference_unit: str = ""
    group: str = LEADERBOARD

    @property
    def of_text(self) -> bool:
        """Whether it scores translations."""
        return self.key in OF_TEXT

    @property
    def noun(self) -> str:
        """Its name within a sentence: accuracy, BLEU."""
        return self.label if self.label.isupper() or self.key == "chrf" else self.label.lower()

    def value(self, value: float | None) -> str:
        """The value in its unit, such as `97.32%`; an en dash where there is none; −0.0 is 0."""
        return "–" if value is None else f"{value * self.factor + 0.0:.{self.digits}f}{self.unit}"

    def spread(self, half_width: float | None) -> str:
        """The half width of an interval in the unit of `value`, without its sign: `0.21`; empty where there is none."""
        return "" if half_width is None else f"{half_width * self.factor:.{self.digits}f}"

    def signed(self, difference: float | None) -> str:
        """A difference with its sign, in the unit of `value` but without naming it: `+0.32`, `−0.05`."""
        if difference is None:
            return "–"
        text = f"{difference * self.factor + 0.0:+.{self.digits}f}"
        return text.replace("-", "−")

    def cell(self, mean: float | None, half_width: float | None, *, emphasized: bool = False) -> Cell:
        """A cell with a mean and half of its interval."""
        return Cell(self.value(mean), self.spread(half_width), emphasized=emphasized)

    def difference_cell(self, mean: float | None, half_width: float | None, note: str = "") -> Cell:
        """A cell with a mean difference, with its sign, and half of its interval."""
        return Cell(self.signed(mean), self.spread(half_width), note)


_PERCENT: dict[str, Any] = {"factor": 100.0, "digits": 2, "unit": "%", "difference_unit": " points"}
MEASURES = {
    measure.key: measure
    for measure in (
        Measure("accuracy", "Accuracy", True, **_PERCENT),
        Measure("top5", "Top-5", True, **_PERCENT),
        Measure("accuracy_shifted", "Accuracy, shifted", True, **_PERCENT),
        Measure("bleu", "BLEU", True, digits=2),
        Measure("chrf", "chrF", True, digits=2),
        Measure("nll", "NLL", False),
        Measure("nll_scaled", "NLL, scaled", False),
        Measure("brier", "Brier", False),
        Measure("ece", "ECE", False),
        Measure("ece_scaled", "ECE, scaled", False),
        Measure("perplexity", "Perplexity", False, digits=2),
        Measure("ece_adaptive", "ECE, adaptive", False, group=CALIBRATION),
        Measure("ece_adaptive_scaled", "Adaptive, scaled", False, group=CALIBRATION),
        Measure("ece_classwise", "ECE, class-wise", False, group=CALIBRATION),
        Measure("ece_classwise_scaled", "Class-wise, scaled", False, group=CALIBRATION),
        *(
            Measure(f"{key}{suffix}", f"{label}{name}", higher, group=SELECTIVE, **how)
            for suffix, name in (("", ""), ("_normalized", ", normalized"))
            for key, label, higher, how in (
                ("aurc", "AURC", False, {}),
                ("auroc", "AUROC", True, {}),
                ("coverage_1", "Coverage at 1%", True, _PERCENT),
                ("coverage_5", "Coverage at 5%", True, _PERCENT),
            )
        ),
    )
}
OF_TEXT = ("bleu", "chrf")
MAIN = ("accuracy", *OF_TEXT)  # what a verdict may be about: `Task.metric` of every task is among them


def present(metrics: set[str], group: str | None = LEADERBOARD) -> list[Measure]:
    """The known measures of a group among `metrics`, in reading order: the main one first; None is for all groups."""
    return [
        measure for key, measure in MEASURES.items() if key in metrics and (group is None or measure.group == group)
    ]


def number(value: object) -> float | None:
    """`value` as a finite float, else None (NaN and infinity count as not measured)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def p_text(p: float | None) -> str:
    """A p-value as it is written in tables: `0.016`, `<0.001`; an en dash where there is none."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"
