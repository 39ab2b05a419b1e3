"""The options of the loss, per row."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from labo import checks, reduction

VALUES = ("inner", "plugin")


def check(alpha: Any, beta: Any, prior: Tensor | None, reduction_name: str, value: str) -> None:
    """Check the options that all forms of the loss have, before any tensor of the batch."""
    checks.share("alpha", alpha)
    checks.positive("beta", beta)
    reduction.check_reduction(reduction_name)
    if value not in VALUES:
        raise ValueError(f"Expected argument `value` to be one of {', '.join(VALUES)}, but got {value!r}.")
    for name, option in (("beta", beta), ("prior", prior)):
        if value == "plugin" and isinstance(option, Tensor) and option.requires_grad:
            raise ValueError(
                f"Expected argument `{name}` not to require grad with value='plugin', where q* is constant and has "
                "no gradient; use value='inner'."
            )


@dataclass(frozen=True)
class Options:
    """Options of the loss: `alpha` and `beta` floats, () or (N,); `prior` None, (C,) or (N, C).

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
        return Options(alpha, beta, prior, self.weight, self.value)
