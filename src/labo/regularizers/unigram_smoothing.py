"""Label smoothing towards the class frequencies."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from labo import checks, functional, inner
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers.base import SoftLabelRegularizer, counts_to_prior


class UnigramSmoothing(SoftLabelRegularizer):
    """CE((1 - epsilon) * target + epsilon * r, p) with r proportional to counts ** (1 / temperature).

    Args:
        epsilon: smoothing mass in [0, 1].
        temperature: above 0; 1 keeps the frequencies, inf makes them uniform over the classes that occur.

    Needs: the (C,) counts of the training targets, by `provide(class_counts=…)`.

    When: class frequencies differ much, and rare classes should not get as much mass as frequent ones. Among tokens,
        the end-of-sentence token is the most frequent.

    Raises:
        ValueError: an option is out of range; counts were not provided or do not fit the classes.

    Source: Pereyra et al., *Regularizing Neural Networks by Penalizing Confident Output Distributions*, 2017,
        section 3.2; the temperature as in Gao et al., AACL 2020.
    """

    name = "unigram_smoothing"
    summary = "targets mixed with the class frequencies"
    paper = "Pereyra et al., ICLR workshop 2017"
    year = 2017
    strength_name = "epsilon"
    candidates = ({"epsilon": 0.1}, {"epsilon": 0.4}, {"epsilon": 0.8}, {"epsilon": 0.2}, {"epsilon": 0.6})
    prior: Tensor | None

    def __init__(self, *, epsilon: float = 0.1, temperature: float = 1.0) -> None:
        super().__init__(strength=epsilon)
        checks.positive("temperature", temperature)
        self.temperature = temperature
        self.register_buffer("prior", None)

    @property
    def needs(self) -> tuple[str, ...]:
        """The class counts."""
        return ("class_counts",)

    @property
    def missing(self) -> tuple[str, ...]:
        """The class counts until they were provided."""
        return () if self.prior is not None else self.needs

    def provide(self, *, class_counts: Tensor | None = None, **inputs: Any) -> None:
        """Take the (C,) counts of the training targets."""
        super().provide(**inputs)
        if class_counts is not None:
            self.prior = counts_to_prior(class_counts, self.temperature)

    def as_labo(self, rows: Rows) -> Options:
        """LABO at infinite beta with the class frequencies as prior."""
        self.require()
        return functional.row_options(rows, self.strength, math.inf, self._prior_of(rows))

    def labels(self, rows: Rows) -> Tensor:
        """The class frequencies, (N, C)."""
        self.require()
        logits = inner.working(rows.logits)
        return self._prior_of(rows).to(logits.dtype).expand(logits.shape)

    def _prior_of(self, rows: Rows) -> Tensor:
        """The prior on the device of the logits, after checking its number of classes."""
        checks.probabilities("class_counts", self.prior, rows.raw.shape[-1])
        assert self.prior is not None
        return self.prior.to(rows.raw.device)
