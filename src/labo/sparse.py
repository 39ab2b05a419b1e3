"""Sparse labels: the inner problem with a Tsallis divergence in place of KL.

For logits z with prediction p, a prior r on the simplex, beta > 0 and an exponent a > 1,

    q*(z) = argmin over q of  CE(q, p) + beta * D(q || r)  =  entmax_a(z / beta + r ** (a - 1) / (a - 1))

where D is the Bregman divergence of sum(q ** a) / (a * (a - 1)). At a = 2 it is half the squared distance, and q* is
the projection of z / beta + r onto the simplex (sparsemax); a = 1.5 is entmax; towards a = 1 it is KL. Classes far
below the best one get exactly 0. Derived in docs/math.md.

Sources: Martins and Astudillo, ICML 2016 (sparsemax); Peters, Niculae and Martins, ACL 2019 (entmax); Blondel, Martins
and Niculae, JMLR 2020 (Fenchel-Young losses).
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from labo import inner
from labo.errors import UserError, unknown

# By the name of the labels, the exponent of the divergence.
EXPONENTS = {"sparsemax": 2.0, "entmax": 1.5}


def check(labels: Any, prior: Any) -> str:
    """The name of sparse labels, after checking that they can be had with this prior.

    Raises:
        UserError: the name is unknown, entmax is not installed, or the prior does not go with them.
    """
    if labels not in EXPONENTS:
        raise unknown("kind of label", str(labels), ("softmax", *EXPONENTS))
    if find_spec("entmax") is None:
        raise UserError(f"Labels '{labels}' need the package entmax: pip install entmax (the extra 'sparse').")
    if isinstance(prior, str) and prior == "channel":
        raise UserError(f'Option labels={labels} does not apply with prior="channel", whose labels are fixed.')
    if isinstance(prior, Tensor) and prior.requires_grad:
        raise UserError(f"Option labels={labels} has no gradient in the prior: pass prior.detach().")
    return labels


def labels_of_rows(rows: Tensor, beta: Tensor, prior: Tensor | None, labels: str) -> Tensor:
    """q* of `rows` (…, C), without gradient; zeros where the prior has no mass on an unmasked class.

    Arguments are as in `labo.inner.labels_of_rows`, but for `labels`, a key of `EXPONENTS`.
    """
    with torch.no_grad():
        return _solve(rows, beta, inner.prior_of_rows(rows, prior), labels)


def value_of_rows(rows: Tensor, beta: Tensor, prior: Tensor | None, labels: str, *, plugin: bool = False) -> Tensor:
    """The minimum CE(q*, p) + beta * D(q* || r) of `rows` (…, C), shape (…); with `plugin` CE(q*, p) alone.

    Its gradient is p - q* in the logits and D(q* || r) in beta: by the envelope theorem q* is a constant. The prior has
    no gradient, and there are no second derivatives.
    """
    with torch.no_grad():
        r = inner.prior_of_rows(rows, prior)
        q = _solve(rows, beta, r, labels)
        distance = _divergence(q, r, EXPONENTS[labels])
        feasible = r.sum(-1) > 0
    log_p = torch.log_softmax(torch.where(feasible.unsqueeze(-1), rows, 0.0), -1)
    losses = -(q * torch.where(q > 0, log_p, 0.0)).sum(-1)
    if not plugin:
        finite = torch.where(torch.isinf(beta), 0.0, beta).squeeze(-1)  # there q* is the prior
        losses = losses + finite * distance
    return torch.where(feasible, losses, math.inf)


def _solve(rows: Tensor, beta: Tensor, r: Tensor, labels: str) -> Tensor:
    import entmax

    power = EXPONENTS[labels] - 1
    finite = rows != -math.inf
    feasible = r.sum(-1, keepdim=True) > 0
    top = torch.where(finite, rows, -math.inf).amax(-1, keepdim=True)
    distance = torch.where(finite & feasible, rows - torch.where(feasible, top, 0.0), 0.0)
    scores = distance / beta + r**power / power
    # What is further below the largest score gets 0, however far: so masked classes are finite.
    lowest = torch.where(finite, scores, -math.inf).amax(-1, keepdim=True) - 1 / power - 1
    scores = torch.where(finite & feasible, torch.maximum(scores, lowest), torch.where(feasible, lowest, 0.0))
    mapping: Any = entmax.sparsemax if labels == "sparsemax" else entmax.entmax15
    return torch.where(feasible, mapping(scores, dim=-1), 0.0)


def _divergence(q: Tensor, r: Tensor, exponent: float) -> Tensor:
    """The Bregman divergence of sum(q ** a) / (a * (a - 1)), over the last dimension."""
    powers = (q**exponent - r**exponent) / (exponent * (exponent - 1))
    return (powers - r ** (exponent - 1) / (exponent - 1) * (q - r)).sum(-1).clamp(min=0)
