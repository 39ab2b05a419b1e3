"""The options of the loss: as users give them to every form of it, their documentation, and as rows need them."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor

from labo import checks, inner, reduction
from labo.errors import UserError
from labo.reduction import Rows

VALUES = ("inner", "plugin")

# The arguments that come with a batch, also of the modules.
OF_BATCH = ("row_weight", "denominator")
# What the arguments that all forms of the loss share mean; `documented` puts it into their docstrings.
ARGUMENTS = {
    "alpha": "strength in [0, 1]; float, or a tensor that broadcasts over the rows (the shape of the indices).",
    "beta": "pull towards the prior in (0, inf], like `alpha`. inf is label smoothing towards the prior; 1 (uniform "
    "prior) leaves (1 - alpha) * CE; below 1 sharpens.",
    "prior": "None for uniform, or probabilities (C,) or (…, C), classes last.",
    "weight": "(C,) class weights. With indices, weight[target] multiplies the example's whole loss.",
    "ignore_index": "targets of this value are ignored; not used with probabilities.",
    "reduction": '"mean" (over the kept examples\' weights; over all rows for probabilities), "sum" or "none".',
    "value": '"inner" reports V; "plugin" reports CE(q*, p) with q* constant: the same gradient in the logits.',
    "impl": '"auto", or one of `labo.implementations()`.',
    "z_loss": "strength of z_loss * lse(logits)², added to the loss of each row; at least 0 (PaLM: 1e-4).",
    "softcap": "None, or c above 0: the loss is that of the logits c * tanh(logits / c), computed in working precision "
    "(float32, or float64 for float64 logits); masked classes stay masked (Gemma 2: 30).",
    "row_weight": "(N,), of the shape of the indices, floating point: multiplies the loss of each row, and its class "
    'weight. "mean" divides by the sum of the products, unless there is a `denominator`; else the weights may be '
    "negative. Rows of weight 0 are not read.",
    "denominator": 'what "mean" divides by, a number or a scalar tensor of at least 0, such as the number of tokens '
    "in a batch over all processes; a loss divided by 0 is 0.",
    "return_statistics": "return `labo.LossStatistics`: the loss, and what the same sweep over the logits knows of "
    "each row.",
    "differentiable": "let `nll` and `logsumexp` of the statistics have a gradient, too.",
}

_Documented = TypeVar("_Documented", bound=Callable[..., Any])


def documented(**texts: str) -> Callable[[_Documented], _Documented]:
    """A decorator that replaces the line {options} of a docstring by the entries of those of `ARGUMENTS` it has.

    Args:
        texts: documentation that differs from `ARGUMENTS`, by name of the argument.
    """

    def decorate(form: _Documented) -> _Documented:
        if form.__doc__ is not None:  # python -OO has no docstrings
            names = (name for name in inspect.signature(form).parameters if name in ARGUMENTS)
            entries = (f"{name}: {texts.get(name, ARGUMENTS[name])}" for name in names)
            before, _, after = form.__doc__.partition("{options}")
            indent = before[before.rfind("\n") + 1 :]
            wrapper = textwrap.TextWrapper(120, initial_indent=indent, subsequent_indent=f"{indent}    ")
            form.__doc__ = before.rstrip(" ") + "\n".join(map(wrapper.fill, entries)) + after
        return form

    return decorate


class SharedArguments(TypedDict, total=False):
    """The types of the keyword arguments that all forms of the loss share, for type checkers."""

    alpha: float | Tensor
    beta: float | Tensor
    prior: Tensor | None
    weight: Tensor | None
    ignore_index: int
    reduction: str
    value: str
    z_loss: float
    softcap: float | None
    row_weight: Tensor | None
    denominator: float | Tensor | None
    differentiable: bool


class LossArguments(SharedArguments, total=False):
    """The same, of forms that have implementations to choose from."""

    impl: str


@dataclass(frozen=True)
class LossOptions:
    """The options that the forms of the loss share, as users give them; `ARGUMENTS` says what each is."""

    alpha: float | Tensor = 0.1
    beta: float | Tensor = 2.0
    prior: Tensor | None = None
    weight: Tensor | None = None
    ignore_index: int = -100
    reduction: str = "mean"
    value: str = "inner"
    impl: str = "auto"
    z_loss: float = 0.0
    softcap: float | None = None
    row_weight: Tensor | None = None
    denominator: float | Tensor | None = None
    return_statistics: bool = False
    differentiable: bool = False

    def named(self) -> dict[str, Any]:
        """The options by name."""
        return dict(vars(self))

    def check(self) -> None:
        """Check the options, before any tensor of the batch; `impl` is checked by `labo.kernels.check`."""
        checks.share("alpha", self.alpha)
        checks.positive("beta", self.beta)
        reduction.check_reduction(self.reduction)
        if self.value not in VALUES:
            raise ValueError(f"Expected argument `value` to be one of {', '.join(VALUES)}, but got {self.value!r}.")
        checks.number("z_loss", self.z_loss, "[0, inf)")
        if self.softcap is not None:
            checks.number("softcap", self.softcap, "(0, inf)")
        self._check_batch_options()
        for name, option in (("beta", self.beta), ("prior", self.prior)):
            if self.value == "plugin" and isinstance(option, Tensor) and option.requires_grad:
                raise ValueError(
                    f"Expected argument `{name}` not to require grad with value='plugin', where q* is constant and has "
                    "no gradient; use value='inner'."
                )

    def _check_batch_options(self) -> None:
        if self.denominator is not None:
            checks.denominator("denominator", self.denominator)
            if self.reduction != "mean":
                raise UserError(
                    f"Expected argument `denominator` only with reduction='mean', but got reduction={self.reduction!r}."
                )
        if self.differentiable and not self.return_statistics:
            raise UserError("Expected argument `differentiable` only with return_statistics=True.")

    def count(self, logits: Tensor) -> Tensor | None:
        """The denominator as a tensor on the device of the logits; None if there is none."""
        if self.denominator is None or isinstance(self.denominator, Tensor):
            return self.denominator if self.denominator is None else self.denominator.reshape(())
        return logits.new_full((), self.denominator, dtype=torch.promote_types(logits.dtype, torch.float32))

    @property
    def weights_signed(self) -> bool:
        """Whether row weights may be negative: their sum is no denominator."""
        return self.reduction != "mean" or self.denominator is not None

    def of_rows(self, rows: Rows) -> Options:
        """The options of the row losses; values that broadcast over the rows become (N,)."""
        return Options(
            alpha=rows.per_row("alpha", self.alpha),
            beta=rows.per_row("beta", inner.clamp_beta(self.beta)),
            prior=rows.distribution("prior", self.prior),
            weight=rows.weight if rows.has_probabilities else None,
            value=self.value,
            z_loss=float(self.z_loss),
            softcap=None if self.softcap is None else float(self.softcap),
        )


@dataclass(frozen=True)
class Options:
    """Options of the row losses: `alpha` and `beta` floats, () or (N,); `prior` None, (C,) or (N, C).

    `weight` is the (C,) class weights if they apply inside a row, that is with probability targets; `value` is "inner"
    or "plugin"; `z_loss` and `softcap` are as in `ARGUMENTS`.
    """

    alpha: float | Tensor
    beta: float | Tensor
    prior: Tensor | None = None
    weight: Tensor | None = None
    value: str = "inner"
    z_loss: float = 0.0
    softcap: float | None = None

    def named(self) -> dict[str, Any]:
        """The options as keyword arguments."""
        return dict(vars(self))

    def normalised(self) -> Options:
        """Options whose prior sums to 1 in float64: in lower precision, beta would amplify the error of the sum."""
        if self.prior is None:
            return self
        prior = self.prior.detach().double()
        return replace(self, prior=prior / prior.sum(-1, keepdim=True))

    def of(self, at: slice | Tensor) -> Options:
        """The options of the rows `at`, a slice or indices."""
        alpha, beta = (
            value[at] if isinstance(value, Tensor) and value.dim() else value for value in (self.alpha, self.beta)
        )
        prior = self.prior[at] if self.prior is not None and self.prior.dim() == 2 else self.prior
        return replace(self, alpha=alpha, beta=beta, prior=prior)
