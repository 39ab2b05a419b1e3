"""The base class of label regularizers: a module that maps rows of logits and targets to one loss per row.

`labo.LabelRegularizedLoss` applies masks, class weights and denominators (reduction.py); a member does not. All state
of a member is in its state_dict, so that a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from labo import checks, functional, inner
from labo.errors import UserError
from labo.kernels import reference
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers.late_buffers import LateBuffers
from labo.regularizers.search_space import Range

if TYPE_CHECKING:
    from labo.kernels.autograd import Solve
    from labo.regularizers.prediction_memory import PredictionMemory

# Inputs that a regularizer may need once, before the first batch, and how a plain training loop provides them.
SETUP_INPUTS: dict[str, str] = {
    "class_counts": "call regularizer.provide(class_counts=counts) with the (C,) counts of the training targets",
    "model": "call regularizer.provide(model=model) with the network being trained",
    "teacher": "call regularizer.provide(teacher=teacher) with a trained network, or the folder of a run",
    "examples": "call regularizer.provide(examples=len(dataset)) with the number of training examples",
    "epochs": "call regularizer.provide(epochs=E) with the number of epochs",
    "posterior": "call regularizer.provide(posterior=labels) with distributions (N, C), as of labo.cross_fit(…)."
    "posterior_labels(targets); labo train and labo compare cross-fit by themselves",
    "kept": "call regularizer.provide(kept=indices) with the indices of the examples to train on; labo train and labo "
    "compare find them by themselves, and train on these alone",
    "decision": "call regularizer.provide(decision=decision) with the decision of labo.learn_labels; labo train and "
    "labo compare decide by themselves",
    "optimizer": "call regularizer.provide(optimizer=optimizer) after adding regularizer.learnt() to it as a group "
    "with weight_decay=0",
}
# Inputs that a regularizer may need with each batch, as keyword arguments of the loss.
BATCH_INPUTS: dict[str, str] = {
    "indices": "pass indices=… to the loss, (N,): the index of each example in the training data",
    "inputs": "pass inputs=… to the loss: what the network was called with, a tensor or its keyword arguments",
    "partners": "pass partners=… to the loss: like inputs, for other examples of the same classes, in the same order "
    "(labo.regularizers.SameClass draws them)",
    "dense_logits": "pass dense_logits=… to the loss, (N, P, C): the logits at P positions of the last feature map",
    "epoch": "pass epoch=… to the loss: the epoch, counted from 0",
    "step": "pass step=… to the loss: the number of optimizer steps taken so far",
    "progress": "pass progress=… to the loss: the fraction of training that is done, from 0 to 1",
}
INPUTS = {**SETUP_INPUTS, **BATCH_INPUTS}


class Regularizer(LateBuffers, ABC):
    """Base class of the family.

    A member sets `name`, `summary`, `paper`, `year` and `candidates`, takes its options as keyword-only arguments,
    stores each as an attribute of the same name, and implements `losses`.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    year: ClassVar[int | None] = None
    candidates: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    # Where `labo tune` searches an option beyond what the candidates span.
    ranges: ClassVar[Mapping[str, Range]] = {}
    # Whether `labo compare` tunes its options; False for a member that chooses them by itself.
    tuned: ClassVar[bool] = True
    # Whether some terms are constant for the gradient, so that autograd's gradient is not that of the value.
    has_constants: ClassVar[bool] = False
    # Whether its gradient is p - (1 - strength) * target - strength * labels.
    pulls_to_labels: bool = True
    # Whether the loss is unchanged when a constant is added to all logits of a row, as the prediction is.
    shift_invariant: ClassVar[bool] = True

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options with their defaults, which may depend on the options `given`."""
        parameters = inspect.signature(cls.__init__).parameters
        return {name: parameters[name].default for name in cls.option_names()}

    @classmethod
    def option_names(cls) -> list[str]:
        """The names of the options: the keyword-only arguments of `__init__`."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]

    @classmethod
    def candidates_with(cls, given: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
        """The option settings that `labo compare` tries, which may depend on the options `given`."""
        return cls.candidates

    @property
    def needs(self) -> tuple[str, ...]:
        """The inputs that training must provide with these options: keys of `SETUP_INPUTS` and `BATCH_INPUTS`."""
        return ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The setup inputs among `needs` that were not provided yet."""
        return tuple(need for need in self.needs if need in SETUP_INPUTS and need not in self._provided)

    def missing_from(self, batch: Mapping[str, Any]) -> tuple[str, ...]:
        """The batch inputs among `needs` that this batch lacks."""
        return tuple(need for need in self.needs if need in BATCH_INPUTS and batch.get(need) is None)

    def provide(self, **inputs: Any) -> None:
        """Provide setup inputs by name; `provided(name)` returns them.

        They are not part of the module: a network provided here is not in its state_dict.

        Raises:
            UserError: an input is not among `needs`.
        """
        for name, value in inputs.items():
            if name not in SETUP_INPUTS or name not in self.needs:
                raise UserError(f"Method '{self.name}' with these options takes no `{name}`.")
            self._provided[name] = value

    def provided(self, name: str) -> Any:
        """The setup input of this name.

        Raises:
            UserError: it was not provided; the message says how to.
        """
        if name not in self._provided:
            raise UserError(f"Method '{self.name}' needs {name}: {SETUP_INPUTS[name]}.")
        return self._provided[name]

    def learnt(self) -> list[nn.Parameter]:
        """The parameters that the training optimizer must update, without weight decay."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @abstractmethod
    def losses(self, rows: Rows) -> Tensor:
        """The loss of each row, (N,), in float32 (float64 for float64 logits); probability targets included."""

    @property
    def has_linear_form(self) -> bool:
        """Whether the loss can be computed from hidden states, without materializing all logits."""
        return type(self).as_labo is not Regularizer.as_labo

    def as_labo(self, rows: Rows) -> Options | None:
        """The options with which LABO's loss equals this member's, for the fused kernels; None if there are none."""
        return None

    def solver(self, rows: Rows) -> Solve | None:
        """A custom fused implementation of the losses of these rows and their gradient; None if there is none.

        It is called with options that hold only the class weights inside rows.
        """
        return None

    @property
    def prediction_memory(self) -> PredictionMemory | None:
        """The running average of the predictions of each example; None if the member keeps none."""
        return None

    def labels(self, rows: Rows) -> Tensor | None:
        """The label distribution (N, C) that this member mixes with the target; None if it has none."""
        return None

    def training_targets(self, labels: Tensor, classes: int) -> Tensor | None:
        """What each training example is trained towards, (N, C), given its label (N,); None if nothing is learnt of it.

        For members that keep a distribution of each example.
        """
        return None

    def require(self, batch: Mapping[str, Any] | None = None) -> None:
        """Check that all setup inputs were provided and, with a batch, that it has all batch inputs.

        Raises:
            UserError: an input is missing; the message says how to provide it.
            TypeError: the batch has an unknown input.
        """
        for need in (*self.missing, *(self.missing_from(batch) if batch is not None else ())):
            raise UserError(f"Method '{self.name}' needs {need}: {INPUTS[need]}.")
        for name in batch or ():
            if name not in BATCH_INPUTS:
                raise TypeError(
                    f"Expected the inputs of a batch to be among {', '.join(BATCH_INPUTS)}, but got `{name}`."
                )

    def __init__(self) -> None:
        super().__init__()
        self._provided = _Provided()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; an option that is a NumPy scalar becomes a Python number."""
        super().__setattr__(name, checks.python_number(value))

    def extra_repr(self) -> str:
        """The options."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())

    def options(self) -> dict[str, Any]:
        """The options and their values, JSON-serializable unless tensors were passed.

        Raises:
            UserError: an option is not stored as an attribute of its name.
        """
        return {name: self._option(name) for name in self.option_names()}

    def _option(self, name: str) -> Any:
        if not hasattr(self, name):
            raise UserError(
                f"Expected {type(self).__name__} to store its option `{name}` as an attribute of that name."
            )
        return getattr(self, name)


class _Provided(dict[str, Any]):
    """The setup inputs by name.

    A deep copy of a member refers to the same network, which training updates, and not to a copy that nothing trains;
    but if the network is copied together with the member, to that copy. Which it is shows only when all is copied.
    """

    _copies: dict[int, Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Provided:
        copied = _Provided(self)
        copied._copies = memo
        return copied

    def __getitem__(self, name: str) -> Any:
        self._resolve()
        return super().__getitem__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        self._resolve()
        return _Provided, (dict(self),)

    def _resolve(self) -> None:
        if self._copies is not None:
            for name, value in self.items():
                self[name] = self._copies.get(id(value), value)
            self._copies = None


class SoftLabelRegularizer(Regularizer):
    """A member with soft labels as targets: (1 - strength) * CE(target, p) + strength * CE(labels, p).

    It implements `labels`, which are constant for the gradient, except in a target of which they are made.

    Args:
        strength: the weight of the labels, in [0, 1]; a float, or a tensor () or (N,).
    """

    def __init__(self, *, strength: float | Tensor) -> None:
        super().__init__()
        checks.share(self.strength_name, strength)
        self.strength = strength

    # The name of the option that sets the strength, for errors and `options`.
    strength_name: ClassVar[str] = "strength"
    # Whether `labels` depend on probability targets, in which the loss then has a gradient through them too.
    labels_from_target: ClassVar[bool] = False

    @override
    def losses(self, rows: Rows) -> Tensor:
        from_target = self.labels_from_target and torch.is_grad_enabled() and rows.target.requires_grad
        with torch.set_grad_enabled(from_target):
            labels = self.labels(replace(rows, raw=rows.raw.detach(), _clean=[]) if from_target else rows)
        if labels is None:
            raise TypeError(f"Expected `labels` of method '{self.name}' to return a distribution, but got None.")
        return functional.soft_label_losses(rows, labels, self.strength_of(rows))

    def strength_of(self, rows: Rows) -> float | Tensor:
        """The weight of the labels for these rows, a float, () or (N,)."""
        return self.strength

    @override
    def _option(self, name: str) -> Any:
        return self.strength if name == self.strength_name else super()._option(name)


def data_losses(rows: Rows) -> tuple[Tensor, Tensor]:
    """The cross-entropy CE(target, p) of each row, (N,), and the factor of an added penalty, (N,) or ().

    The factor is 1, except for probability targets with class weights: there it is the weighted mass of the target.
    """
    weight = rows.weight if rows.has_probabilities else None
    data, mass = reference.data_term(inner.working(rows.logits), rows.target, weight)
    return data, data.new_ones(()) if mass is None else mass


def smoothed_target(rows: Rows, epsilon: float) -> Tensor:
    """(1 - epsilon) * target + epsilon * uniform, (N, C), uniform over the classes that are not masked.

    Each row sums to 1, except for probability targets with class weights: there the weights multiply the target, and
    the row sums to its weighted mass.
    """
    logits = inner.working(rows.logits)
    mass = reference.target_mass(logits, rows.target, rows.weight if rows.has_probabilities else None)
    if epsilon == 0:
        return mass
    unmasked = logits != -math.inf
    uniform = unmasked.to(logits.dtype) / unmasked.sum(-1, keepdim=True).clamp(min=1)
    return (1 - epsilon) * mass + epsilon * mass.sum(-1, keepdim=True) * uniform


def entropy(log_p: Tensor) -> Tensor:
    """H(p) = -sum p log p of each row, (N,), from log p; masked classes contribute 0."""
    return -(log_p.exp() * torch.where(log_p == -math.inf, 0.0, log_p)).sum(-1)


def divergence(labels: Tensor, log_p: Tensor) -> Tensor:
    """KL(labels || p) of each row, (N,), from log p and constant labels."""
    return reference.cross_entropy(labels, log_p) + torch.special.xlogy(labels, labels).sum(-1)


def counts_to_prior(counts: Tensor, temperature: float = 1.0) -> Tensor:
    """The float64 distribution proportional to counts ** (1 / temperature), from class counts (C,)."""
    checks.positive("temperature", temperature)
    counts = checks.as_tensor(counts).double()
    if counts.dim() != 1 or not bool((counts >= 0).all()) or not bool(counts.sum() > 0):
        raise ValueError("Expected argument `class_counts` to be (C,) counts, none negative and not all 0.")
    powered = torch.where(counts > 0, counts / counts.max(), 0.0) ** (1 / temperature)
    powered = torch.where(counts > 0, powered, 0.0)
    return powered / powered.sum()
