"""Fitting a noise channel and the temperature of predictions, by the likelihood of labels: EM and searches.

A candidate is a name: "symmetric" has one noise rate, "class 2" a rate for each pair of classes with a Dirichlet prior
of strength 2 towards the symmetric channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labo.metrics.golden_section import minimum

# With more entries than this, only the largest logits of an example are kept, and the rest shares the symmetric noise.
MAX_ENTRIES, MIN_KEPT = 2**20, 8
_TINY = 1e-12
_INVERSE_TEMPERATURES = [0.05 * 160 ** (step / 17) for step in range(18)]  # to 8
# A temperature is refined to this relative precision.
_PRECISION = 0.005
_ROUNDS, _BISECTIONS = 2, 40
# EM stops after so many steps, or when no entry of the channel changes by more than the tolerance.
_EM_STEPS, _TOLERANCE, _FIRST_RATE = 30, 1e-3, 0.2
# The inverse temperatures that class-dependent channels are fitted at first, relative to that of the symmetric one: a
# network that has learnt the noise predicts it, which a sharper prediction and a channel explain as well or better.
_FACTORS, _FEW_FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0), (1.0, 2.0)
_MIN_BOOTSTRAPS, _MAX_BOOTSTRAPS, _BOOTSTRAP_ENTRIES, _BOOTSTRAP_EM_STEPS = 30, 200, 2**24, 5
# Rows whose softmax is computed at a time.
_CHUNK = 2048


class Predictions:
    """Logits (N, C) and labels (N,), and the `columns` (N, k) of the largest logits of each example.

    All classes are kept (`columns` is None) if there are at most `MAX_ENTRIES` logits, else the label's own and the
    largest others.
    """

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self.logits, self.labels = logits, labels
        kept = max(MIN_KEPT, MAX_ENTRIES // len(labels))
        self.columns: Tensor | None = None
        if kept < logits.shape[1]:
            self.columns = logits.topk(kept).indices
            absent = (self.columns != labels.unsqueeze(1)).all(-1)
            self.columns[absent, -1] = labels[absent]

    def __getitem__(self, rows: Tensor) -> Predictions:
        part = object.__new__(Predictions)
        part.logits, part.labels = self.logits[rows], self.labels[rows]
        part.columns = None if self.columns is None else self.columns[rows]
        return part

    def few(self) -> Predictions:
        """So many of the examples, evenly spaced, as a temperature needs."""
        step = math.ceil(self.logits.numel() / MAX_ENTRIES)
        return self if step == 1 else self[torch.arange(0, len(self.labels), step, device="cpu")]

    def own(self, scale: float) -> Tensor:
        """The predicted probability of the label as given, (N,)."""
        scaled = self.logits * scale
        return (scaled.gather(1, self.labels.unsqueeze(1)).squeeze(1) - scaled.logsumexp(-1)).exp()

    def at(self, scale: float) -> Scaled:
        """The probabilities at an inverse temperature."""
        if self.columns is None:
            return Scaled(scale, (self.logits * scale).softmax(-1), self.labels, None, self.logits.shape[1])
        p = [
            (rows.gather(1, columns) * scale - (rows * scale).logsumexp(-1, keepdim=True)).exp()
            for rows, columns in zip(self.logits.split(_CHUNK), self.columns.split(_CHUNK), strict=True)
        ]
        return Scaled(scale, torch.cat(p), self.labels, self.columns, self.logits.shape[1])


@dataclass(frozen=True)
class Scaled:
    """Probabilities `p` (N, k) of the classes `columns` (N, k), None for all; the others share the rest."""

    scale: float
    p: Tensor
    labels: Tensor
    columns: Tensor | None
    classes: int

    def __getitem__(self, rows: Tensor) -> Scaled:
        columns = None if self.columns is None else self.columns[rows]
        return replace(self, p=self.p[rows], labels=self.labels[rows], columns=columns)

    @property
    def own(self) -> Tensor:
        """The predicted probability of the label as given, (N,)."""
        return self.at_label(self.p)

    def at_label(self, values: Tensor) -> Tensor:
        """The entries (N,) of values (N, k) at the labels."""
        own = self.labels.unsqueeze(1)
        at = own if self.columns is None else (self.columns == own).double().argmax(-1, keepdim=True)
        return values.gather(1, at).squeeze(1)

    def joint(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """(p_k C[k, label] of the kept classes (N, k), of all others together (N,))."""
        if self.columns is None:
            return matrix.T.contiguous()[self.labels].mul_(self.p), self.p.new_zeros(len(self.p))
        other = (1 - matrix.diagonal().mean()) / max(1, self.classes - 1)
        return matrix[self.columns, self.labels.unsqueeze(1)].mul_(self.p), (1 - self.p.sum(-1)).clamp(min=0) * other

    def log_likelihood(self, matrix: Tensor) -> Tensor:
        """The log-likelihood log sum_k p_k C[k, label] of each example, (N,)."""
        joint, rest = self.joint(matrix)
        return (joint.sum(-1) + rest + _TINY).log()

    def posterior(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The E-step: posteriors of the kept classes (N, k), and of all others together (N,)."""
        joint, rest = self.joint(matrix)
        total = joint.sum(-1) + rest + _TINY
        return joint.div_(total.unsqueeze(1)), rest / total

    def maximise(self, posterior: Tensor, rest: Tensor, strength: float) -> Tensor:
        """The M-step: the channel by expected counts, with the Dirichlet prior towards the symmetric one."""
        if self.columns is None:
            counts = posterior.new_zeros(self.classes, self.classes).index_add_(0, self.labels, posterior).T
        else:
            places = (self.columns * self.classes + self.labels.unsqueeze(1)).flatten()
            flat = posterior.new_zeros(self.classes**2).index_add_(0, places, posterior.flatten())
            counts = flat.view(self.classes, self.classes)
        rate = max(0.0, 1 - float(counts.trace() / (counts.sum() + rest.sum()).clamp(min=_TINY)))
        matrix = counts + strength * symmetric_channel(self.classes, rate)
        return matrix / matrix.sum(-1, keepdim=True)


def scales(predictions: Predictions, names: Sequence[str]) -> dict[str, float]:
    """The inverse temperature of each candidate among `names`."""
    symmetric = _symmetric_scale(predictions.few(), predictions.logits.shape[1])
    return {name: symmetric if name == "symmetric" else _class_scale(predictions, name, symmetric) for name in names}


def _symmetric_scale(few: Predictions, classes: int) -> float:
    """The inverse temperature of the largest likelihood with one noise rate."""

    def likelihood(scale: float) -> float:
        p = few.own(scale)
        return mixture(p, noise_rate(p, classes), classes).log().mean().item()

    best = max(_INVERSE_TEMPERATURES, key=likelihood)
    return _refine(likelihood, best / 1.4, best * 1.4)


def _class_scale(predictions: Predictions, name: str, start: float) -> float:
    """The inverse temperature of the largest likelihood with a class-dependent channel.

    Channels are fitted around `start`; then a search for the temperature and EM of the channel alternate.
    """
    few = predictions.few()

    def fitted(scale: float) -> tuple[float, Tensor]:
        data = predictions.at(scale)
        matrix = fit(data, name)
        return data.log_likelihood(matrix).mean().item(), matrix

    factors = _FACTORS if predictions.columns is None else _FEW_FACTORS
    fits = {start * factor: fitted(start * factor) for factor in factors}
    scale = max(fits, key=lambda scale: fits[scale][0])
    matrix = fits[scale][1]
    for _ in range(_ROUNDS):
        scale = _refine(
            lambda trial, matrix=matrix: few.at(trial).log_likelihood(matrix).mean().item(), scale / 1.3, scale * 1.3
        )
        matrix = fitted(scale)[1]
    return scale


def fit(data: Scaled, name: str) -> Tensor:
    """The channel (C, C) of the largest likelihood: one noise rate, or by EM from a rate above 0 (there EM stays)."""
    strength, rate = name.partition(" ")[2], noise_rate(data.own, data.classes)
    if not strength:
        return symmetric_channel(data.classes, rate)
    matrix = symmetric_channel(data.classes, max(rate, _FIRST_RATE))
    for _ in range(_EM_STEPS):
        before, matrix = matrix, data.maximise(*data.posterior(matrix), float(strength))
        if float((matrix - before).abs().max()) < _TOLERANCE:
            break
    return matrix


def share_of_wrong(data: Scaled, matrix: Tensor, name: str, seed: int) -> tuple[float, tuple[float, float]]:
    """(the share of wrong labels, its 95% interval by bootstrap over examples at the fitted temperature).

    Resampled examples repeat, which a class-dependent channel fits too well: the interval is centred on the share.
    """
    generator, own, strength = torch.Generator().manual_seed(seed), data.own, name.partition(" ")[2]

    def share(weights: Tensor) -> float:
        if not strength:
            return noise_rate(own, data.classes, weights)
        fitted = matrix
        for _ in range(_BOOTSTRAP_EM_STEPS):
            posterior, rest = data.posterior(fitted)
            fitted = data.maximise(posterior.mul_(weights.unsqueeze(1)), rest * weights, float(strength))
        posterior, _ = data.posterior(fitted)
        return 1 - float((data.at_label(posterior) * weights).sum() / weights.sum())

    count = len(own)
    bootstraps = min(_MAX_BOOTSTRAPS, max(_MIN_BOOTSTRAPS, _BOOTSTRAP_ENTRIES // data.p.numel()))
    shares = []
    for _ in range(bootstraps):
        chosen = torch.randint(count, (count,), generator=generator, device="cpu")
        shares.append(share(torch.bincount(chosen, minlength=count).double()))
    draws = torch.tensor(shares, dtype=torch.float64, device="cpu")
    wrong = share(torch.ones(count, dtype=torch.float64, device="cpu"))
    ends = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64, device="cpu"))
    low, high = (ends - draws.mean() + wrong).clamp(0, 1).tolist()
    return wrong, (low, high)


def symmetric_channel(classes: int, rate: float) -> Tensor:
    """The (C, C) channel that replaces each label, with probability `rate`, by one of the others."""
    matrix = torch.full((classes, classes), rate / max(1, classes - 1), dtype=torch.float64, device="cpu")
    return matrix.fill_diagonal_(1 - rate)


def mixture(p: Tensor, rate: float, classes: int) -> Tensor:
    """P(label) with one noise rate, from the predicted probability of the label."""
    return (1 - rate) * p + rate * (1 - p) / max(1, classes - 1) + _TINY


def noise_rate(p: Tensor, classes: int, weights: Tensor | None = None) -> float:
    """The noise rate of the largest likelihood, from the predicted probabilities (N,) of the labels.

    The log-likelihood is concave in the rate: its derivative is bisected.
    """
    slope, weights = (1 - p) / max(1, classes - 1) - p, torch.ones_like(p) if weights is None else weights
    weighted = slope * weights
    low, high = 0.0, 1 - 1 / classes
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if float((weighted / (p + middle * slope + _TINY)).sum()) > 0:
            low = middle
        else:
            high = middle
    return 0.0 if low == 0 else (low + high) / 2


def _refine(likelihood: Callable[[float], float], low: float, high: float) -> float:
    """The scale in [low, high] with the largest likelihood, searched on a log scale."""
    log = minimum(lambda log: -likelihood(math.exp(log)), math.log(low), math.log(high), _PRECISION)
    return math.exp(log)
