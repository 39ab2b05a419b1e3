"""A numerical solver of the inner problem for any convex divergence, without the closed form.

Available as `labo.inner.solve`. Closed forms are tested against it, and it allows other divergences.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from labo import checks
from labo.errors import unknown

Divergence = Callable[[Tensor, Tensor], Tensor]


def kullback_leibler(q: Tensor, prior: Tensor) -> Tensor:
    """KL(q || prior) = sum q log(q / prior) over the last dimension."""
    return (torch.special.xlogy(q, q) - torch.special.xlogy(q, prior)).sum(-1)


def squared_distance(q: Tensor, prior: Tensor) -> Tensor:
    """Half the squared distance to the prior over the last dimension; its solution is sparse."""
    return 0.5 * ((q - prior) ** 2).sum(-1)


DIVERGENCES: dict[str, Divergence] = {"kl": kullback_leibler, "squared": squared_distance}


def solve(
    logits: Tensor,
    *,
    beta: float,
    prior: Tensor | None = None,
    divergence: str | Divergence = "kl",
    tolerance: float = 1e-11,
    max_iterations: int = 100_000,
) -> Tensor:
    """Minimise CE(q, softmax(logits)) + beta * divergence(q, prior) over the simplex, in float64.

    Mirror descent with the entropy as mirror map (multiplicative updates) and a step size per row from
    backtracking. Source: Beck & Teboulle, Operations Research Letters 31, 2003.

    Args:
        logits: finite, (…, C).
        beta: weight of the divergence, 0 < beta < inf.
        prior: None for uniform, or positive probabilities, (C,) or (…, C).
        divergence: "kl", "squared", or a function of q and prior, both (…, C), giving (…); convex in q and
            differentiable in the interior of the simplex.
        tolerance: bound on the duality gap sum q (g - min g), relative to the gradient's spread (at least 1).
        max_iterations: maximum number of steps.

    Returns:
        q, (…, C), float64, without gradient.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit; the message names it.
        RuntimeError: the tolerance was not met in `max_iterations`.

    Example:
        >>> q = solve(torch.tensor([2.0, 0.0]), beta=2.0)
        >>> torch.allclose(q, torch.tensor([1.0, 0.0]).softmax(0).double())
        True
    """
    measure = _measure(divergence)
    checks.floating("logits", logits)
    checks.positive("beta", beta)
    if not bool(logits.isfinite().all()) or beta == float("inf"):
        raise ValueError("Expected arguments `logits` and `beta` to be finite, but got an infinite or NaN value.")
    checks.probabilities("prior", prior, logits.shape[-1])
    z = logits.detach().double()
    r = torch.full_like(z, 1 / z.shape[-1]) if prior is None else prior.detach().double().expand(z.shape)
    if not bool((r > 0).all()):
        raise ValueError("Expected argument `prior` to be positive everywhere for the numerical solver, but got a 0.")
    cost = -z.log_softmax(-1)
    return _descend(
        lambda q: (q * cost).sum(-1) + beta * measure(q, r), r / r.sum(-1, keepdim=True), tolerance, max_iterations
    )


def _measure(divergence: str | Divergence) -> Divergence:
    if callable(divergence):
        return divergence
    if divergence not in DIVERGENCES:
        raise unknown("divergence", divergence, DIVERGENCES)
    return DIVERGENCES[divergence]


def _descend(objective: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, max_iterations: int) -> Tensor:
    log_q = start.log()
    gradient = _gradient(objective, log_q.exp())
    step = torch.ones_like(start[..., :1])
    for _ in range(max_iterations):
        q = log_q.exp()
        centred = gradient - (q * gradient).sum(-1, keepdim=True)
        open_rows = _gap(q, centred) > tolerance * gradient.abs().amax(-1, keepdim=True).clamp(min=1)
        if not bool(open_rows.any()):
            return q
        trial = torch.log_softmax(log_q - step * centred, -1)
        p = trial.exp()
        trial_gradient = _gradient(objective, p)
        # Test whether f is 1/step-smooth relative to the entropy between the two points. Both sides are inner products
        # with p - q, so rounding errors of values and normalisation do not dominate near the solution.
        curvature = ((trial_gradient - gradient) * (p - q)).sum(-1, keepdim=True)
        fits = curvature <= ((trial - log_q) * (p - q)).sum(-1, keepdim=True) / step
        accepted = fits & open_rows
        log_q = torch.where(accepted, trial, log_q)
        gradient = torch.where(accepted, trial_gradient, gradient)
        step = torch.where(fits, step * 1.1, step * 0.5)
    raise RuntimeError(f"The inner problem was not solved to {tolerance} in {max_iterations} steps.")


def _gap(q: Tensor, centred: Tensor) -> Tensor:
    """The duality gap (…, 1): how unequal the gradient is on the mass, and how much lower it is elsewhere."""
    lowest = centred.argmin(-1, keepdim=True)
    unequal = (q * centred.abs()).sum(-1, keepdim=True)
    return torch.maximum(unequal, -centred.gather(-1, lowest) * q.gather(-1, lowest))


def _gradient(objective: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = q.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(leaf).sum(), leaf)
    return gradient
