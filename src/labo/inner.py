"""The inner problem: the optimal label, between the prediction of the model and a prior.

For one row of logits z with prediction p = softmax(z), a prior r on the simplex and beta > 0,

    q*(z) = argmin over q of  CE(q, p) + beta * KL(q || r)  =  softmax(z / beta + log r)
    V(z)  = the minimum                                     =  lse(z) - beta * lse(z / beta + log r)

with gradients dV/dz = p - q*, dV/dbeta = KL(q* || r) and dV/dr_k = -beta * (q*_k / r_k - 1) along the simplex.
They are implemented by hand, because automatic differentiation of V suffers from cancellation when beta is large.

Source of the method: Lu et al., *LABO*, Findings of ACL 2023 (arXiv 2305.04971).
The algebra is derived in docs/math.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from labo import checks
from labo.oracle import solve

__all__ = ["inner_value", "optimal_labels", "solve"]

# Smaller values of beta are replaced by this: q* is one-hot either way, and logits divided by it stay finite.
MIN_BETA = 1e-30


def optimal_labels(logits: Tensor, *, beta: float | Tensor, prior: Tensor | None = None, dim: int = -1) -> Tensor:
    """The optimal label q* = softmax(logits / beta + log prior) of the inner problem.

    Args:
        logits: floating point, any shape with classes along `dim`; -inf masks a class.
        beta: pull towards the prior, 0 < beta <= inf; a float, or a tensor that broadcasts over the rows
            (the shape of `logits` without `dim`). inf gives the prior.
        prior: None for uniform, or probabilities of shape (C,) or, classes last, broadcasting to the rows.
        dim: the dimension of classes.

    Returns:
        Probabilities of the shape and dtype of `logits`, without gradient. Rows whose prior has no mass on an
        unmasked class have no solution and are zero.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit; the message names it.

    Example:
        >>> optimal_labels(torch.tensor([2.0, 0.0, 0.0]).log_softmax(0), beta=float("inf"))
        tensor([0.3333, 0.3333, 0.3333])
    """
    with torch.no_grad():
        rows, beta_rows, prior_rows, _ = _as_rows(logits, beta, prior, dim)
        return labels_of_rows(rows, beta_rows, prior_rows).to(logits.dtype).movedim(-1, dim)


def inner_value(logits: Tensor, *, beta: float | Tensor, prior: Tensor | None = None, dim: int = -1) -> Tensor:
    """The minimum V = lse(logits) - beta * lse(logits / beta + log prior) of the inner problem.

    Args:
        logits, beta, prior, dim: as in `optimal_labels`.

    Returns:
        V, of the shape of `logits` without `dim`; differentiable to any order in logits, beta and prior.
        +inf if the prior has no mass on an unmasked class.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit; the message names it.

    Example:
        >>> inner_value(torch.zeros(3), beta=2.0)  # the prediction equals the prior: V = log C
        tensor(1.0986)
    """
    rows, beta_rows, prior_rows, dtype = _as_rows(logits, beta, prior, dim)
    return value_of_rows(rows, beta_rows, prior_rows).to(dtype)


def _as_rows(
    logits: Tensor, beta: float | Tensor, prior: Tensor | None, dim: int
) -> tuple[Tensor, Tensor, Tensor | None, torch.dtype]:
    checks.floating("logits", logits)
    checks.probabilities("prior", prior, logits.shape[dim] if logits.dim() else 0)
    checks.positive("beta", beta)
    rows = working(logits).movedim(dim, -1)
    if prior is not None:
        checks.broadcasts("prior", prior[..., 0], rows.shape[:-1])
    return rows, over_rows("beta", beta, rows), prior, checks.result_dtype(logits)


def working(tensor: Tensor) -> Tensor:
    """`tensor` in working precision: float64 stays, everything else becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def over_rows(name: str, value: float | Tensor, rows: Tensor) -> Tensor:
    """`value` as a (…, 1) tensor that broadcasts with `rows` (…, C)."""
    value = clamp_beta(value)
    if not isinstance(value, Tensor):
        return torch.full((1,) * rows.dim(), value, dtype=rows.dtype, device=rows.device)
    checks.same_device(name, value, rows)
    checks.broadcasts(name, value, rows.shape[:-1])
    return value.to(rows.dtype).expand(rows.shape[:-1]).unsqueeze(-1)


def clamp_beta(beta: float | Tensor) -> float | Tensor:
    """`beta`, or `MIN_BETA` where it is smaller."""
    return beta.clamp(min=MIN_BETA) if isinstance(beta, Tensor) else max(beta, MIN_BETA)


def value_of_rows(rows: Tensor, beta: Tensor, prior: Tensor | None) -> Tensor:
    """V of `rows` (…, C) in working precision; `beta` broadcasts to (…, 1), `prior` to (…, C); result (…)."""
    r = prior_of_rows(rows, prior)
    beta = beta.expand(*rows.shape[:-1], 1)
    # torch.compile cannot trace a Function with a forward-mode rule.
    function = _InnerValue if torch.compiler.is_compiling() else _InnerValueBothModes
    return function.apply(rows, beta, r)


def labels_of_rows(rows: Tensor, beta: Tensor, prior: Tensor | None) -> Tensor:
    """q* of `rows` (…, C), with arguments as in `value_of_rows`; differentiable, so detach it if it is a target."""
    return _labels(_Scaled(rows, beta), prior_of_rows(rows, prior))


def masked_softmax(rows: Tensor) -> Tensor:
    """Softmax over the last dimension; 0 instead of NaN if every class is masked."""
    masked_out = (rows == -math.inf).all(-1, keepdim=True)
    return torch.where(masked_out, 0.0, torch.softmax(torch.where(masked_out, 0.0, rows), -1))


def prior_of_rows(rows: Tensor, prior: Tensor | None) -> Tensor:
    """The prior renormalised over the unmasked classes of each row; zero if no mass is left."""
    finite = rows != -math.inf
    if prior is None:
        return finite.to(rows.dtype) / finite.sum(-1, keepdim=True).clamp(min=1).to(rows.dtype)
    checks.same_device("prior", prior, rows)
    wide = prior.double() if rows.device.type != "mps" else prior.float()
    mass = torch.where(finite, wide, 0.0)
    total = mass.sum(-1, keepdim=True)
    return (mass / torch.where(total > 0, total, 1.0)).to(rows.dtype)


class _Scaled:
    """The logits of a row relative to two maxima: over all classes (z), and over the prior's support (u = z / beta).

    Two maxima, because a prior may exclude the largest logit; with one, the second sum would underflow to 0.
    """

    def __init__(self, rows: Tensor, beta: Tensor, r: Tensor | None = None) -> None:
        self.finite = rows != -math.inf
        self.top = _maximum(rows, self.finite)
        self.support = self.finite if r is None else self.finite & (r > 0)
        self.feasible = self.support.any(-1, keepdim=True)
        self.support_top = _maximum(rows, self.support)
        # 0 at masked classes keeps later products finite; they have no prior mass.
        self.distance = torch.where(self.finite, rows - self.support_top, 0.0)
        self.beta = beta
        self.u = self.distance / beta


def _maximum(rows: Tensor, where: Tensor) -> Tensor:
    top = torch.where(where, rows, -math.inf).amax(-1, keepdim=True).detach()
    return torch.where(top == -math.inf, 0.0, top)


def _log(r: Tensor) -> Tensor:
    return torch.where(r > 0, torch.where(r > 0, r, 1.0).log(), -math.inf)


def _labels(scaled: _Scaled, r: Tensor) -> Tensor:
    inside = (r > 0) & scaled.finite
    feasible = inside.any(-1, keepdim=True)
    scores = torch.where(inside, scaled.u + _log(r), -math.inf)
    return torch.where(feasible, torch.softmax(torch.where(feasible, scores, 0.0), -1), 0.0)


def _log_mean(scaled: _Scaled, r: Tensor) -> Tensor:
    """The log of sum_k r_k exp(u_k), shape (…, 1), accurate for every beta.

    If the sum is near 1, it is computed as 1 + S with S = sum r expm1(u), whose terms have one sign: nothing cancels.
    If S is below -1/2, that form would cancel, and a plain log-sum-exp is accurate.
    """
    near = (r * torch.expm1(torch.where(scaled.support, scaled.u, 0.0))).sum(-1, keepdim=True)
    scores = torch.where(scaled.support, scaled.u + _log(r), -math.inf)
    scores = torch.where(scaled.feasible, scores, 0.0)
    far = torch.logsumexp(scores, -1, keepdim=True)
    return torch.where(near > -0.5, torch.log1p(near.clamp(min=-0.5)), far)


def _divergence(log_ratio: Tensor, r: Tensor) -> Tensor:
    """KL(q || r) from log(q / r): sum of r * phi with phi = x log x - x + 1 >= 0, so that no terms cancel."""
    w = log_ratio
    small = w.abs() < 0.1
    s = torch.where(small, w, 0.0)
    series = s * s * (1 / 2 + s * (1 / 3 + s * (1 / 8 + s * (1 / 30 + s * (1 / 144 + s * (1 / 840 + s / 5760))))))
    # For large w, exp(w) would overflow although q = r * exp(w) does not; there r * phi = q * (w - 1) + r.
    large = w > 10.0
    above = torch.where(large, w, 0.0)
    v = torch.where(small | large, 1.0, w)
    # exp(v) * v is 0, not NaN, far below.
    plain = torch.exp(v) * v - torch.expm1(v)
    phi = torch.where(small, series, torch.where(v < -80.0, 1.0, plain))
    beyond = torch.exp(above + _log(r)) * (above - 1) + r
    return torch.where(large, beyond, r * phi).sum(-1, keepdim=True)


class _InnerValue(torch.autograd.Function):
    """V with a hand-written gradient of differentiable operations, so that it is differentiable to any order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, beta: Tensor, r: Tensor) -> Tensor:
        scaled = _Scaled(rows, beta, r)
        shifted = torch.where(scaled.finite, rows - scaled.top, -math.inf)
        lse = shifted.exp().sum(-1, keepdim=True).log()
        gap = scaled.top - scaled.support_top  # 0 unless the prior excludes the largest logit
        mean = (r * scaled.distance).sum(-1, keepdim=True)
        limit = torch.isinf(beta)
        pull = torch.where(limit, mean, torch.where(limit, 1.0, beta) * _log_mean(scaled, r))
        return torch.where(scaled.feasible, lse + gap - pull, math.inf).squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, beta, r = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        needs_rows, needs_beta, needs_prior = ctx.needs_input_grad
        scaled = _Scaled(rows, beta, r)
        return (
            grad * (masked_softmax(rows) - _labels(scaled, r)) if needs_rows else None,
            grad * _grad_beta(scaled, r) if needs_beta else None,
            grad * _grad_prior(scaled, r) if needs_prior else None,
        )


class _InnerValueBothModes(_InnerValue):
    """V with rules for reverse-mode and forward-mode differentiation."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        rows, beta, r = ctx.saved_tensors
        rows_tangent, beta_tangent, prior_tangent = tangents
        scaled = _Scaled(rows, beta, r)
        total = torch.zeros_like(rows[..., 0])
        if rows_tangent is not None:
            total = total + ((masked_softmax(rows) - _labels(scaled, r)) * rows_tangent).sum(-1)
        if beta_tangent is not None:
            total = total + (_grad_beta(scaled, r) * beta_tangent).squeeze(-1)
        if prior_tangent is not None:
            total = total + (_grad_prior(scaled, r) * prior_tangent).sum(-1)
        return total


def _log_ratio(scaled: _Scaled, r: Tensor) -> Tensor:
    """log(q* / r) on the prior's support, 0 elsewhere."""
    return torch.where(scaled.support, scaled.u - _log_mean(scaled, r), 0.0)


def _grad_beta(scaled: _Scaled, r: Tensor) -> Tensor:
    return _divergence(_log_ratio(scaled, r), r)


def _grad_prior(scaled: _Scaled, r: Tensor) -> Tensor:
    limit = torch.isinf(scaled.beta)
    beta = torch.where(limit, 1.0, scaled.beta)
    # Off the support u can exceed 0 (if the best class is excluded): the ratio is the limit of q*_k / r_k as r_k -> 0.
    ratio = torch.where(scaled.finite, scaled.u - _log_mean(scaled, r), 0.0)
    mean = (r * scaled.distance).sum(-1, keepdim=True)
    gradient = torch.where(limit, scaled.distance - mean, beta * torch.expm1(ratio))
    return torch.where(scaled.finite & scaled.feasible, -gradient, 0.0)
