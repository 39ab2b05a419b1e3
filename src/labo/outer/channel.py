"""The noise channel C[k, j] = P(label j | true class k), fitted to predictions that have not seen the labels.

The predictions p = softmax(logits / temperature) of cross-fitted networks and the channel give the likelihood of the
label as written, sum_k p_k C[k, label]. Temperature and channel maximise it by EM. The posterior of the true class,
proportional to p_k C[k, label], is the optimal label of LABO's inner problem with the prior C[:, label] (Bayes' rule).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from labo import checks, inner
from labo.errors import UserError, unknown
from labo.splitting import equal_parts

KINDS = ("symmetric", "class")
# The Dirichlet prior of a class-dependent channel: so many examples of each class follow the symmetric one.
STRENGTHS = (2.0, 20.0)
# With more entries than this, only the largest logits of an example are kept, and the rest shares the symmetric noise.
MAX_ENTRIES, MIN_KEPT = 2**20, 8
# Below this mean confidence, ambiguous examples are taken for wrong labels.
MIN_CONFIDENCE = 0.8
_TINY = 1e-12
_INVERSE_TEMPERATURES = (
    torch.linspace(math.log(0.05), math.log(8.0), 18, dtype=torch.float64, device="cpu").exp().tolist()
)
_ROUNDS, _GOLDEN_STEPS, _BISECTIONS = 2, 10, 40
# EM stops after so many steps, or when no entry of the channel changes by more than the tolerance.
_EM_STEPS, _TOLERANCE, _FIRST_RATE = 30, 1e-3, 0.2
# The inverse temperatures that class-dependent channels are fitted at first, relative to that of the symmetric one: a
# network that has learnt the noise predicts it, which a sharper prediction and a channel explain as well or better.
_FACTORS, _FEW_FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0), (1.0, 2.0)
# The strength in `channel_losses`.
_STRENGTH = 10.0
_MIN_BOOTSTRAPS, _MAX_BOOTSTRAPS, _BOOTSTRAP_ENTRIES, _BOOTSTRAP_EM_STEPS = 30, 200, 2**24, 5
# Rows whose softmax is computed at a time.
_CHUNK = 2048


@dataclass(frozen=True)
class Channel:
    """A fitted noise channel.

    Args:
        matrix: (C, C) float64, P(label j | true class k); its rows sum to 1.
        temperature: of the predictions.
        kind: "symmetric" (one noise rate) or "class" (class-dependent).
        wrong: the share of labels that are not of the true class, in [0, 1].
        interval: its 95% interval, by bootstrap over examples.
        held_out: mean log-likelihood of labels that the channel was not fitted to, by kind and strength of the prior.
        confidence: mean of the largest probability.
    """

    matrix: Tensor
    temperature: float
    kind: str
    wrong: float
    interval: tuple[float, float]
    held_out: dict[str, float]
    confidence: float

    @property
    def warning(self) -> str:
        """Why the share of wrong labels may be too high; "" if nothing speaks for it."""
        if self.confidence >= MIN_CONFIDENCE:
            return ""
        return (
            f"The networks are unsure (mean confidence {self.confidence:.0%}): ambiguous examples look like wrong "
            "labels, so their share may be too high."
        )

    @property
    def sentence(self) -> str:
        """The share of wrong labels in one sentence."""
        low, high = self.interval
        if low == 0:
            return f"No label noise found: at most {high:.1%} of the labels are wrong (95% interval)."
        share = f"{self.wrong:.1%} (95% interval {low:.1%} to {high:.1%})"
        kind = "the same for all classes" if self.kind == "symmetric" else "differently by class"
        return f"About {share} of the labels are wrong, {kind}." + (f" {self.warning}" if self.warning else "")

    def as_json(self) -> dict[str, Any]:
        """The channel as stored in records."""
        return {
            "kind": self.kind,
            "temperature": round(self.temperature, 6),
            "wrong": round(self.wrong, 6),
            "interval": [round(end, 6) for end in self.interval],
            "confidence": round(self.confidence, 6),
            "held_out": {name: round(value, 6) for name, value in self.held_out.items()},
            "matrix": [[round(value, 6) for value in row] for row in self.matrix.tolist()],
            "sentence": self.sentence,
        }


def fit_channel(logits: Tensor, labels: Tensor, *, kind: str = "auto", folds: int = 5, seed: int = 0) -> Channel:
    """Temperature and noise channel of the largest likelihood of the labels as given.

    The channel is symmetric, or class-dependent with a Dirichlet prior of strength 2 or 20 towards the symmetric one.
    Kind and strength are those that predict the labels of held-out examples best, over `folds` parts.

    Memory and time grow with N * C up to `MAX_ENTRIES`; beyond, with the largest logits of each example alone (at least
    8), the mass of the others counts as predicted with the symmetric noise rate.

    Args:
        logits: (N, C) floating point, of networks that did not train on these examples (cross-fitting): networks that
            have seen the labels predict them too well.
        labels: class indices (N,), as given in the data.
        kind: "auto", "symmetric" or "class".
        folds: the number of held-out parts, at least 2.
        seed: draws the parts and the bootstrap.

    Raises:
        UserError: an argument is out of range or does not fit; the message names it.

    Example:
        >>> logits = 6 * torch.eye(2).repeat(100, 1)
        >>> labels = torch.tensor([0, 1]).repeat(100)
        >>> labels[:20] = 1 - labels[:20]
        >>> channel = fit_channel(logits, labels)
        >>> f"{channel.kind}, {channel.wrong:.2f}"
        'symmetric, 0.10'
    """
    logits, labels = _checked(logits, labels)
    if kind not in ("auto", *KINDS):
        raise unknown("kind", kind, ("auto", *KINDS))
    checks.integer("folds", folds)
    if not 2 <= folds <= len(labels):
        raise UserError(f"Expected argument `folds` from 2 to {len(labels)} (the examples), but got {folds}.")
    predictions = _Predictions(logits, labels)
    names = _names(kind)
    scaled = {name: predictions.at(scale) for name, scale in _scales(predictions, names).items()}
    held_out = dict.fromkeys(names, 0.0)
    if len(names) > 1:
        parts = equal_parts(labels, folds, seed)
        for number, part in enumerate(parts):
            others = torch.cat(parts[:number] + parts[number + 1 :])
            for name in names:
                matrix = _fit(scaled[name][others], name)
                held_out[name] += float(scaled[name][part].log_likelihood(matrix).sum()) / len(labels)
    name = max(held_out, key=held_out.__getitem__)
    data = scaled[name]
    matrix = _fit(data, name)
    wrong, interval = _share_of_wrong(data, matrix, name, seed)
    return Channel(
        matrix=matrix,
        temperature=1 / data.scale,
        kind=_kind(name),
        wrong=wrong,
        interval=interval,
        held_out=held_out if len(names) > 1 else {},
        confidence=data.p.amax(-1).mean().item(),
    )


def posterior_labels(logits: Tensor, labels: Tensor, channel: Channel) -> Tensor:
    """The distribution of the true class of each example, given its label: proportional to p_k C[k, label].

    It is LABO's optimal label softmax(logits / beta + log r) with the temperature as beta and r = C[:, label].

    Args:
        logits: (N, C), of networks that did not train on these examples.
        labels: class indices (N,), as given in the data.
        channel: of `fit_channel`.

    Returns:
        Probabilities (N, C) of the dtype of `logits`.

    Raises:
        UserError: the shapes do not fit.

    Example:
        >>> channel = fit_channel(6 * torch.eye(2).repeat(50, 1), torch.tensor([0, 1]).repeat(50))
        >>> posterior_labels(torch.tensor([[6.0, 0.0]]), torch.tensor([0]), channel).argmax(-1)
        tensor([0])
    """
    _, labels = _checked(logits, labels)
    if logits.shape[1] != len(channel.matrix):
        raise UserError(f"Expected logits of {len(channel.matrix)} classes, as the channel, but got {logits.shape[1]}.")
    columns = channel.matrix.T / channel.matrix.sum(0).clamp(min=_TINY).unsqueeze(1)
    prior = columns[labels].to(logits.device)
    return inner.optimal_labels(logits.double(), beta=channel.temperature, prior=prior).to(logits.dtype)


def channel_losses(logits: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
    """-log sum_k p_k C[k, label] of each example, (N,) float64, by a temperature and a channel of the other half.

    Both halves are fitted and scored. The channel is symmetric or class-dependent, whichever predicts better.

    Args:
        logits: (N, C), of networks that did not train on these examples.
        labels: class indices (N,), as given in the data.
        seed: draws the halves.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]]).repeat(50, 1)
        >>> channel_losses(logits, torch.tensor([0, 1]).repeat(50)).mean().item() < 0.01
        True
    """
    predictions = _Predictions(*_checked(logits, labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    names = ("symmetric", f"class {_STRENGTH:g}")
    losses = torch.empty(len(names), len(labels), dtype=torch.float64, device="cpu")
    for half in range(2):
        fitted, scored = predictions[order[1 - half :: 2]], order[half::2]
        scales = _scales(fitted, names)
        for row, name in zip(losses, names, strict=True):
            matrix = _fit(fitted.at(scales[name]), name)
            row[scored] = -predictions[scored].at(scales[name]).log_likelihood(matrix)
    return losses[losses.mean(-1).argmin()]


class _Predictions:
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

    def __getitem__(self, rows: Tensor) -> _Predictions:
        part = object.__new__(_Predictions)
        part.logits, part.labels = self.logits[rows], self.labels[rows]
        part.columns = None if self.columns is None else self.columns[rows]
        return part

    def few(self) -> _Predictions:
        """So many of the examples, evenly spaced, as a temperature needs."""
        step = math.ceil(self.logits.numel() / MAX_ENTRIES)
        return self if step == 1 else self[torch.arange(0, len(self.labels), step, device="cpu")]

    def own(self, scale: float) -> Tensor:
        """The predicted probability of the label as given, (N,)."""
        scaled = self.logits * scale
        return (scaled.gather(1, self.labels.unsqueeze(1)).squeeze(1) - scaled.logsumexp(-1)).exp()

    def at(self, scale: float) -> _Scaled:
        """The probabilities at an inverse temperature."""
        if self.columns is None:
            return _Scaled(scale, (self.logits * scale).softmax(-1), self.labels, None, self.logits.shape[1])
        p = [
            (rows.gather(1, columns) * scale - (rows * scale).logsumexp(-1, keepdim=True)).exp()
            for rows, columns in zip(self.logits.split(_CHUNK), self.columns.split(_CHUNK), strict=True)
        ]
        return _Scaled(scale, torch.cat(p), self.labels, self.columns, self.logits.shape[1])


@dataclass(frozen=True)
class _Scaled:
    """Probabilities `p` (N, k) of the classes `columns` (N, k), None for all; the others share the rest."""

    scale: float
    p: Tensor
    labels: Tensor
    columns: Tensor | None
    classes: int

    def __getitem__(self, rows: Tensor) -> _Scaled:
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


def _names(kind: str) -> tuple[str, ...]:
    """The candidates: a kind, with the strength of the Dirichlet prior if it is class-dependent."""
    by_class = tuple(f"class {strength:g}" for strength in STRENGTHS)
    return {"symmetric": ("symmetric",), "class": by_class, "auto": ("symmetric", *by_class)}[kind]


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def _scales(predictions: _Predictions, names: Sequence[str]) -> dict[str, float]:
    """The inverse temperature of each candidate among `names`."""
    symmetric = _symmetric_scale(predictions.few(), predictions.logits.shape[1])
    return {name: symmetric if name == "symmetric" else _class_scale(predictions, name, symmetric) for name in names}


def _symmetric_scale(few: _Predictions, classes: int) -> float:
    """The inverse temperature of the largest likelihood with one noise rate."""

    def likelihood(scale: float) -> float:
        p = few.own(scale)
        return _mixture(p, _noise_rate(p, classes), classes).log().mean().item()

    best = max(_INVERSE_TEMPERATURES, key=likelihood)
    return _golden(likelihood, best / 1.4, best * 1.4)


def _class_scale(predictions: _Predictions, name: str, start: float) -> float:
    """The inverse temperature of the largest likelihood with a class-dependent channel.

    Channels are fitted around `start`; then a search for the temperature and EM of the channel alternate.
    """
    few = predictions.few()

    def fitted(scale: float) -> tuple[float, Tensor]:
        data = predictions.at(scale)
        matrix = _fit(data, name)
        return data.log_likelihood(matrix).mean().item(), matrix

    factors = _FACTORS if predictions.columns is None else _FEW_FACTORS
    fits = {start * factor: fitted(start * factor) for factor in factors}
    scale = max(fits, key=lambda scale: fits[scale][0])
    matrix = fits[scale][1]
    for _ in range(_ROUNDS):
        scale = _golden(
            lambda trial, matrix=matrix: few.at(trial).log_likelihood(matrix).mean().item(), scale / 1.3, scale * 1.3
        )
        matrix = fitted(scale)[1]
    return scale


def _fit(data: _Scaled, name: str) -> Tensor:
    """The channel (C, C) of the largest likelihood: one noise rate, or by EM from a rate above 0 (there EM stays)."""
    strength, rate = name.partition(" ")[2], _noise_rate(data.own, data.classes)
    if not strength:
        return symmetric_channel(data.classes, rate)
    matrix = symmetric_channel(data.classes, max(rate, _FIRST_RATE))
    for _ in range(_EM_STEPS):
        before, matrix = matrix, data.maximise(*data.posterior(matrix), float(strength))
        if float((matrix - before).abs().max()) < _TOLERANCE:
            break
    return matrix


def _share_of_wrong(data: _Scaled, matrix: Tensor, name: str, seed: int) -> tuple[float, tuple[float, float]]:
    """(the share of wrong labels, its 95% interval by bootstrap over examples at the fitted temperature).

    Resampled examples repeat, which a class-dependent channel fits too well: the interval is centred on the share.
    """
    generator, own, strength = torch.Generator().manual_seed(seed), data.own, name.partition(" ")[2]

    def share(weights: Tensor) -> float:
        if not strength:
            return _noise_rate(own, data.classes, weights)
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


def _mixture(p: Tensor, rate: float, classes: int) -> Tensor:
    """P(label) with one noise rate, from the predicted probability of the label."""
    return (1 - rate) * p + rate * (1 - p) / max(1, classes - 1) + _TINY


def _noise_rate(p: Tensor, classes: int, weights: Tensor | None = None) -> float:
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


def _golden(value: Callable[[float], float], low: float, high: float) -> float:
    """The argument in [low, high] with the largest value, by golden section on a log scale."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = math.log(low), math.log(high)
    inside = [right - ratio * (right - left), left + ratio * (right - left)]
    values = [value(math.exp(point)) for point in inside]
    for _ in range(_GOLDEN_STEPS):
        if values[0] > values[1]:
            right, inside[1], values[1] = inside[1], inside[0], values[0]
            inside[0] = right - ratio * (right - left)
            values[0] = value(math.exp(inside[0]))
        else:
            left, inside[0], values[0] = inside[0], inside[1], values[1]
            inside[1] = left + ratio * (right - left)
            values[1] = value(math.exp(inside[1]))
    return math.exp((left + right) / 2)


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(logits float64, labels int64) on the CPU."""
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.dtype.is_floating_point or labels.is_complex():
        raise UserError(
            "Expected argument `labels` to be class indices (N,): a noise channel is of examples with one class each, "
            "not of probabilities or sequences."
        )
    checks.floating("logits", logits)
    if logits.dim() != 2 or logits.shape[1] < 2 or len(logits) != len(labels) or not len(labels):
        raise UserError(
            f"Expected argument `logits` to be ({len(labels)}, C) with at least two classes, but got "
            f"{tuple(logits.shape)}."
        )
    logits, labels = logits.detach().double().cpu(), labels.long().cpu()
    if not bool(logits.isfinite().all()):
        raise UserError("Expected finite logits, but some are NaN or infinite.")
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise UserError(f"Expected argument `labels` from 0 to {logits.shape[1] - 1}, but got others.")
    return logits, labels
