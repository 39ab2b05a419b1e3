"""LABO: labels that solve the inner problem of a bi-level optimization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override

from labo import checks, distributed, functional, inner, sparse
from labo.errors import UserError, unknown
from labo.kernels import reference
from labo.kernels.autograd import Solve
from labo.kernels.options import LossOptions, Options
from labo.reduction import Rows
from labo.regularizers.base import Regularizer, counts_to_prior, data_losses
from labo.regularizers.memory_prior import MemoryPrior
from labo.regularizers.posterior_prior import PosteriorPrior
from labo.regularizers.prediction_memory import PredictionMemory
from labo.regularizers.search_space import Range

PRIORS = ("uniform", "unigram", "memory", "channel")
# Options that only the priors of single examples have.
_EXAMPLE_OPTIONS = {"memory": ("sharpness", "decay", "epsilon", "top", "aligned"), "channel": ("epsilon", "top")}


class LABO(Regularizer):
    """(1 - alpha) * CE(target, p) + alpha * V(logits), with the optimal label q* = softmax(logits / beta + log prior).

    With prior="memory" each example has its own prior r = (w * m) ** sharpness, normalised. m is a running average of
    the predictions for the example, m <- decay * m + (1 - decay) * p at each visit, starting from the uniform
    distribution. w, a number for each class, gives the mean of m the class shares of the labels, so that no class is
    lost (distribution alignment); it is 1 in the first epoch, and then computed at the start of each. So the label of
    each example is learnt during training.

    With prior="channel" each example has the posterior q of its true class as label: networks that did not train on it
    and a noise channel say how likely each class is, given the label as written (`labo.outer.posterior_labels`). The
    target is (1 - epsilon) * ((1 - alpha) * label + alpha * q) + epsilon / C.

    Args:
        alpha: strength in [0, 1]; a float or a 0-d tensor. 0.1 by default, 0.8 with a memory, 1 with a channel (a float
            there).
        beta: pull towards the prior in (0, inf]; inf is label smoothing towards the prior. A float or a 0-d tensor. 2
            by default, inf with a memory, always inf with a channel.
        prior: None or "uniform"; "unigram" for the frequencies of the training targets, from
            `provide(class_counts=…)`; "memory"; "channel"; or (C,) probabilities.
        value: "inner" or "plugin", as in `labo.labo_cross_entropy`; the same at beta = inf.
        sharpness: with a memory, the exponent of m, above 0; by default 2 with up to 50 classes and 1.5 with more. 1
            suits correct labels, 2 noisy ones.
        decay: with a memory, the decay of the average, in [0, 1); 0.8 by default, which averages about five visits.
        epsilon: with a memory, label smoothing of the target, in [0, 1]; 0.5 by default. With a channel, of the
            mixture; 0.3 by default.
        labels: "softmax", or "sparsemax" or "entmax" for labels that are 0 for classes far below the best one: q* of
            the inner problem with a Tsallis divergence in place of KL (docs/math.md#sparse-labels), which is
            sparsemax(logits / beta + prior) or entmax(logits / beta + 2 * prior ** 0.5). They need the package entmax
            and the full logits. Not with a channel, whose labels are fixed.
        top: with a memory or a channel, how many entries of m or q to keep; by default all of up to 256 classes, else
            the 16 largest and the mass of the rest. They are in half precision.
        aligned: with a memory, whether m is aligned with the class shares of the labels; by default wherever all
            classes are kept, targets are class indices, and no class has more than twice the labels of another: wrong
            labels change the shares of unbalanced classes.

    Needs: the (C,) counts of the training targets, by `provide(class_counts=…)`, with prior="unigram"; with
        prior="memory" the number of training examples, by `provide(examples=…)`, and with each batch the indices of its
        examples in the training data, `indices`. If targets have more than one dimension, each target counts as an
        example, and `indices` has the shape of the targets. With prior="channel" the posterior labels, by
        `provide(posterior=…)`, and the indices; `labo train` and `labo compare` cross-fit for it, which costs two to
        three more trainings.

    When: wrong classes differ, and the plausible ones of an example should get more of the mass. With a uniform prior
        nothing is stored. At beta = 1 it only scales the loss by 1 - alpha; below 1 it sharpens. A small alpha with a
        small beta has almost no effect. Early predictions are noise, and so are early labels. A memory helps where
        networks memorize labels, above all wrong ones. It hurts where a network is still learning slowly at the end
        of training (a convnet with augmentation and few epochs): early mistakes become its labels. See docs/memory.md.

    Raises:
        ValueError, TypeError: an option is out of range, or the prior does not fit the classes.

    Source: Lu et al., *LABO*, Findings of ACL 2023 (arXiv 2305.04971); algebra in docs/math.md. The memory is this
        project's addition; distribution alignment is of Berthelot et al., *ReMixMatch*, ICLR 2020.
    """

    name = "labo"
    summary = "targets mixed with the optimal label between the model's prediction and a prior"
    paper = "Lu et al., Findings of ACL 2023"
    year = 2023
    candidates = (
        {"alpha": 0.1, "beta": 2.0},
        {"alpha": 0.4, "beta": 4.0},
        {"alpha": 0.8, "beta": 4.0},
        {"alpha": 0.2, "beta": 2.0},
        {"alpha": 0.6, "beta": 4.0},
    )
    ranges: ClassVar[Mapping[str, Range]] = {"beta": Range(1, 100, log=True)}
    memory_candidates: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"alpha": 0.8, "sharpness": 2.0, "epsilon": 0.5, "decay": 0.8},
        {"alpha": 0.3, "sharpness": 1.0, "epsilon": 0.0, "decay": 0.9},
        {"alpha": 0.8, "sharpness": 1.5, "epsilon": 0.5, "decay": 0.9},
        {
            "alpha": 0.0,
            "sharpness": 1.0,
            "epsilon": 0.1,
            "decay": 0.9,
        },  # label smoothing, without the memory
        {"alpha": 0.85, "sharpness": 2.0, "epsilon": 0.8, "decay": 0.8},
    )
    channel_candidates: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"alpha": 1.0, "epsilon": 0.3},
        {"alpha": 0.5, "epsilon": 0.1},
        {"alpha": 1.0, "epsilon": 0.1},
        {"alpha": 1.0, "epsilon": 0.5},
        {"alpha": 0.5, "epsilon": 0.3},
    )
    prior: Tensor | None
    memory: MemoryPrior | None
    posterior: PosteriorPrior | None

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
        aligned: bool | None = None,
        labels: str | None = None,
    ) -> None:
        super().__init__()
        # None for the softmax.
        self.sparse = None if labels in (None, "softmax") else sparse.check(labels, prior)
        if isinstance(prior, str) and prior not in PRIORS:
            raise unknown("prior", prior, PRIORS)
        defaults = self.defaults({"prior": prior if isinstance(prior, str) else None})
        self.alpha: float | Tensor = defaults["alpha"] if alpha is None else alpha
        self.beta: float | Tensor = defaults["beta"] if beta is None else beta
        distribution = None if prior is None or isinstance(prior, str) else checks.as_tensor(prior)
        if distribution is not None and not distribution.dtype.is_floating_point:
            distribution = distribution.double()
        functional.check_options(LossOptions(self.alpha, self.beta, distribution, value=value))
        self.value = value
        self._prior_name = prior if isinstance(prior, str) else None
        if isinstance(distribution, nn.Parameter):
            self.prior = distribution
        else:
            self.register_buffer("prior", distribution)
        given = {"sharpness": sharpness, "decay": decay, "epsilon": epsilon, "top": top, "aligned": aligned}
        given = {name: option for name, option in given.items() if option is not None}
        own = _EXAMPLE_OPTIONS.get(self._prior_name or "", ())
        for name in given:
            if name not in own:
                raise UserError(f"Option `{name}` requires {_priors_with(name)}, but the prior is {prior!r}.")
        options = {name: defaults[name] for name in own} | given
        self.memory = MemoryPrior(self.name, **options) if prior == "memory" else None
        self.posterior = PosteriorPrior(self.name, **options) if prior == "channel" else None
        if self.posterior is not None and not self._is_fixed:
            raise UserError('Options `alpha` and `beta` must be a number and inf with prior="channel".')
        if own:
            self.pulls_to_labels = not options["epsilon"]  # with epsilon it also pulls to a smoothed target

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options with their defaults; those of single examples' priors only if `given` has such a prior."""
        prior = given.get("prior")
        labels = {} if given.get("labels") is None else {"labels": given["labels"]}
        if prior == "memory":
            own = {"alpha": 0.8, "sharpness": None, "decay": 0.8, "epsilon": 0.5, "top": None, "aligned": None}
        elif prior == "channel":
            own = {"alpha": 1.0, "epsilon": 0.3, "top": None}
        else:
            return {"alpha": 0.1, "beta": 2.0, "prior": None, "value": "inner", **labels}
        return {"alpha": own["alpha"], "beta": math.inf, "prior": prior, "value": "inner", **own, **labels}

    @classmethod
    def candidates_with(cls, given: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
        """The option settings that `labo compare` tries; with prior="memory" strong and mild ones."""
        by_prior = {"memory": cls.memory_candidates, "channel": cls.channel_candidates}
        prior = given.get("prior")
        return by_prior.get(prior, cls.candidates) if isinstance(prior, str) else cls.candidates

    @property
    def needs(self) -> tuple[str, ...]:
        """What the prior needs: class counts, the number of examples or their posteriors, and indices."""
        if self.memory is not None:
            return ("examples", "indices")
        if self.posterior is not None:
            return ("posterior", "indices")
        return ("class_counts",) if self._prior_name == "unigram" else ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The class counts, the number of examples or the posteriors, until they were provided."""
        if self.memory is not None or self.posterior is not None:
            return super().missing
        return () if self.prior is not None else self.needs

    def provide(self, *, class_counts: Tensor | None = None, **inputs: Any) -> None:
        """Take the (C,) counts of the training targets, the number of examples, or posterior labels (N, C)."""
        if "examples" in inputs:
            checks.integer("examples", inputs["examples"])
        super().provide(**inputs)
        if "posterior" in inputs and self.posterior is not None:
            self.posterior.fill(inputs["posterior"])
        if class_counts is not None:
            self.prior = counts_to_prior(class_counts)

    @property
    def has_linear_form(self) -> bool:
        """Whether the loss can be computed from hidden states; with a memory, at a fixed beta = inf in one process."""
        if self.sparse is not None:
            return False
        # Chunks differ between processes.
        return self.memory is None or (self._is_fixed and distributed.world_size() == 1)

    @property
    def _is_fixed(self) -> bool:
        """Whether the label of an example does not depend on its logits."""
        return not isinstance(self.alpha, Tensor) and not isinstance(self.beta, Tensor) and self.beta == math.inf

    def solver(self, rows: Rows) -> Solve | None:
        """The fused implementation with a memory at beta = inf; None otherwise."""
        if self.memory is None or self.sparse or not self._is_fixed or not checks.plain(rows.raw):
            return None
        return self.memory.solver(rows, self.provided("examples"), float(self.alpha), self.training)

    @property
    @override
    def prediction_memory(self) -> PredictionMemory | None:
        return None if self.memory is None else self.memory.memory

    def as_labo(self, rows: Rows) -> Options | None:
        """Its own options; None for sparse labels, and with a memory, which computes its priors batch by batch."""
        if self.memory is not None:
            return None
        self.require()
        if self.sparse is not None:
            return None
        if self.posterior is not None:
            return self.posterior.as_labo(rows, float(self.alpha), training=self.training)
        return functional.row_options(rows, self.alpha, self.beta, self._prior_on(rows.raw), self.value)

    @override
    def losses(self, rows: Rows) -> Tensor:
        if self.memory is not None:
            own = (self.alpha, self.beta, self.value, self.training)
            return self.memory.losses(rows, self.provided("examples"), *own, labels=self.sparse)
        if self.sparse is not None:
            return self._sparse_losses(rows)
        options = self.as_labo(rows)
        assert options is not None
        return functional.labo_losses(rows, options)

    def _sparse_losses(self, rows: Rows) -> Tensor:
        logits = inner.working(rows.logits)
        beta = inner.over_rows("beta", self.beta, logits)
        data, factor = data_losses(rows)
        assert self.sparse is not None
        plugin = self.value == "plugin"
        term = sparse.value_of_rows(logits, beta, self._prior_on(logits), self.sparse, plugin=plugin)
        return reference.mix(data, factor * term, rows.per_row("alpha", self.alpha))

    def labels(self, rows: Rows) -> Tensor | None:
        """The optimal label q* of each row, (N, C); None with a memory and no `indices`."""
        self.require()
        if self.posterior is not None:
            return None if rows.given.get("indices") is None else self.posterior.labels(rows)
        logits = inner.working(rows.logits)
        beta = inner.over_rows("beta", self.beta, logits)
        if self.memory is not None and rows.given.get("indices") is None:
            return None
        memory = self.memory
        prior = self._prior_on(logits) if memory is None else memory.priors(rows, self.provided("examples"))
        if self.sparse is not None:
            return sparse.labels_of_rows(logits, beta, prior, self.sparse)
        return inner.labels_of_rows(logits, beta, prior)

    @override
    def training_targets(self, labels: Tensor, classes: int) -> Tensor | None:
        own = self.memory or self.posterior
        if own is None or not self._is_fixed:
            return None
        stored = own.memory if isinstance(own, MemoryPrior) else own.stored
        if stored.values is None:
            return None
        q, alpha = stored.all_distributions(len(labels), classes).cpu().float(), float(self.alpha)
        label = nn.functional.one_hot(labels.cpu(), classes).to(q.dtype)
        if isinstance(own, MemoryPrior):
            smoothed = (1 - own.epsilon) * label + own.epsilon / classes
            return (1 - alpha) * smoothed + alpha * own.sharpened(q, own.memory.alignment)
        return (1 - own.epsilon) * ((1 - alpha) * label + alpha * q) + own.epsilon / classes

    def _prior_on(self, logits: Tensor) -> Tensor | None:
        """The prior on the device of the logits: class counts may be provided after the module was moved."""
        return None if self.prior is None else self.prior.to(logits.device)

    @override
    def options(self) -> dict[str, Any]:
        prior = self._prior_name if self._prior_name or self.prior is None else self.prior.tolist()
        options = {"alpha": self.alpha, "beta": self.beta, "prior": prior, "value": self.value}
        if self.sparse is not None:
            options["labels"] = self.sparse
        own = self.memory or self.posterior
        return options if own is None else {**options, **own.options()}


def _priors_with(option: str) -> str:
    """The priors that have an option, as a user gives them."""
    return " or ".join(f'prior="{prior}"' for prior, options in _EXAMPLE_OPTIONS.items() if option in options)
