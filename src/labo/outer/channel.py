"""The noise channel C[k, j] = P(label j | true class k), fitted to predictions that have not seen the labels.

The predictions p = softmax(logits / temperature) of cross-fitted networks and the channel give the likelihood of the
label as written, sum_k p_k C[k, label]. Temperature and channel maximise it by EM. The posterior of the true class,
proportional to p_k C[k, label], is the optimal label of LABO's inner problem with the prior C[:, label] (Bayes' rule).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labo import checks, inner
from labo.errors import UserError, unknown
from labo.outer import em
from labo.splitting import equal_parts

# The candidates of a kind of channel: the strengths of the Dirichlet prior of a class-dependent one.
_BY_KIND = {"symmetric": ("symmetric",), "class": ("class 2", "class 20")}
KINDS = tuple(_BY_KIND)
# Those in `channel_losses`.
_CANDIDATES = ("symmetric", "class 10")
# Below this mean confidence, ambiguous examples are taken for wrong labels.
MIN_CONFIDENCE = 0.8
# An interval from 0 to this and more says nothing.
MAX_CLEAN = 0.1


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
        kept: how many logits of each example were used, the largest; 0 for all.
    """

    matrix: Tensor
    temperature: float
    kind: str
    wrong: float
    interval: tuple[float, float]
    held_out: dict[str, float]
    confidence: float
    kept: int = 0

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
    def clean(self) -> bool:
        """Whether the interval says that no labels are wrong."""
        low, high = self.interval
        return low == 0 and high < MAX_CLEAN

    @property
    def sentence(self) -> str:
        """The share of wrong labels in one sentence."""
        low, high = self.interval
        if self.clean:
            return f"No label noise found: at most {high:.1%} of the labels are wrong (95% interval)."
        if low == 0:
            return (
                f"Too few examples to tell: {self.wrong:.1%} of the labels are wrong (95% interval 0% to {high:.1%})."
            )
        share = f"{self.wrong:.1%} (95% interval {low:.1%} to {high:.1%})"
        limited = f" Only the {self.kept} largest logits of an example were used." if self.kept else ""
        kind = "the same for all classes" if self.kind == "symmetric" else "differently by class"
        return (
            f"About {share} of the labels are wrong, {kind}." + (f" {self.warning}" if self.warning else "") + limited
        )

    def as_json(self) -> dict[str, Any]:
        """The channel as stored in records."""
        return {
            "kind": self.kind,
            "temperature": round(self.temperature, 6),
            "wrong": round(self.wrong, 6),
            "interval": [round(end, 6) for end in self.interval],
            "clean": self.clean,
            "confidence": round(self.confidence, 6),
            "held_out": {name: round(value, 6) for name, value in self.held_out.items()},
            **({"kept": self.kept} if self.kept else {}),
            "matrix": [[round(value, 6) for value in row] for row in self.matrix.tolist()],
            "sentence": self.sentence,
        }


def fit_channel(logits: Tensor, labels: Tensor, *, kind: str = "auto", folds: int = 5, seed: int = 0) -> Channel:
    """Temperature and noise channel of the largest likelihood of the labels as given.

    The channel is symmetric, or class-dependent with a Dirichlet prior of strength 2 or 20 towards the symmetric one.
    Kind and strength are those that predict the labels of held-out examples best, over `folds` parts.

    Beyond `em.MAX_ENTRIES` logits, only the largest of each example (at least 8) are kept, which bounds memory and
    time; the mass of the others counts as predicted with the symmetric noise rate.

    Args:
        logits: (N, C) floating point, of networks that did not train on these examples (cross-fitting): networks that
            have seen the labels predict them too well.
        labels: class indices (N,), as given in the data.
        kind: "auto", "symmetric" or "class".
        folds: the number of held-out parts, at least 2.
        seed: draws the parts and the bootstrap.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit; the message names it.

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
    predictions = em.Predictions(logits, labels)
    names = _BY_KIND[kind] if kind in _BY_KIND else tuple(itertools.chain.from_iterable(_BY_KIND.values()))
    scaled = {name: predictions.at(scale) for name, scale in em.scales(predictions, names).items()}
    held_out = dict.fromkeys(names, 0.0)
    if len(names) > 1:
        parts = equal_parts(labels, folds, seed)
        for number, part in enumerate(parts):
            others = torch.cat(parts[:number] + parts[number + 1 :])
            for name in names:
                matrix = em.fit(scaled[name][others], name)
                held_out[name] += float(scaled[name][part].log_likelihood(matrix).sum()) / len(labels)
    name = max(held_out, key=held_out.__getitem__)
    data = scaled[name]
    matrix = em.fit(data, name)
    wrong, interval = em.share_of_wrong(data, matrix, name, seed)
    return Channel(
        matrix=matrix,
        temperature=1 / data.scale,
        kind=name.partition(" ")[0],
        wrong=wrong,
        interval=interval,
        held_out=held_out if len(names) > 1 else {},
        confidence=data.p.amax(-1).mean().item(),
        kept=0 if predictions.columns is None else predictions.columns.shape[1],
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
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> channel = fit_channel(6 * torch.eye(2).repeat(50, 1), torch.tensor([0, 1]).repeat(50))
        >>> posterior_labels(torch.tensor([[6.0, 0.0]]), torch.tensor([0]), channel).argmax(-1)
        tensor([0])
    """
    _, labels = _checked(logits, labels)
    if logits.shape[1] != len(channel.matrix):
        raise UserError(f"Expected logits of {len(channel.matrix)} classes, as the channel, but got {logits.shape[1]}.")
    columns = channel.matrix.T / channel.matrix.sum(0).unsqueeze(1)
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
    predictions = em.Predictions(*_checked(logits, labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    losses = torch.empty(len(_CANDIDATES), len(labels), dtype=torch.float64, device="cpu")
    for half in range(2):
        fitted, scored = predictions[order[1 - half :: 2]], order[half::2]
        scales = em.scales(fitted, _CANDIDATES)
        for row, name in zip(losses, _CANDIDATES, strict=True):
            matrix = em.fit(fitted.at(scales[name]), name)
            row[scored] = -predictions[scored].at(scales[name]).log_likelihood(matrix)
    return losses[losses.mean(-1).argmin()]


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(logits float64, labels int64) on the CPU."""
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.dtype.is_floating_point or labels.is_complex():
        raise UserError(
            "Expected argument `labels` to be class indices (N,): a noise channel is of examples with one class each, "
            "not of probabilities or sequences."
        )
    checks.predictions("logits", logits, labels, "labels")
    if logits.shape[1] < 2:
        raise UserError(f"Expected logits of at least two classes, but got shape {tuple(logits.shape)}.")
    return logits.detach().double().cpu(), labels.long().cpu()
