"""The reference implementation: plain PyTorch, differentiable to any order, on every device, under every transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labo import inner
from labo.kernels.options import Options


def row_losses(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float | Tensor,
    beta: float | Tensor,
    prior: Tensor | None,
    weight: Tensor | None = None,
    value: str = "inner",
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """(1 - alpha) * CE(target, p) + alpha * V + z_loss * lse(logits)² for each row, in working precision.

    Args:
        logits: (N, C).
        target: (N,) class indices or (N, C) probabilities.
        alpha, beta: scalars or (N,).
        prior: None, (C,) or (N, C).
        weight: (C,), only used with probability targets, where it weighs classes inside the row.
        value: "inner" for V, "plugin" for CE(q*, p) with q* constant.
        z_loss: with probability targets times their weighted mass, as V.
        softcap: c of the logits c * tanh(logits / c), or None.

    Returns:
        (N,) losses.
    """
    rows = capped(inner.working(logits), softcap)
    losses, mass = data_term(rows, target, weight)
    if isinstance(alpha, Tensor) or alpha != 0 or _learnt(beta, prior):
        beta_rows = inner.over_rows("beta", beta, rows)
        term = inner.value_of_rows(rows, beta_rows, prior) if value == "inner" else _plugin(rows, beta_rows, prior)
        losses = mix(losses, term if mass is None else term * mass, alpha)
    if not z_loss:
        return losses
    square = z_loss * log_sum_exp(rows).square()
    return losses + (square if mass is None else square * mass)


def capped(rows: Tensor, softcap: float | None) -> Tensor:
    """The logits softcap * tanh(rows / softcap); -inf stays."""
    if softcap is None:
        return rows
    return torch.where(rows == -math.inf, -math.inf, softcap * torch.tanh(rows / softcap))


def capped_slope(capped_rows: Tensor, softcap: float) -> Tensor:
    """The derivative of `capped` by its result: 1 - (result / softcap)²; 0 at -inf."""
    ratio = torch.where(capped_rows == -math.inf, 1.0, capped_rows / softcap)
    return 1 - ratio * ratio


def log_sum_exp(rows: Tensor) -> Tensor:
    """The log-sum-exp of each row; -inf, with a gradient of 0, if all classes are masked."""
    masked_out = (rows == -math.inf).all(-1)
    return torch.where(masked_out, -math.inf, torch.logsumexp(torch.where(masked_out.unsqueeze(-1), 0.0, rows), -1))


def statistics(logits: Tensor, target: Tensor, options: Options, *, differentiable: bool = False) -> Tensor:
    """The statistics (5, N) of rows, see statistics.py; with `differentiable`, the first two have a gradient."""
    rows = capped(inner.working(logits if differentiable else logits.detach()), options.softcap)
    nll, logsumexp = data_term(rows, target, None)[0], log_sum_exp(rows)
    rows = rows.detach()
    beta = options.beta.detach() if isinstance(options.beta, Tensor) else options.beta
    prior = None if options.prior is None else options.prior.detach()
    some = (rows != -math.inf).any(-1)
    entropy = cross_entropy(inner.masked_softmax(rows), masked_log_softmax(rows))
    label = inner.labels_of_rows(rows, inner.over_rows("beta", beta, rows), prior)
    label_entropy = torch.where(label.sum(-1) > 0, torch.special.entr(label).sum(-1), math.nan)
    index = target.argmax(-1) if target.dim() == 2 else target
    correct = some & (rows.gather(-1, index.unsqueeze(-1)).squeeze(-1) == rows.amax(-1))
    return torch.stack([nll, logsumexp, torch.where(some, entropy, math.nan), label_entropy, correct.to(rows.dtype)])


def _learnt(*options: float | Tensor | None) -> bool:
    return any(isinstance(option, Tensor) and option.requires_grad for option in options)


def solve(
    logits: Tensor,
    target: Tensor,
    row_weights: Tensor,
    options: Options,
    *,
    gradient: bool,
    out: Tensor | None = None,
    statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The losses (N,) times their weights and the gradient of their sum, as the fused implementations return them.

    Rows of weight 0 may hold anything; `out` is a buffer for the gradient, `statistics` one (5, N) for the statistics.
    Nothing is recorded for autograd.
    """
    counted = (row_weights != 0).unsqueeze(-1)
    clean = torch.where(counted, logits, 0.0)
    losses = row_losses(clean, target, **options.named())
    if statistics is not None:
        statistics.copy_(torch.where(row_weights == 0, math.nan, _statistics(clean, target, options)))
    rows = capped(inner.working(clean), options.softcap)
    if gradient:
        mass = target_mass(rows, target, options.weight)
        total = mass.sum(-1, keepdim=True)
        alpha = options.alpha
        strength = alpha.to(rows.dtype).unsqueeze(-1) if isinstance(alpha, Tensor) and alpha.dim() else alpha
        label = inner.labels_of_rows(rows, inner.over_rows("beta", options.beta, rows), options.prior)
        p = inner.masked_softmax(rows)
        if options.z_loss:
            p = p * (1 + 2 * options.z_loss * log_sum_exp(rows).unsqueeze(-1))
        grad_logits = total * p - (1 - strength) * mass - strength * total * label
        if options.softcap is not None:
            grad_logits = grad_logits * capped_slope(rows, options.softcap)
        # A row whose classes are all masked has no gradient, not even at its target.
        counted = counted & (rows != -math.inf).any(-1, keepdim=True)
        grad_logits = torch.where(counted, row_weights.unsqueeze(-1) * grad_logits, 0.0).to(logits.dtype)
        out = grad_logits if out is None else out.copy_(grad_logits)
    return torch.where(row_weights == 0, 0.0, row_weights * losses), out if gradient else None


_statistics = statistics  # the name is an argument of `solve`


def working_dtype(logits: Tensor) -> torch.dtype:
    """The precision of sums: float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def data_term(rows: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """CE(target, p) of each row, and the weighted mass of a probability target (None for class indices)."""
    log_p = masked_log_softmax(rows)
    if target.dim() == 1:
        return -log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1), None
    mass = target_mass(rows, target, weight)
    return cross_entropy(mass, log_p), mass.sum(-1)


def target_mass(rows: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted target of each row as (N, C): one-hot for class indices, without `weight`."""
    if target.dim() == 1:
        return torch.zeros_like(rows).scatter_(-1, target.unsqueeze(-1), 1.0)
    mass = target.to(rows.dtype)
    return mass if weight is None else mass * weight.to(rows.dtype)


def masked_log_softmax(rows: Tensor) -> Tensor:
    """The log softmax; -inf (not NaN) in a row whose classes are all masked."""
    masked_out = (rows == -math.inf).all(-1, keepdim=True)
    return torch.where(masked_out, -math.inf, torch.log_softmax(torch.where(masked_out, 0.0, rows), -1))


def cross_entropy(q: Tensor, log_p: Tensor) -> Tensor:
    """-sum q log p over the last dimension, with 0 * -inf = 0."""
    return -(q * torch.where((q == 0) & (log_p == -math.inf), 0.0, log_p)).sum(-1)


def mix(data: Tensor, term: Tensor, alpha: float | Tensor) -> Tensor:
    """(1 - alpha) * data + alpha * term, where a term of weight 0 is 0 even if it is infinite."""
    if isinstance(alpha, Tensor):
        alpha = alpha.to(data.dtype)
    return _times(1 - alpha, data) + _times(alpha, term)


def _times(factor: float | Tensor, term: Tensor) -> Tensor:
    if not isinstance(factor, Tensor):
        return factor * term if factor else torch.where(torch.isinf(term), 0.0, term) * 0.0
    return factor * torch.where((factor == 0) & torch.isinf(term), 0.0, term)


def _plugin(rows: Tensor, beta: Tensor, prior: Tensor | None) -> Tensor:
    # Detached, because no_grad stops only reverse-mode differentiation.
    q = inner.labels_of_rows(rows.detach(), beta.detach(), None if prior is None else prior.detach())
    losses = cross_entropy(q, masked_log_softmax(rows))
    return torch.where(q.sum(-1) > 0, losses, math.inf)
