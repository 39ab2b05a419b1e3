"""Masks, class weights and denominators: from logits of any shape to rows, and from row losses to the result.

Only this module handles `ignore_index`, `weight` and `reduction`; every loss and implementation uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from labo import checks

REDUCTIONS = ("none", "mean", "sum")


@dataclass(frozen=True)
class Rows:
    """A batch as rows: `logits` (N, C), and `target` (N,) class indices or (N, C) probabilities.

    `kept` (N,) is False for ignored rows, whose logits and targets are replaced by zeros so that NaN in them does not
    reach a sum; it is None if no row is ignored. `raw` are the logits including ignored rows, for implementations that
    skip these themselves. `weight` is the (C,) class weights, `row_weight` (N,) weights of the rows. `shape` is the
    shape of the result under reduction="none". `given` are the other inputs of the batch, by name.
    """

    raw: Tensor
    target: Tensor
    kept: Tensor | None
    weight: Tensor | None
    shape: torch.Size
    given: Mapping[str, Any] = field(default_factory=dict)
    row_weight: Tensor | None = None
    _clean: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    @property
    def logits(self) -> Tensor:
        """The logits (N, C), zeros in ignored rows."""
        if self.kept is None:
            return self.raw
        if not self._clean:
            with torch.enable_grad():  # cached, so it needs a graph even if the first use does not
                self._clean.append(torch.where(self.kept.unsqueeze(-1), self.raw, 0.0))
        return self._clean[0]

    @property
    def has_probabilities(self) -> bool:
        """Whether the targets are probabilities over the classes."""
        return self.target.dim() == 2

    def per_row(self, name: str, value: float | Tensor) -> float | Tensor:
        """A scalar as it is; a tensor that broadcasts over the shape of the result as (N,)."""
        if not isinstance(value, Tensor) or value.dim() == 0:
            return checks.python_number(value)
        checks.same_device(name, value, self.raw)
        checks.broadcasts(name, value, self.shape)
        return value.expand(self.shape).reshape(-1)

    def distribution(self, name: str, value: Tensor | None) -> Tensor | None:
        """None and (C,) unchanged; classes-last distributions that broadcast over the shape of the result as (N, C)."""
        classes = self.raw.shape[-1]
        checks.probabilities(name, value, classes)
        if value is None:
            return value
        checks.same_device(name, value, self.raw)
        if value.dim() == 1:
            return value
        checks.broadcasts(name, value[..., 0], self.shape)
        return value.expand(*self.shape, classes).reshape(-1, classes)


def as_rows(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    *,
    class_dim: int = 1,
    row_weight: Tensor | None = None,
    signed: bool = False,
) -> Rows:
    """Flatten (C), (N, C) or (N, C, d1, …) logits and their targets; `class_dim` is the class dimension from 2-d on.

    `row_weight` has the shape of the result under reduction="none"; `signed` allows negative ones.
    """
    rows = _flatten(input, target, weight, ignore_index, class_dim)
    if row_weight is None:
        return rows
    checks.row_weight("row_weight", row_weight, rows.shape, rows.kept, signed=signed)
    checks.same_device("row_weight", row_weight, input)
    return replace(rows, row_weight=row_weight.reshape(-1))


def _flatten(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, class_dim: int) -> Rows:
    checks.floating("input", input)
    dim = class_dim if input.dim() > 1 else 0
    classes = input.shape[dim]
    if classes < 2:
        cure = "; torch.stack([torch.zeros_like(z), z], 1) are two of one logit z for each example" if classes else ""
        raise ValueError(f"Expected logits of at least 2 classes, but got shape {tuple(input.shape)}{cure}.")
    sizes = input.shape
    shape = sizes[: dim % len(sizes)] + sizes[dim % len(sizes) + 1 :]
    _check_target(input, target, shape)
    checks.same_device("target", target, input)
    if weight is not None:
        checks.class_weight("weight", weight, classes)
        checks.same_device("weight", weight, input)
    logits = input if input.dim() == 2 and dim == 1 else input.movedim(dim, -1).reshape(-1, classes)
    if target.dtype.is_floating_point:
        checks.distribution("target", target, dim)
        return Rows(logits, target.movedim(dim, -1).reshape(-1, classes), None, weight, shape)
    if target.dtype != torch.int64 or target.dim() != 1:
        target = checks.as_targets(target).reshape(-1)
    some_ignored = checks.class_indices("target", target, classes, ignore_index)
    if checks.batched_in_graph(target):
        fits = checks.are_classes(target, classes, ignore_index)
        logits = torch.where(fits.unsqueeze(-1), logits, math.nan)
    if not some_ignored:
        return Rows(logits, target, None, weight, shape)
    kept = target != ignore_index
    return Rows(logits, torch.where(kept, target, 0), kept, weight, shape)


def _check_target(input: Tensor, target: Tensor, shape: torch.Size) -> None:
    checks.tensor("target", target)
    if target.dtype.is_complex or target.dtype == torch.bool:
        raise TypeError(f"Expected argument `target` to be class indices or probabilities, but got {target.dtype}.")
    if target.dtype.is_floating_point:
        if target.shape == input.shape:
            return
        if target.shape == shape:
            raise TypeError(
                f"Expected argument `target` of shape {tuple(shape)} to hold integer class indices, but got dtype "
                f"{target.dtype}; probabilities need the shape of `input`, {tuple(input.shape)}."
            )
    elif target.shape == shape:
        return
    raise ValueError(
        f"Expected argument `target` to be class indices of shape {tuple(shape)} or probabilities of shape "
        f"{tuple(input.shape)}, but got {target.dtype} of shape {tuple(target.shape)}."
    )


def check_reduction(reduction: str) -> None:
    """Raise an error unless `reduction` is none, mean or sum."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"Expected argument `reduction` to be one of {', '.join(REDUCTIONS)}, but got {reduction!r}.")


def total_and_count(losses: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """The sum of the row losses (N,), with class weights and mask applied, and the denominator of "mean"."""
    if not _weights_differ(rows):  # the common case, in few operations
        return losses.sum(), losses.new_full((), len(losses))
    weights = row_weights(rows, losses.dtype)
    return _weighted(losses, weights).sum(), weights.sum()


def reduce(losses: Tensor, rows: Rows, reduction: str, dtype: torch.dtype, count: Tensor | None = None) -> Tensor:
    """Reduce row losses (N,), with weights and mask applied; a batch without kept rows gives 0, not NaN.

    `count` replaces the denominator of "mean".
    """
    if reduction == "none":
        return _weighted(losses, row_weights(rows, losses.dtype)).reshape(rows.shape).to(dtype)
    total, weight_sum = total_and_count(losses, rows)
    if reduction == "sum":
        return total.to(dtype)
    return mean(total, weight_sum if count is None else count.to(total)).to(dtype)


def mean(total: Tensor, count: Tensor) -> Tensor:
    """The quotient total / count; 0 and connected to the graph if the count is 0."""
    return torch.where(count == 0, 0.0, total / torch.where(count == 0, 1.0, count))


def final_row_weights(rows: Rows, reduction: str, dtype: torch.dtype, count: Tensor | None = None) -> Tensor:
    """The weight of each row in the result, (N,), divided by the denominator for a mean (`count` if given)."""
    size = rows.raw.shape[0]
    if reduction == "mean" and count is None and size and not _weights_differ(rows):
        return rows.raw.new_full((size,), 1 / size, dtype=dtype)  # the common case, in one operation
    weights = row_weights(rows, dtype)
    if reduction != "mean":
        return weights
    return mean(weights, weights.sum() if count is None else count.to(weights))


def row_weights(rows: Rows, dtype: torch.dtype) -> Tensor:
    """The weight of each row, (N,): its class weight times its own, 0 if it is ignored."""
    weights = None if rows.row_weight is None else rows.row_weight.to(dtype)
    if rows.weight is not None and not rows.has_probabilities:  # with probabilities, class weights apply inside rows
        of_class = rows.weight.to(dtype)[rows.target]
        weights = of_class if weights is None else of_class * weights
    if weights is None:
        return rows.raw.new_ones(rows.raw.shape[0], dtype=dtype) if rows.kept is None else rows.kept.to(dtype)
    return weights if rows.kept is None else torch.where(rows.kept, weights, 0.0)


def weight_sources(rows: Rows, count: Tensor | None) -> dict[str, Tensor | None]:
    """What the weights of rows are computed from, by the names of the arguments."""
    return {"weight": rows.weight, "row_weight": rows.row_weight, "denominator": count}


def _weights_differ(rows: Rows) -> bool:
    """Whether rows may have other weights than 1."""
    weighted_classes = rows.weight is not None and not rows.has_probabilities
    return weighted_classes or rows.kept is not None or rows.row_weight is not None


def _weighted(losses: Tensor, weights: Tensor) -> Tensor:
    # Selected, not multiplied: the loss of a row of weight 0 may be infinite. A finite one is its weight's gradient.
    dropped = weights == 0
    return torch.where(dropped & ~losses.isfinite() if weights.requires_grad else dropped, 0.0, losses) * weights
