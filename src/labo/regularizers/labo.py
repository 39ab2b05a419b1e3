"""LABO: labels that solve the inner problem of a bi-level one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from labo import checks, distributed, functional, inner
from labo.errors import UserError, unknown
from labo.kernels.autograd import Solve
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, counts_to_prior
from labo.regularizers.memory_prior import MemoryPrior
from labo.regularizers.prediction_memory import PredictionMemory

PRIORS = ("uniform", "unigram", "memory")
# Options of prior="memory" alone.
_OF_MEMORY = ("sharpness", "decay", "epsilon", "top")


class LABO(Regularizer):
    """(1 - alpha) * CE(target, p) + alpha * V(logits), with the optimal label q* = softmax(logits / beta + log prior).

    With prior="memory" the prior of each example is sharpened from what the network has said of it: r = m ** sharpness,
    normalised, where m is a running average of its predictions, m <- decay * m + (1 - decay) * p at each visit, from
    the uniform distribution. So each example's label is learnt in the run.

    Args:
        alpha: strength in [0, 1]; a float or a 0-d tensor. 0.1 by default, 0.8 with a memory.
        beta: pull towards the prior in (0, inf]; inf is label smoothing towards the prior. A float or a 0-d tensor. 2
            by default, inf with a memory.
        prior: None or "uniform"; "unigram" for the frequencies of the training targets, which come by
            `provide(class_counts=…)`; "memory"; or (C,) probabilities.
        value: "inner" or "plugin", as in `labo.labo_cross_entropy`; the same at beta = inf.
        sharpness: with a memory, the exponent of m, above 0; by default 2 with up to 50 classes and 1.5 with more. 1
            suits right labels, 2 wrong ones.
        decay: with a memory, the weight of the past in [0, 1); 0.8 by default: about five visits.
        epsilon: with a memory, label smoothing of the target, in [0, 1]; 0.5 by default.
        top: with a memory, how many entries of m to keep; by default all of up to 256 classes, else the 16 largest
            and the mass of the rest. The memory is in half precision.

    Needs: the (C,) counts of the training targets, by `provide(class_counts=…)`, with prior="unigram"; with
        prior="memory" how many training examples there are, by `provide(examples=…)`, and with each batch the places
        of its examples in the training data, `indices`. Of targets of more than one dimension each counts as an
        example, and `indices` have the shape of the targets.

    When: the other classes are not alike, and an example's likely mistakes should keep more of the mass than the rest.
        With a uniform prior nothing is stored. At beta = 1 it only scales the loss by 1 - alpha, below 1 it sharpens.
        A small alpha with a small beta does almost nothing; early beliefs are noise, so labels are too. A memory
        helps where networks come to learn labels by heart, wrong ones above all. It harms where a network learns
        slowly to the end of training (a convnet with augmentation and few epochs): early mistakes become its labels.
        docs/memory.md says more.

    Raises:
        ValueError, TypeError: an option is out of range, or the prior does not fit the classes.

    Source: Lu et al., *LABO*, Findings of ACL 2023 (arXiv 2305.04971); algebra in docs/math.md. The memory is this
        project's.
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
    memory_candidates: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"alpha": 0.8, "sharpness": 2.0, "epsilon": 0.5, "decay": 0.8},
        {"alpha": 0.3, "sharpness": 1.0, "epsilon": 0.0, "decay": 0.9},
        {"alpha": 0.8, "sharpness": 1.5, "epsilon": 0.5, "decay": 0.9},
        {
            "alpha": 0.0,
            "sharpness": 1.0,
            "epsilon": 0.1,
            "decay": 0.9,
        },  # label smoothing: no trust in the memory at all
        {"alpha": 0.85, "sharpness": 2.0, "epsilon": 0.8, "decay": 0.8},
    )
    prior: Tensor | None
    memory: MemoryPrior | None

    def __init__(
        self,
        *,
        alpha: float | Tensor | None = None,
        beta: float | Tensor | None = None,
        prior: str | Tensor | Sequence[float] | None = None,
        value: str = "inner",
        sharpness: float | None = None,
        decay: float | None = None,
        epsilon: float | None = None,
        top: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(prior, str) and prior not in PRIORS:
            raise unknown("prior", prior, PRIORS)
        usual = self.defaults({"prior": prior if isinstance(prior, str) else None})
        self.alpha: float | Tensor = usual["alpha"] if alpha is None else alpha
        self.beta: float | Tensor = usual["beta"] if beta is None else beta
        given = None if prior is None or isinstance(prior, str) else torch.as_tensor(prior)
        if given is not None and not given.dtype.is_floating_point:
            given = given.double()
        functional.check_options(self.alpha, self.beta, given, "mean", value, "auto")
        self.value = value
        self._asked = prior if isinstance(prior, str) else None
        if isinstance(given, nn.Parameter):
            self.prior = given
        else:
            self.register_buffer("prior", given)
        own = {"sharpness": sharpness, "decay": decay, "epsilon": epsilon, "top": top}
        own = {name: option for name, option in own.items() if option is not None}
        if prior == "memory":
            self.memory = MemoryPrior(self.name, **{name: usual[name] for name in _OF_MEMORY} | own)
            self.pulls_to_labels = not self.memory.epsilon  # else it pulls to a smoothed target beside them
        else:
            self.memory = None
            for name in own:
                raise UserError(f'Option `{name}` belongs to prior="memory", but the prior is {prior!r}.')

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options beside those `given`, with their defaults; those of a memory with prior="memory" alone."""
        if given.get("prior") != "memory":
            return {"alpha": 0.1, "beta": 2.0, "prior": None, "value": "inner"}
        memory = {"sharpness": None, "decay": 0.8, "epsilon": 0.5, "top": None}
        return {"alpha": 0.8, "beta": math.inf, "prior": "memory", "value": "inner", **memory}

    @classmethod
    def candidates_with(cls, given: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
        """What `labo compare` may try of the options; with a memory strong settings and mild ones."""
        return cls.memory_candidates if given.get("prior") == "memory" else cls.candidates

    @property
    def needs(self) -> tuple[str, ...]:
        """The class counts with prior="unigram"; the examples and their indices with prior="memory"."""
        if self.memory is not None:
            return ("examples", "indices")
        return ("class_counts",) if self._asked == "unigram" else ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The class counts until they were provided, and the number of examples."""
        if self.memory is not None:
            return super().missing
        return () if self.prior is not None else self.needs

    def provide(self, *, class_counts: Tensor | None = None, **given: Any) -> None:
        """Take the (C,) counts of the training targets, or the number of examples."""
        if "examples" in given:
            checks.integer("examples", given["examples"])
        super().provide(**given)
        if class_counts is not None:
            self.prior = counts_to_prior(class_counts)

    @property
    def has_linear_form(self) -> bool:
        """Whether its loss can be taken from hidden states; with a memory at a fixed beta = inf, in one process."""
        return self.memory is None or (self._is_fixed and distributed.world_size() == 1)  # processes have other chunks

    @property
    def _is_fixed(self) -> bool:
        """Whether the label of an example is known before its logits are."""
        return not isinstance(self.alpha, Tensor) and not isinstance(self.beta, Tensor) and self.beta == math.inf

    def solver(self, rows: Rows) -> Solve | None:
        """The fused implementation with a memory at beta = inf; None otherwise."""
        if self.memory is None or not self._is_fixed or not checks.plain(rows.raw):
            return None
        return self.memory.solver(rows, self.provided("examples"), float(self.alpha), self.training)

    @property
    @override
    def prediction_memory(self) -> PredictionMemory | None:
        return None if self.memory is None else self.memory.memory

    def as_labo(self, rows: Rows) -> Options | None:
        """Itself; None with a memory, whose priors are made as they are needed."""
        if self.memory is not None:
            return None
        self.require()
        return functional.row_options(rows, self.alpha, self.beta, self._beside(rows.raw), self.value)

    @override
    def losses(self, rows: Rows) -> Tensor:
        if self.memory is None:
            options = self.as_labo(rows)
            assert options is not None
            return functional.labo_losses(rows, options)
        return self.memory.losses(rows, self.provided("examples"), self.alpha, self.beta, self.value, self.training)

    def labels(self, rows: Rows) -> Tensor | None:
        """The optimal label q* of each row, (N, C); None with a memory and no `indices`."""
        self.require()
        logits = inner.working(rows.logits)
        beta = inner.over_rows("beta", self.beta, logits)
        if self.memory is None:
            return inner.labels_of_rows(logits, beta, self._beside(logits))
        if rows.given.get("indices") is None:
            return None
        prior = self.memory.priors(rows, self.provided("examples"))
        return inner.labels_of_rows(logits, beta, prior)

    def _beside(self, logits: Tensor) -> Tensor | None:
        """The prior where the logits are: class counts may come after the module was moved."""
        return None if self.prior is None else self.prior.to(logits.device)

    @override
    def options(self) -> dict[str, Any]:
        prior = self._asked if self._asked or self.prior is None else self.prior.tolist()
        known = {"alpha": self.alpha, "beta": self.beta, "prior": prior, "value": self.value}
        return known if self.memory is None else {**known, **self.memory.options()}
