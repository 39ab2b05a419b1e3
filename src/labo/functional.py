"""The losses as functions, with the argument order, shapes and reductions of `torch.nn.functional.cross_entropy`."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from labo import checks, inner, kernels, last_layer
from labo import reduction as _reduction
from labo.errors import UserError
from labo.inner import inner_value, optimal_labels
from labo.kernels import autograd, operators, reference
from labo.kernels.linear import Chunks, Head, check_chunks
from labo.kernels.options import LossArguments, LossOptions, Options, documented
from labo.kernels.statistics import NOTHING, LossStatistics, Wanted, as_statistics
from labo.reduction import Rows

__all__ = [
    "inner_value",
    "label_regularized_cross_entropy",
    "labo_cross_entropy",
    "linear_labo_cross_entropy",
    "optimal_labels",
]

# The types of options that are no tensors.
_CONSTANTS = {bool, int, float, str, type(None)}


@overload
def labo_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    return_statistics: Literal[False] = False,
    inplace_backward: bool = False,
    **options: Unpack[LossArguments],
) -> Tensor: ...
@overload
def labo_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    return_statistics: Literal[True],
    inplace_backward: bool = False,
    **options: Unpack[LossArguments],
) -> LossStatistics: ...
@documented()
def labo_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float | Tensor = 0.1,
    beta: float | Tensor = 2.0,
    prior: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    value: str = "inner",
    impl: str = "auto",
    z_loss: float = 0.0,
    softcap: float | None = None,
    row_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    return_statistics: bool = False,
    differentiable: bool = False,
    inplace_backward: bool = False,
) -> Tensor | LossStatistics:
    """Cross-entropy regularized by the optimal label: (1 - alpha) * CE(target, p) + alpha * V(input).

    V(z) = min_q CE(q, p) + beta * KL(q || prior) = lse(z) - beta * lse(z / beta + log prior), whose minimiser
    q* = softmax(z / beta + log prior) is the label. The gradient in the logits is
    p - (1 - alpha) * onehot(target) - alpha * q*; nothing needs to be detached.

    Args:
        input: logits (C), (N, C) or (N, C, d1, …), floating point; -inf masks a class.
        target: class indices of the shape of `input` without C, or probabilities of `input`'s shape, summing to 1.
        {options}
        inplace_backward: let the gradient overwrite `input`, which must not be read after this call. Allows only one
            backward pass. An operation that saved `input` for its own backward (such as a softmax) raises an error
            there. The reference implementation and compiled graphs ignore it.

    Returns:
        The loss, of `input`'s dtype (float32 for half precision under autocast). 0 if no row is kept; +inf if a
        target is masked, or if the prior has no mass on an unmasked class. With return_statistics=True, a
        `labo.LossStatistics`.
        Every other input that requires a gradient gets one: alpha, beta, prior, weight, row_weight, denominator and
        probabilities as target ("plugin": not beta and prior), by the reference implementation.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit; the message names it.

    Source:
        Lu et al., *LABO: Towards Learning Optimal Label Regularization via Bi-level Optimization*, Findings of ACL
        2023 (arXiv 2305.04971). Closed form, value and gradient as derived in docs/math.md.

    Example:
        >>> logits, target = torch.zeros(2, 4), torch.tensor([0, 3])
        >>> labo_cross_entropy(logits, target, alpha=0.1, beta=2.0)
        tensor(1.3863)
    """
    values = (
        alpha, beta, prior, weight, ignore_index, reduction, value, impl, z_loss, softcap, row_weight, denominator,
        return_statistics, differentiable,
    )  # fmt: skip
    given, options = _checked_options(*values)
    rows = _reduction.as_rows(input, target, weight, ignore_index, row_weight=row_weight, signed=given.weights_signed)
    options = given.of_rows(rows) if options is None else options
    if inplace_backward:
        if differentiable:
            raise UserError(
                "Expected inplace_backward=False with differentiable=True, whose backward pass reads the logits again."
            )
        checks.may_be_overwritten("input", input)
    dtype = checks.result_dtype(input)
    count, wanted = given.count(rows.raw), Wanted(return_statistics, differentiable)
    return solved(rows, options, reduction, dtype, impl=impl, count=count, inplace=inplace_backward, wanted=wanted)


@overload
def linear_labo_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    return_statistics: Literal[False] = False,
    chunk_rows: int | None = None,
    accumulate: str = "float32",
    **options: Unpack[LossArguments],
) -> Tensor: ...
@overload
def linear_labo_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    return_statistics: Literal[True],
    chunk_rows: int | None = None,
    accumulate: str = "float32",
    **options: Unpack[LossArguments],
) -> LossStatistics: ...
@documented()
def linear_labo_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    alpha: float | Tensor = 0.1,
    beta: float | Tensor = 2.0,
    prior: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    value: str = "inner",
    impl: str = "auto",
    z_loss: float = 0.0,
    softcap: float | None = None,
    row_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    return_statistics: bool = False,
    differentiable: bool = False,
    chunk_rows: int | None = None,
    accumulate: str = "float32",
) -> Tensor | LossStatistics:
    """`labo_cross_entropy` of the logits input @ linear_weight.T + linear_bias, which are never materialized.

    Rows are processed in chunks. The reference implementation recomputes the logits in the backward pass, except under
    torch.func transforms, which cannot recompute.

    Args:
        input: hidden states (…, D).
        linear_weight: (V, D). A DTensor with Shard(0) on a one-dimensional mesh is a head of which every rank holds a
            slice, as in `labo.vocab_parallel_linear_labo_cross_entropy`: `input` and `target` are then the same on
            every rank; `prior` and `weight` are those of all classes.
        target: class indices (…), or probabilities (…, V).
        linear_bias: (V,) or None; with a DTensor as `linear_weight`, sharded as that is.
        {options}
        chunk_rows: number of rows per chunk of logits; by default as many as fit in the caches of a CPU, or as make
            efficient products on a GPU, within its free memory.
        accumulate: dtype in which the gradient of the head is summed over chunks, "float32" or "input". In half
            precision "input" takes half the memory, and rounds once per chunk.

    Returns:
        The loss, as `labo_cross_entropy` returns it.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit; the message names it.

    Example:
        >>> hidden, head = torch.zeros(2, 3), torch.ones(4, 3)
        >>> linear_labo_cross_entropy(hidden, head, torch.tensor([0, 3]))
        tensor(1.3863)
    """
    given = LossOptions(
        alpha, beta, prior, weight, ignore_index, reduction, value, impl, z_loss, softcap, row_weight, denominator,
        return_statistics, differentiable,
    )  # fmt: skip
    check_options(given)
    check_chunks(chunk_rows, accumulate)
    head = Head(linear_weight, linear_bias)
    rows = last_layer.rows_of(
        input, head, target, weight, ignore_index, row_weight=row_weight, signed=given.weights_signed
    )
    options = given.of_rows(rows)
    chunks, wanted = Chunks(chunk_rows, accumulate), Wanted(return_statistics, differentiable)
    count = given.count(rows.raw)
    return last_layer.solved(
        input, head, rows, options, reduction, impl=impl, count=count, chunks=chunks, wanted=wanted
    )


def label_regularized_cross_entropy(
    input: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    alpha: float | Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy with your own labels: (1 - alpha) * CE(target, p) + alpha * CE(labels, p).

    Args:
        input: logits as in `labo_cross_entropy`.
        target: class indices or probabilities as in `labo_cross_entropy`.
        labels: probabilities of `input`'s shape, constant for the gradient (they are detached).
        alpha: strength in [0, 1]; float, or a tensor that broadcasts over the rows.
        weight, ignore_index, reduction: as in `labo_cross_entropy`.

    Returns:
        The loss, as `labo_cross_entropy` returns it.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit; the message names it.

    Example:
        >>> logits, target = torch.zeros(1, 2), torch.tensor([0])
        >>> label_regularized_cross_entropy(logits, target, torch.full((1, 2), 0.5), alpha=0.1)
        tensor(0.6931)
    """
    checks.share("alpha", alpha)
    _reduction.check_reduction(reduction)
    rows = _reduction.as_rows(input, target, weight, ignore_index)
    checks.floating("labels", labels)
    if labels.shape != input.shape:
        raise ValueError(f"Expected argument `labels` of shape {tuple(input.shape)}, but got {tuple(labels.shape)}.")
    classes_last = labels.detach().movedim(1 if input.dim() > 1 else 0, -1).reshape(rows.logits.shape)
    if rows.kept is not None:
        classes_last = torch.where(rows.kept.unsqueeze(-1), classes_last, 1.0 / max(1, classes_last.shape[-1]))
    checks.distribution("labels", classes_last, -1)
    losses = soft_label_losses(rows, classes_last, rows.per_row("alpha", alpha))
    return _reduction.reduce(losses, rows, reduction, checks.result_dtype(input))


def soft_label_losses(rows: Rows, labels: Tensor, alpha: float | Tensor) -> Tensor:
    """(1 - alpha) * CE(target, p) + alpha * CE(labels, p) of each row; `labels` (N, C) constant, `alpha` () or (N,)."""
    logits = reference.inner.working(rows.logits)
    data, mass = reference.data_term(logits, rows.target, rows.weight if rows.has_probabilities else None)
    term = reference.cross_entropy(labels.to(logits.dtype), reference.masked_log_softmax(logits))
    return reference.mix(data, term if mass is None else term * mass, alpha)


def row_options(
    rows: Rows, alpha: float | Tensor, beta: float | Tensor, prior: Tensor | None, value: str = "inner"
) -> Options:
    """The options of the loss for `rows`; values that broadcast over the rows become (N,)."""
    return LossOptions(alpha, beta, prior, value=value).of_rows(rows)


def labo_losses(rows: Rows, options: Options) -> Tensor:
    """(1 - alpha) * CE(target, p) + alpha * V of each row (N,)."""
    return reference.row_losses(rows.logits, rows.target, **options.named())


def reduced(
    rows: Rows,
    options: Options,
    reduction: str,
    dtype: torch.dtype,
    *,
    impl: str = "auto",
    count: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """The reduced loss of `rows` with implementation `impl`; `count` replaces the denominator of "mean".

    With `inplace` the gradient may overwrite the logits.
    """
    loss = solved(rows, options, reduction, dtype, impl=impl, count=count, inplace=inplace)
    assert isinstance(loss, Tensor)
    return loss


def solved(
    rows: Rows,
    options: Options,
    reduction: str,
    dtype: torch.dtype,
    *,
    impl: str,
    count: Tensor | None,
    inplace: bool = False,
    wanted: Wanted = NOTHING,
) -> Tensor | LossStatistics:
    """Like `reduced`, with statistics where they are wanted."""
    row_weights = _reduction.final_row_weights(rows, reduction, reference.working_dtype(rows.raw), count)
    sources = _reduction.weight_sources(rows, count)
    operator = kernels.as_operator(impl, rows.target, options, sources, wanted)
    solve = None if operator else kernels.choose(impl, (rows.raw,), rows.target, options, sources)
    statistics = None
    if solve is None and not operator:
        loss = _reduction.reduce(labo_losses(rows, options), rows, reduction, dtype, count)
        if wanted.statistics:
            differentiable = wanted.differentiable
            statistics = reference.statistics(rows.logits, rows.target, options, differentiable=differentiable)
            statistics = torch.where(row_weights == 0, math.nan, statistics)
    else:
        total = reduction != "none"
        arguments = (rows.raw, rows.target, row_weights, options.normalised())
        if solve is None:
            loss, statistics = operators.loss(*arguments, impl, total=total, wanted=wanted)
        else:
            apply = autograd.total if total else autograd.rows
            loss, statistics = apply(solve, *arguments, inplace=inplace, wanted=wanted)
        loss = (loss if total else loss.reshape(rows.shape)).to(dtype)
    if statistics is None:
        return loss
    return as_statistics(loss, statistics, rows, row_weights, options, reduction, wanted)


def reduced_by(
    solve: autograd.Solve, rows: Rows, reduction: str, dtype: torch.dtype, *, count: Tensor | None = None
) -> Tensor | None:
    """Like `reduced`, with the given implementation; None if it cannot give what the inputs require."""
    options = Options(1.0, math.inf, weight=rows.weight if rows.has_probabilities else None)
    row_weights = _reduction.final_row_weights(rows, reduction, reference.working_dtype(rows.raw), count)
    if kernels.unsupported_by_all((rows.raw,), rows.target, options, _reduction.weight_sources(rows, count)):
        return None
    if reduction == "none":
        return autograd.rows(solve, rows.raw, rows.target, row_weights, options)[0].reshape(rows.shape).to(dtype)
    return autograd.total(solve, rows.raw, rows.target, row_weights, options)[0].to(dtype)


def _checked_options(*values: Any) -> tuple[LossOptions, Options | None]:
    """The options of a call, checked, and those of its rows if they are the same for any batch.

    Numbers and strings are checked once: for small batches that costs as much as the loss.
    """
    if torch.compiler.is_compiling() or not _CONSTANTS.issuperset(map(type, values)):
        given = LossOptions(*values)
        check_options(given)
        return given, None
    given, options = _checked_constants(*values)
    kernels.check(given.impl)
    return given, options


@lru_cache(maxsize=64, typed=True)
def _checked_constants(*values: Any) -> tuple[LossOptions, Options]:
    given = LossOptions(*values)
    given.check()
    cap = None if given.softcap is None else float(given.softcap)
    beta = inner.clamp_beta(given.beta)
    return given, Options(given.alpha, beta, value=given.value, z_loss=float(given.z_loss), softcap=cap)


def check_options(options: LossOptions) -> None:
    """Check the options of a loss, before any tensor of the batch."""
    options.check()
    kernels.check(options.impl)
