"""The options of the loss: as users give them to every form of it, their documentation, and as rows need them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from labo import checks, inner, reduction
from labo.reduction import Rows

VALUES = ("inner", "plugin")

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
}

_Documented = TypeVar("_Documented", bound=Callable[..., Any])


def documented(*names: str, **texts: str) -> Callable[[_Documented], _Documented]:
    """A decorator that replaces the line {options} of a docstring by the entries of the arguments `names`.

    Args:
        names: of the arguments; by default all of `ARGUMENTS`.
        texts: documentation that differs from `ARGUMENTS`, by name of the argument.
    """
    entries = [f"{name}: {texts.get(name, ARGUMENTS[name])}" for name in names or ARGUMENTS]

    def decorate(form: _Documented) -> _Documented:
        if form.__doc__ is not None:  # python -OO has no docstrings
            before, _, after = form.__doc__.partition("{options}")
            indent = before[before.rfind("\n") + 1 :]
            indents = {"initial_indent": indent, "subsequent_indent": f"{indent}    "}
            filled = (textwrap.fill(entry, 120, **indents) for entry in entries)
            form.__doc__ = before.rstrip(" ") + "\n".join(filled) + after
        return form

    return decorate


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

    def named(self) -> dict[str, Any]:
        """The options by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def check(self) -> None:
        """Check the options, before any tensor of the batch; `impl` is checked by `labo.kernels.check`."""
        checks.share("alpha", self.alpha)
        checks.positive("beta", self.beta)
        reduction.check_reduction(self.reduction)
        if self.value not in VALUES:
            raise ValueError(f"Expected argument `value` to be one of {', '.join(VALUES)}, but got {self.value!r}.")
        for name, option in (("beta", self.beta), ("prior", self.prior)):
            if self.value == "plugin" and isinstance(option, Tensor) and option.requires_grad:
                raise ValueError(
                    f"Expected argument `{name}` not to require grad with value='plugin', where q* is constant and has "
                    "no gradient; use value='inner'."
                )

    def of_rows(self, rows: Rows) -> Options:
        """The options of the row losses; values that broadcast over the rows become (N,)."""
        return Options(
            alpha=rows.per_row("alpha", self.alpha),
            beta=rows.per_row("beta", inner.clamp_beta(self.beta)),
            prior=rows.distribution("prior", self.prior),
            weight=rows.weight if rows.has_probabilities else None,
            value=self.value,
        )


@dataclass(frozen=True)
class Options:
    """Options of the row losses: `alpha` and `beta` floats, () or (N,); `prior` None, (C,) or (N, C).

    `weight` is the (C,) class weights if they apply inside a row, that is with probability targets; `value` is "inner"
    or "plugin".
    """

    alpha: float | Tensor
    beta: float | Tensor
    prior: Tensor | None = None
    weight: Tensor | None = None
    value: str = "inner"

    def named(self) -> dict[str, Any]:
        """The options as keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

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
