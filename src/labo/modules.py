"""The losses as modules, each a thin face of its function."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from labo import checks, functional, last_layer
from labo import reduction as _reduction
from labo.errors import UserError
from labo.errors import unknown as unknown_name
from labo.kernels.linear import Head
from labo.kernels.options import Options
from labo.regularizers.base import Regularizer, data_losses
from labo.regularizers.labo import LABO

__all__ = ["LABOLoss", "LabelRegularizedLoss", "LinearLABOLoss"]


class _LABOOptions(nn.Module):
    """The options that both losses hold. Tensors among them are buffers: they move with the module."""

    prior: Tensor | None
    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        alpha: float | Tensor = 0.1,
        beta: float | Tensor = 2.0,
        prior: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        value: str = "inner",
        impl: str = "auto",
        **unknown: Any,
    ) -> None:
        super().__init__()
        _refuse(unknown)
        functional.check_options(alpha, beta, prior, reduction, value, impl)
        self.register_buffer("weight", weight)
        if isinstance(prior, nn.Parameter):
            self.prior = prior
        else:
            self.register_buffer("prior", prior)
        self._hold("alpha", alpha)
        self._hold("beta", beta)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.value = value
        self.impl = impl

    def _hold(self, name: str, value: float | Tensor) -> None:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.requires_grad:
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the function."""
        names = ("alpha", "beta", "prior", "weight", "ignore_index", "reduction", "value", "impl")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """alpha, beta and whatever differs from the defaults."""
        return f"alpha={self.alpha}, beta={self.beta}, reduction={self.reduction!r}"


def _refuse(unknown: dict[str, Any]) -> None:
    for name in unknown:
        if name == "label_smoothing":
            raise TypeError(
                "Expected no argument `label_smoothing`: label smoothing of strength e is alpha=e, beta=float('inf')."
            )
        raise TypeError(f"Expected no argument `{name}`.")


class LABOLoss(_LABOOptions):
    """`labo.labo_cross_entropy` as a module; stands where `nn.CrossEntropyLoss` stood.

    Args:
        weight: (C,) class weights, first as in `nn.CrossEntropyLoss`.
        alpha, beta, prior, ignore_index, reduction, value, impl: as in `labo.labo_cross_entropy`. With prior="memory"
            each example's label is learnt in the run: alpha is 0.8 and beta inf unless given, and the loss is called
            with the `indices` of the batch's examples in the training data.
        examples: how many training examples there are, with prior="memory".
        sharpness, decay, epsilon, top: of the memory, as in `labo.regularizers.create("labo", prior="memory")`.

    Raises:
        ValueError, TypeError: an option is out of range; `label_smoothing` is refused with a word on beta.

    Example:
        >>> import torch
        >>> LABOLoss(alpha=0.1, beta=2.0)(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
        >>> criterion = LABOLoss(prior="memory", examples=50)
        >>> criterion(torch.zeros(2, 4), torch.tensor([0, 3]), indices=torch.tensor([17, 42]))
        tensor(1.3863)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        alpha: float | Tensor | None = None,
        beta: float | Tensor | None = None,
        prior: Tensor | str | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        value: str = "inner",
        impl: str = "auto",
        examples: int | None = None,
        sharpness: float | None = None,
        decay: float | None = None,
        epsilon: float | None = None,
        top: int | None = None,
        **unknown: Any,
    ) -> None:
        own = {"sharpness": sharpness, "decay": decay, "epsilon": epsilon, "top": top}
        own = {name: option for name, option in own.items() if option is not None}
        member, given = None, None
        if isinstance(prior, str):
            member = _with_memory(prior, impl, examples, {"alpha": alpha, "beta": beta, "value": value, **own})
        else:
            given = prior
            for name in (*own, *([] if examples is None else ["examples"])):
                raise ValueError(f'Expected argument `{name}` with prior="memory" alone.')
        usual = LABO.defaults({} if member is None else {"prior": "memory"})
        super().__init__(
            weight,
            alpha=usual["alpha"] if alpha is None else alpha,
            beta=usual["beta"] if beta is None else beta,
            prior=given,
            ignore_index=ignore_index,
            reduction=reduction,
            value=value,
            impl=impl,
            **unknown,
        )
        self.member = member

    def forward(self, input: Tensor, target: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """The loss of logits (C), (N, C) or (N, C, d1, …).

        With prior="memory" `indices` are the places in the training data of the targets, and of their shape; in
        evaluation mode (`.eval()`) they may be left out, and then the loss is the plain cross-entropy.
        """
        if self.member is None:
            if indices is not None:
                raise TypeError('Expected no `indices` without prior="memory".')
            return functional.labo_cross_entropy(input, target, **self.options())
        known = {} if indices is None else {"indices": indices}
        rows = rows_with(self.member, input, target, self.weight, self.ignore_index, known, training=self.training)
        return reduced(self.member, rows, self.reduction, checks.result_dtype(input), training=self.training)

    def extra_repr(self) -> str:
        """alpha, beta and whatever differs from the defaults."""
        return super().extra_repr() if self.member is None else f"prior='memory', {super().extra_repr()}"


def _with_memory(prior: str, impl: str, examples: int | None, options: dict[str, Any]) -> LABO:
    """LABO with a memory of so many examples."""
    if prior != "memory":
        raise unknown_name("prior", prior, ("memory",))
    if impl not in ("auto", "reference"):
        raise UserError(f'impl={impl!r} has no prior="memory": take impl="auto".')
    if examples is None:
        raise UserError('Expected argument `examples` with prior="memory": how many training examples there are.')
    member = LABO(prior=prior, **options)
    member.provide(examples=examples)
    return member


class LinearLABOLoss(_LABOOptions):
    """`labo.linear_labo_cross_entropy` as a module; the weight of the last layer comes with each call.

    Args:
        weight, alpha, beta, prior, ignore_index, reduction, value, impl: as in `LABOLoss`.

    Example:
        >>> import torch
        >>> LinearLABOLoss()(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None
    ) -> Tensor:
        """The loss of hidden states (…, D) under the head (V, D)."""
        options = self.options()
        return functional.linear_labo_cross_entropy(input, linear_weight, target, linear_bias=linear_bias, **options)


class LabelRegularizedLoss(nn.Module):
    """The loss of any member of the family, for a plain loop and for a Trainer alike.

    Args:
        regularizer: a member, from `labo.regularizers.create` or a class of your own.
        weight: (C,) class weights, as in `nn.CrossEntropyLoss`.
        ignore_index, reduction: as in `labo.labo_cross_entropy`.

    What the member needs of each batch (`regularizer.needs`) comes with the call, by name; what it needs once, before,
    by `regularizer.provide`. In evaluation mode (`.eval()`) a member that needs something of each batch and does not
    get it reports the plain cross-entropy.

    Raises:
        TypeError: `regularizer` is not one, or a batch has an input that no member needs.
        ValueError: what the member needs from training was not provided; the message says how.

    Example:
        >>> import torch, labo
        >>> criterion = LabelRegularizedLoss(labo.regularizers.create("label_smoothing", epsilon=0.1))
        >>> criterion(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    weight: Tensor | None

    def __init__(
        self,
        regularizer: Regularizer,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if not isinstance(regularizer, Regularizer):
            raise TypeError(
                f"Expected argument `regularizer` to be a Regularizer, but got {type(regularizer).__name__}; make one "
                "with labo.regularizers.create(name, …)."
            )
        _reduction.check_reduction(reduction)
        self.regularizer = regularizer
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor, **batch: Any) -> Tensor:
        """The loss of logits (C), (N, C) or (N, C, d1, …)."""
        rows = self._rows(input, target, batch)
        return reduced(self.regularizer, rows, self.reduction, checks.result_dtype(input), training=self.training)

    def total_and_count(self, input: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Tensor]:
        """The sum over the kept rows and what "mean" divides it by, for means over several batches or processes."""
        rows = self._rows(input, target, batch)
        return _reduction.total_and_count(self._losses(rows), rows)

    def mean_over(self, input: Tensor, target: Tensor, count: Tensor, **batch: Any) -> Tensor:
        """The sum over the kept rows divided by `count`, (): a batch's part in the mean of several; 0 where it is 0.

        Class weights are not in such a count, so there must be none.
        """
        self._refuse_weights()
        rows = self._rows(input, target, batch)
        dtype = checks.result_dtype(input)
        return reduced(self.regularizer, rows, "mean", dtype, training=self.training, count=count)

    def linear(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
        *,
        count: Tensor | None = None,
        **batch: Any,
    ) -> Tensor:
        """The loss of the logits input @ linear_weight.T + linear_bias, which are never held whole.

        Args:
            input: hidden states (…, D).
            linear_weight: (V, D).
            target: class indices (…), or probabilities (…, V).
            linear_bias: (V,) or None.
            count: (), what the sum is divided by, as in `mean_over`; by default `reduction` is taken.
            batch: what the member needs of this batch, by name.

        Raises:
            ValueError: the member's loss has no such form (it looks at the logits themselves), or an argument does not
                fit.

        Example:
            >>> import torch, labo
            >>> criterion = LabelRegularizedLoss(labo.regularizers.create("labo"))
            >>> criterion.linear(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))
            tensor(1.3863)
        """
        if count is not None:
            self._refuse_weights()
        self.regularizer.require(batch if self.training else None)
        head = Head(linear_weight, linear_bias)
        rows = last_layer.rows_of(input, head, target, self.weight, self.ignore_index)
        rows = replace(rows, given=batch) if batch else rows
        reduction = self.reduction if count is None else "mean"
        if not self.training and self.regularizer.missing_from(batch):
            options = Options(0.0, math.inf)  # plain cross-entropy
        else:
            options = self.regularizer.as_labo(rows)
        if options is not None:
            return last_layer.reduced(input, head, rows, options, reduction, count=count)
        solve = self.regularizer.solver(rows) if self.regularizer.has_linear_form else None
        if solve is None:
            raise no_linear_form(self.regularizer)
        return last_layer.solved(solve, input, head, rows, reduction, count=count)

    def _losses(self, rows: _reduction.Rows) -> Tensor:
        remembers = self.regularizer.prediction_memory is not None
        made = _row_losses_uncompiled if remembers and torch.compiler.is_compiling() else row_losses
        return made(self.regularizer, rows, training=self.training)

    def _refuse_weights(self) -> None:
        if self.weight is not None:
            raise ValueError("Expected no class weights with a count of examples.")

    def _rows(self, input: Tensor, target: Tensor, batch: dict[str, Any]) -> _reduction.Rows:
        return rows_with(self.regularizer, input, target, self.weight, self.ignore_index, batch, training=self.training)


def rows_with(
    regularizer: Regularizer,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    batch: dict[str, Any],
    *,
    training: bool,
) -> _reduction.Rows:
    """The rows of a batch with its inputs, which in training must include all that the member needs."""
    regularizer.require(batch if training else None)
    rows = _reduction.as_rows(input, target, weight, ignore_index)
    return replace(rows, given=batch) if batch else rows


def reduced(
    regularizer: Regularizer,
    rows: _reduction.Rows,
    reduction: str,
    dtype: torch.dtype,
    *,
    training: bool,
    count: Tensor | None = None,
) -> Tensor:
    """A member's loss of a batch, by the fastest implementation it has; `count` replaces what "mean" divides by."""
    if torch.compiler.is_compiling() and regularizer.prediction_memory is not None:
        # A graph may read in its backward pass what is written in its forward pass.
        return _reduced_uncompiled(regularizer, rows, reduction, dtype, training=training, count=count)
    if training or not regularizer.missing_from(rows.given):
        options = regularizer.as_labo(rows)
        if options is not None:
            return functional.reduced(rows, options, reduction, dtype, count=count)
        solve = regularizer.solver(rows)
        if solve is not None:
            return functional.solved(solve, rows, reduction, dtype, count=count)
    return _reduction.reduce(row_losses(regularizer, rows, training=training), rows, reduction, dtype, count)


def row_losses(regularizer: Regularizer, rows: _reduction.Rows, *, training: bool) -> Tensor:
    """A member's loss of each row, (N,); in evaluation plain cross-entropy where it lacks something of the batch."""
    if not training and regularizer.missing_from(rows.given):
        return data_losses(rows)[0]
    options = regularizer.as_labo(rows)  # one definition, masked classes included
    return regularizer.losses(rows) if options is None else functional.labo_losses(rows, options)


_reduced_uncompiled: Any = torch.compiler.disable(reduced)
_row_losses_uncompiled: Any = torch.compiler.disable(row_losses)


def no_linear_form(regularizer: Regularizer) -> UserError:
    """The error for a member that has to see the logits whole."""
    return UserError(
        f"Method '{regularizer.name}' with these options has to see the logits whole: take its loss of logits "
        "(linear=False)."
    )
