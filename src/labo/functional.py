"""The losses as functions, with the argument order, shapes and reductions of `torch.nn.functional.cross_entropy`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labo import checks, inner, kernels, last_layer
from labo import reduction as _reduction
from labo.inner import inner_value, optimal_labels
from labo.kernels import autograd, operators, reference
from labo.kernels.linear import Chunks, Head, check_chunks
from labo.kernels.options import Options, check
from labo.reduction import Rows

__all__ = [
    "inner_value",
    "label_regularized_cross_entropy",
    "labo_cross_entropy",
    "linear_labo_cross_entropy",
    "optimal_labels",
]


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
    inplace_backward: bool = False,
) -> Tensor:
    """Cross-entropy regularized by the optimal label: (1 - alpha) * CE(target, p) + alpha * V(input).

    V(z) = min_q CE(q, p) + beta * KL(q || prior) = lse(z) - beta * lse(z / beta + log prior), whose minimiser
    q* = softmax(z / beta + log prior) is the label. The gradient in the logits is
    p - (1 - alpha) * onehot(target) - alpha * q*; nothing needs to be detached.

    Args:
        input: logits (C), (N, C) or (N, C, d1, …), floating point; -inf masks a class.
        target: class indices of the shape of `input` without C, or probabilities of `input`'s shape, summing to 1.
        alpha: strength in [0, 1]; float, or a tensor that broadcasts over the rows (the shape of the indices).
        beta: pull towards the prior in (0, inf], like `alpha`. inf is label smoothing towards the prior; 1 (uniform
            prior) leaves (1 - alpha) * CE; below 1 sharpens.
        prior: None for uniform, or probabilities (C,) or (…, C), classes last.
        weight: (C,) class weights. With indices, weight[target] multiplies the example's whole loss.
        ignore_index: targets of this value are ignored; not used with probabilities.
        reduction: "mean" (over the kept examples' weights; over all rows for probabilities), "sum" or "none".
        value: "inner" reports V; "plugin" reports CE(q*, p) with q* constant: the same gradient in the logits.
        impl: "auto", or one of `labo.implementations()`.
        inplace_backward: let the gradient overwrite `input`, which must not be read after this call. Allows only one
            backward pass. An operation that saved `input` for its own backward (such as a softmax) raises an error
            there. The reference implementation and compiled graphs ignore it.

    Returns:
        The loss, of `input`'s dtype (float32 for half precision under autocast). 0 if no row is kept; +inf if a
        target is masked, or if the prior has no mass on an unmasked class.
        Every other input that requires a gradient gets one: alpha, beta, prior, weight and probabilities as target
        ("plugin": not beta and prior), by the reference implementation.

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
    check_options(alpha, beta, prior, reduction, value, impl)
    rows = _reduction.as_rows(input, target, weight, ignore_index)
    options = row_options(rows, alpha, beta, prior, value)
    if inplace_backward:
        checks.may_be_overwritten("input", input)
    dtype = checks.result_dtype(input)
    return reduced(rows, options, reduction, dtype, impl=impl, inplace=inplace_backward)


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
    chunk_rows: int | None = None,
    accumulate: str = "float32",
) -> Tensor:
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
        alpha, beta, prior, weight, ignore_index, reduction, value, impl: as in `labo_cross_entropy`; rows are (…).
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
    check_options(alpha, beta, prior, reduction, value, impl)
    check_chunks(chunk_rows, accumulate)
    head = Head(linear_weight, linear_bias)
    rows = last_layer.rows_of(input, head, target, weight, ignore_index)
    options = row_options(rows, alpha, beta, prior, value)
    chunks = Chunks(chunk_rows, accumulate)
    return last_layer.reduced(input, head, rows, options, reduction, impl=impl, chunks=chunks)


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
    prior = rows.distribution("prior", prior)
    weight = rows.weight if rows.has_probabilities else None
    beta = inner.clamp_beta(beta)
    return Options(rows.per_row("alpha", alpha), rows.per_row("beta", beta), prior, weight, value)


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
    row_weights = _reduction.final_row_weights(rows, reduction, reference.working_dtype(rows.raw), count)
    operator = kernels.as_operator(impl, rows.target, options, row_weights)
    solve = None if operator else kernels.choose(impl, (rows.raw,), rows.target, options, row_weights)
    if solve is None and not operator:
        return _reduction.reduce(labo_losses(rows, options), rows, reduction, dtype, count)
    total = reduction != "none"
    arguments = (rows.raw, rows.target, row_weights, options.normalised())
    if solve is None:
        loss = operators.loss(*arguments, impl, total=total)
    else:
        apply = autograd.total if total else autograd.rows
        loss = apply(solve, *arguments, inplace=inplace)
    return (loss if total else loss.reshape(rows.shape)).to(dtype)


def solved(
    solve: autograd.Solve, rows: Rows, reduction: str, dtype: torch.dtype, *, count: Tensor | None = None
) -> Tensor | None:
    """Like `reduced`, with the given implementation; None if it cannot give what the inputs require."""
    options = Options(1.0, math.inf, weight=rows.weight if rows.has_probabilities else None)
    row_weights = _reduction.final_row_weights(rows, reduction, reference.working_dtype(rows.raw), count)
    if kernels.unsupported_by_all((rows.raw,), rows.target, options, row_weights):
        return None
    if reduction == "none":
        return autograd.rows(solve, rows.raw, rows.target, row_weights, options).reshape(rows.shape).to(dtype)
    return autograd.total(solve, rows.raw, rows.target, row_weights, options).to(dtype)


def check_options(
    alpha: float | Tensor, beta: float | Tensor, prior: Tensor | None, reduction: str, value: str, impl: str
) -> None:
    """Check the options of the losses, before any tensor of the batch."""
    check(alpha, beta, prior, reduction, value)
    kernels.check(impl)
