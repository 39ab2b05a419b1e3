"""The loss of any regularizer as a module, and how it takes the fastest implementation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from labo import checks, functional, last_layer
from labo import reduction as _reduction
from labo.errors import UserError
from labo.kernels.linear import DEFAULT_CHUNKS, Head
from labo.kernels.options import Options
from labo.kernels.statistics import LossStatistics, Wanted
from labo.regularizers.base import Regularizer, data_losses


class LabelRegularizedLoss(nn.Module):
    """The loss of any regularizer, for a plain training loop or a Trainer.

    Args:
        regularizer: a member, from `labo.regularizers.create` or a class of your own.
        weight: (C,) class weights, as in `nn.CrossEntropyLoss`.
        ignore_index, reduction: as in `labo.labo_cross_entropy`.

    Inputs that the regularizer needs with each batch (see `regularizer.needs`) are keyword arguments of the call; setup
    inputs are passed to `regularizer.provide` before. In evaluation mode (`.eval()`), the loss is the plain
    cross-entropy if a batch input is missing. Every call also takes `row_weight`, as `labo.labo_cross_entropy` does.

    Raises:
        TypeError: `regularizer` is not a Regularizer, or a batch has an unknown input.
        ValueError: an input that the regularizer needs is missing; the message says how to provide it.

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
                f"Expected argument `regularizer` to be a Regularizer, but got {type(regularizer).__name__}; create "
                "one with labo.regularizers.create(name, …)."
            )
        _reduction.check_reduction(reduction)
        checks.class_weight("weight", weight)
        self.regularizer = regularizer
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor, *, row_weight: Tensor | None = None, **batch: Any) -> Tensor:
        """The loss of logits (C), (N, C) or (N, C, d1, …)."""
        rows = self._rows(input, target, row_weight, batch)
        return reduced(self.regularizer, rows, self.reduction, checks.result_dtype(input), training=self.training)

    def total_and_count(
        self, input: Tensor, target: Tensor, *, row_weight: Tensor | None = None, **batch: Any
    ) -> tuple[Tensor, Tensor]:
        """The sum over the kept rows and the denominator of "mean", for means over several batches or processes."""
        rows = self._rows(input, target, row_weight, batch)
        return _reduction.total_and_count(self._losses(rows), rows)

    def mean_over(
        self, input: Tensor, target: Tensor, count: Tensor, *, row_weight: Tensor | None = None, **batch: Any
    ) -> Tensor:
        """The sum over the kept rows divided by `count` (): a batch's part of a mean over several; 0 if it is 0.

        Class weights are not supported, because `count` does not include them.
        """
        self._reject_class_weights()
        rows = self._rows(input, target, row_weight, batch, signed=True)
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
        row_weight: Tensor | None = None,
        **batch: Any,
    ) -> Tensor:
        """The loss of the logits input @ linear_weight.T + linear_bias, which are never materialized.

        Args:
            input: hidden states (…, D).
            linear_weight: (V, D).
            target: class indices (…), or probabilities (…, V).
            linear_bias: (V,) or None.
            count: (), the denominator, as in `mean_over`; by default `reduction` applies.
            row_weight: (…), as in `labo.labo_cross_entropy`.
            batch: the batch inputs that the regularizer needs, by name.

        Raises:
            ValueError: the loss of this regularizer needs the full logits, it keeps a memory of predictions and rows
                have weights, or an argument does not fit.

        Example:
            >>> import torch, labo
            >>> criterion = LabelRegularizedLoss(labo.regularizers.create("labo"))
            >>> criterion.linear(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))
            tensor(1.3863)
        """
        head = Head(linear_weight, linear_bias)
        rows = self._hidden_rows(input, head, target, count, row_weight, batch)
        return self._of_hidden_rows(input, head, rows, self._as_labo(rows), count)

    def statistics(
        self,
        input: Tensor,
        target: Tensor,
        head: Head | None = None,
        *,
        count: Tensor | None = None,
        row_weight: Tensor | None = None,
        **batch: Any,
    ) -> LossStatistics:
        """The loss of logits, or of hidden states under a head, and what it says of each row.

        One sweep over the logits gives both. Methods whose loss is not LABO's with other options need a second one, and
        `label_entropy` is NaN for them.

        Args:
            input, target: logits and targets as in a call; with a head as in `linear`.
            head: the last layer, or None.
            count, row_weight, batch: as in `linear`.

        Raises:
            ValueError: as in `linear`.
        """
        if head is None:
            if count is not None:
                self._reject_class_weights()
            rows = self._rows(input, target, row_weight, batch, signed=count is not None)
        else:
            rows = self._hidden_rows(input, head, target, count, row_weight, batch)
        options, reduction = self._as_labo(rows), self.reduction if count is None else "mean"
        if options is not None:
            return _sweep(input, head, rows, options, reduction, count)
        if head is None:
            dtype = checks.result_dtype(input)
            loss = reduced(self.regularizer, rows, reduction, dtype, training=self.training, count=count)
        else:
            loss = self._of_hidden_rows(input, head, rows, None, count)
        with torch.no_grad():
            plain = _sweep(input, head, rows, functional.row_options(rows, 0.0, math.inf, None), "none", None)
        return plain._replace(
            loss=loss,
            label_entropy=torch.full_like(plain.entropy, math.nan),
            z_loss=torch.zeros_like(loss, requires_grad=False),
        )

    def _hidden_rows(
        self,
        input: Tensor,
        head: Head,
        target: Tensor,
        count: Tensor | None,
        row_weight: Tensor | None,
        batch: dict[str, Any],
    ) -> _reduction.Rows:
        """The rows of hidden states under a head, as `_rows` gives those of logits."""
        if count is not None:
            self._reject_class_weights()
        self.regularizer.require(batch if self.training else None)
        if row_weight is not None and self.training and self.regularizer.prediction_memory is not None:
            raise UserError(
                f"Method '{self.regularizer.name}' keeps a memory of predictions, and hidden states do not give those "
                "of rows of weight 0: use linear=False, or leave out the weights of rows."
            )
        weights = self._row_weights(row_weight, signed=count is not None)
        rows = last_layer.rows_of(input, head, target, self.weight, self.ignore_index, **weights)
        return replace(rows, given=batch) if batch else rows

    def _as_labo(self, rows: _reduction.Rows) -> Options | None:
        """The options with which LABO's loss is this one; plain cross-entropy in evaluation if an input is missing."""
        if not self.training and self.regularizer.missing_from(rows.given):
            return Options(0.0, math.inf)
        return self.regularizer.as_labo(rows)

    def _of_hidden_rows(
        self, input: Tensor, head: Head, rows: _reduction.Rows, options: Options | None, count: Tensor | None
    ) -> Tensor:
        reduction = self.reduction if count is None else "mean"
        if options is not None:
            return last_layer.reduced(input, head, rows, options, reduction, count=count)
        solve = self.regularizer.solver(rows) if self.regularizer.has_linear_form else None
        if solve is None:
            raise no_linear_form(self.regularizer)
        return last_layer.reduced_by(solve, input, head, rows, reduction, count=count)

    def _losses(self, rows: _reduction.Rows) -> Tensor:
        has_memory = self.regularizer.prediction_memory is not None
        function = _row_losses_uncompiled if has_memory and torch.compiler.is_compiling() else row_losses
        return function(self.regularizer, rows, training=self.training)

    def _reject_class_weights(self) -> None:
        if self.weight is not None:
            raise ValueError("Expected no class weights with a count of examples.")

    def _rows(
        self, input: Tensor, target: Tensor, row_weight: Tensor | None, batch: dict[str, Any], *, signed: bool = False
    ) -> _reduction.Rows:
        """The rows of a batch with its inputs, which in training must include all that the regularizer needs."""
        self.regularizer.require(batch if self.training else None)
        weights = self._row_weights(row_weight, signed=signed)
        rows = _reduction.as_rows(input, target, self.weight, self.ignore_index, **weights)
        return replace(rows, given=batch) if batch else rows

    def _row_weights(self, row_weight: Tensor | None, *, signed: bool) -> dict[str, Any]:
        """The weights of rows as `as_rows` takes them; they may be negative if their sum is no denominator."""
        return {"row_weight": row_weight, "signed": signed or self.reduction != "mean"}


def _sweep(
    input: Tensor, head: Head | None, rows: _reduction.Rows, options: Options, reduction: str, count: Tensor | None
) -> LossStatistics:
    """LABO's loss and statistics of rows, of logits or of hidden states under a head."""
    wanted: dict[str, Any] = {"impl": "auto", "count": count, "wanted": Wanted(statistics=True)}
    if head is None:
        found = functional.solved(rows, options, reduction, checks.result_dtype(input), **wanted)
    else:
        found = last_layer.solved(input, head, rows, options, reduction, chunks=DEFAULT_CHUNKS, **wanted)
    assert isinstance(found, LossStatistics)
    return found


def reduced(
    regularizer: Regularizer,
    rows: _reduction.Rows,
    reduction: str,
    dtype: torch.dtype,
    *,
    training: bool,
    count: Tensor | None = None,
) -> Tensor:
    """The reduced loss of a batch, by the fastest implementation; `count` replaces the denominator of "mean"."""
    if torch.compiler.is_compiling() and regularizer.prediction_memory is not None:
        # A compiled graph might read the memory in its backward pass after the forward pass has updated it.
        return _reduced_uncompiled(regularizer, rows, reduction, dtype, training=training, count=count)
    if training or not regularizer.missing_from(rows.given):
        options = regularizer.as_labo(rows)
        if options is not None:
            return functional.reduced(rows, options, reduction, dtype, count=count)
        solve = regularizer.solver(rows)
        loss = None if solve is None else functional.reduced_by(solve, rows, reduction, dtype, count=count)
        if loss is not None:
            return loss
    return _reduction.reduce(row_losses(regularizer, rows, training=training), rows, reduction, dtype, count)


def row_losses(regularizer: Regularizer, rows: _reduction.Rows, *, training: bool) -> Tensor:
    """The loss of each row, (N,); in evaluation the plain cross-entropy if a batch input is missing."""
    if not training and regularizer.missing_from(rows.given):
        return data_losses(rows)[0]
    options = regularizer.as_labo(rows)  # the one definition of the loss, which handles masked classes
    return regularizer.losses(rows) if options is None else functional.labo_losses(rows, options)


_reduced_uncompiled: Any = torch.compiler.disable(reduced)
_row_losses_uncompiled: Any = torch.compiler.disable(row_losses)


def no_linear_form(regularizer: Regularizer) -> UserError:
    """The error for a regularizer that needs the full logits."""
    return UserError(
        f"Method '{regularizer.name}' with these options needs the full logits, so its loss cannot be computed from "
        "hidden states: use linear=False."
    )
