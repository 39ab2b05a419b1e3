"""The loss in multi-precision arithmetic, straight from its definition; knows nothing of the package."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import mpmath as mp
import torch
from torch import Tensor

mp.mp.dps = 60


def _lse(values: list) -> Any:
    finite = [v for v in values if v != -mp.inf]
    if not finite:
        return -mp.inf
    top = max(finite)
    return top + mp.log(mp.fsum(mp.exp(v - top) for v in finite))


def _prior(z: list, prior: list | None) -> list:
    mass = [mp.mpf(0) if v == -mp.inf else (mp.mpf(1) if prior is None else mp.mpf(prior[k])) for k, v in enumerate(z)]
    total = mp.fsum(mass)
    return [m / total if total else m for m in mass]


def labels(z: list, beta: float, prior: list | None) -> list:
    """q* by minimising on the support: proportional to r * exp(z / beta)."""
    z, r = [mp.mpf(v) for v in z], _prior([mp.mpf(v) for v in z], prior)
    if math.isinf(beta):
        return r
    s = [mp.log(r[k]) + z[k] / mp.mpf(beta) if r[k] > 0 else -mp.inf for k in range(len(z))]
    norm = _lse(s)
    return [mp.exp(v - norm) if v != -mp.inf else mp.mpf(0) for v in s]


def value(z: list, beta: float, prior: list | None) -> Any:
    """CE(q*, p) + beta KL(q* || r): the inner objective at its minimiser, not the closed form of its value."""
    z = [mp.mpf(v) for v in z]
    r, norm = _prior(z, prior), _lse(z)
    if not any(r):
        return mp.inf
    q = labels(z, beta, prior)
    fit = -mp.fsum(q[k] * (z[k] - norm) for k in range(len(z)) if q[k] > 0)
    if math.isinf(beta):
        return fit
    return fit + mp.mpf(beta) * mp.fsum(q[k] * mp.log(q[k] / r[k]) for k in range(len(z)) if q[k] > 0)


def loss(z: list, target: int, alpha: float, beta: float, prior: list | None = None) -> Any:
    """(1 - alpha) CE(e_y, p) + alpha V, a term of weight 0 left out."""
    alpha, z = mp.mpf(alpha), [mp.mpf(v) for v in z]
    data = (1 - alpha) * (_lse(z) - z[target]) if alpha < 1 else 0
    return data + (alpha * value(z, beta, prior) if alpha > 0 else 0)


def gradient(z: list, target: int, alpha: float, beta: float, prior: list | None = None) -> Tensor:
    """p - (1 - alpha) e_y - alpha q* as float64."""
    z = [mp.mpf(v) for v in z]
    norm, q = _lse(z), labels(z, beta, prior)
    alpha = mp.mpf(alpha)
    return torch.tensor(
        [float(mp.exp(z[k] - norm) - (1 - alpha) * (k == target) - alpha * q[k]) for k in range(len(z))],
        dtype=torch.float64,
    )


def rows(z: Tensor, target: Tensor, alpha: float, beta: float, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Losses (N,) and gradients (N, C) of a batch, float64."""
    r = None if prior is None else tuple(prior.double().tolist())
    losses, gradients = _rows(tuple(map(tuple, z.double().tolist())), tuple(target.tolist()), alpha, beta, r)
    return losses.clone(), gradients.clone()


@lru_cache(maxsize=16)  # the implementations are compared with the same batches, one after the other
def _rows(
    z: tuple[tuple[float, ...], ...], target: tuple[int, ...], alpha: float, beta: float, r: tuple[float, ...] | None
) -> tuple[Tensor, Tensor]:
    batch = list(zip(map(list, z), target, strict=True))
    prior = None if r is None else list(r)
    losses = torch.tensor([float(loss(row, y, alpha, beta, prior)) for row, y in batch], dtype=torch.float64)
    return losses, torch.stack([gradient(row, y, alpha, beta, prior) for row, y in batch])
