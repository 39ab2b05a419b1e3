"""LABO: labels that solve the inner problem of a bi-level one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from labo import functional, inner
from labo.errors import unknown
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, counts_to_prior

PRIORS = ("uniform", "unigram")


class LABO(Regularizer):
    """(1 - alpha) * CE(target, p) + alpha * V(logits), with the optimal label q* = softmax(logits / beta + log prior).

    Args:
        alpha: strength in [0, 1]; a float or a 0-d tensor.
        beta: pull towards the prior in (0, inf]; inf is label smoothing towards the prior. A float or a 0-d tensor.
        prior: None or "uniform"; "unigram" for the frequencies of the training targets, which come by
            `provide(class_counts=…)`; or (C,) probabilities.
        value: "inner" or "plugin", as in `labo.labo_cross_entropy`.

    Needs: the (C,) counts of the training targets, by `provide(class_counts=…)`, with prior="unigram" alone.

    When: the other classes are not alike, and an example's likely mistakes should keep more of the mass than the rest.
        Nothing is stored and nothing runs twice. At beta = 1 it only scales the loss by 1 - alpha, below 1 it sharpens.
        A small alpha with a small beta does almost nothing; early beliefs are noise, so labels are too.

    Raises:
        ValueError, TypeError: an option is out of range, or the prior does not fit the classes.

    Source: Lu et al., *LABO*, Findings of ACL 2023 (arXiv 2305.04971); algebra in docs/math.md.
    """

    name = "labo"
    summary = "targets mixed with the label that the model's belief and a prior agree on"
    paper = "Lu et al., Findings of ACL 2023"
    year = 2023
    candidates = (
        {"alpha": 0.1, "beta": 2.0},
        {"alpha": 0.4, "beta": 4.0},
        {"alpha": 0.8, "beta": 4.0},
        {"alpha": 0.2, "beta": 2.0},
        {"alpha": 0.6, "beta": 4.0},
    )
    prior: Tensor | None

    def __init__(
        self,
        *,
        alpha: float | Tensor = 0.1,
        beta: float | Tensor = 2.0,
        prior: str | Tensor | Sequence[float] | None = None,
        value: str = "inner",
    ) -> None:
        super().__init__()
        if isinstance(prior, str) and prior not in PRIORS:
            raise unknown("prior", prior, PRIORS)
        given = None if prior is None or isinstance(prior, str) else torch.as_tensor(prior)
        if given is not None and not given.dtype.is_floating_point:
            given = given.double()
        functional.check_options(alpha, beta, given, "mean", value, "auto")
        self.alpha = alpha
        self.beta = beta
        self.value = value
        self._asked = prior if isinstance(prior, str) else None
        if isinstance(given, nn.Parameter):
            self.prior = given
        else:
            self.register_buffer("prior", given)

    @property
    def needs(self) -> tuple[str, ...]:
        """The class counts with prior="unigram"."""
        return ("class_counts",) if self._asked == "unigram" else ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The class counts until they were provided."""
        return () if self.prior is not None else self.needs

    def provide(self, *, class_counts: Tensor | None = None, **given: Any) -> None:
        """Take the (C,) counts of the training targets for prior="unigram"."""
        super().provide(**given)
        if class_counts is not None:
            self.prior = counts_to_prior(class_counts)

    def as_labo(self, rows: Rows) -> Options:
        """Itself."""
        self.require()
        return functional.row_options(rows, self.alpha, self.beta, self._beside(rows.raw), self.value)

    def losses(self, rows: Rows) -> Tensor:
        """See `Regularizer.losses`."""
        return functional.labo_losses(rows, self.as_labo(rows))

    def labels(self, rows: Rows) -> Tensor:
        """The optimal label q* of each row, (N, C)."""
        self.require()
        logits = inner.working(rows.logits)
        return inner.labels_of_rows(logits, inner.over_rows("beta", self.beta, logits), self._beside(logits))

    def _beside(self, logits: Tensor) -> Tensor | None:
        """The prior where the logits are: class counts may come after the module was moved."""
        return None if self.prior is None else self.prior.to(logits.device)

    def options(self) -> dict[str, Any]:
        """See `Regularizer.options`."""
        prior = self._asked if self._asked or self.prior is None else self.prior.tolist()
        return {"alpha": self.alpha, "beta": self.beta, "prior": prior, "value": self.value}
