"""The likelihood of noisy labels under predictions and a noise channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The grid of inverse temperatures and noise rates.
_SCALES = torch.linspace(math.log(0.25), math.log(8.0), 14, dtype=torch.float64, device="cpu").exp()
_NOISE_RATES = torch.linspace(0.0, 0.8, 33, dtype=torch.float64, device="cpu")
_EM_STEPS, _STRENGTH = 30, 10.0
# A class-dependent channel has a parameter for each pair of classes, so it needs few classes.
MAX_CLASSES = 100
_TINY = 1e-12


def channel_losses(logits: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
    """-log sum_k p_k C[k, label] of each example, (N,) float64, p = softmax(scale * logits).

    The scale and the channel C[k, j] = P(label j | true class k) are fitted on one half of the examples and scored on
    the other, for both halves. The channel is symmetric (one noise rate) or class-dependent (EM, with a Dirichlet prior
    of strength 10 towards the symmetric one), whichever predicts better.

    Args:
        logits: (N, C), of networks that did not train on these examples.
        labels: class indices (N,), as given in the data.
        seed: draws the halves.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]]).repeat(50, 1)
        >>> channel_losses(logits, torch.tensor([0, 1]).repeat(50)).mean().item() < 0.01
        True
    """
    logits = logits.double()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    losses = torch.empty(2 if logits.shape[1] <= MAX_CLASSES else 1, len(labels), dtype=torch.float64, device="cpu")
    for half in range(2):
        fitted, scored = order[1 - half :: 2], order[half::2]
        channels = [_symmetric(logits[fitted], labels[fitted])]
        if len(losses) > 1:
            channels.append(_class_dependent(logits[fitted], labels[fitted]))
        for row, (scale, channel) in zip(losses, channels, strict=True):
            p = (logits[scored] * scale).softmax(-1)
            row[scored] = -((p * channel[:, labels[scored]].T).sum(-1) + _TINY).log()
    return losses[losses.mean(-1).argmin()]


def _symmetric(logits: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """(scale, channel (C, C)) with the highest likelihood among `_SCALES` and `_NOISE_RATES`."""
    classes = logits.shape[1]
    p = torch.stack([(logits * scale).softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1) for scale in _SCALES])
    mean = torch.stack([((1 - rate) * p + rate / classes + _TINY).log().mean(-1) for rate in _NOISE_RATES], -1)
    scale, rate = divmod(int(mean.argmax()), len(_NOISE_RATES))
    return float(_SCALES[scale]), _channel(classes, float(_NOISE_RATES[rate]))


def _class_dependent(logits: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """(scale, channel (C, C)) by EM, with the highest likelihood among `_SCALES`."""
    classes, best = logits.shape[1], None
    for scale in _SCALES.tolist():
        p, channel = (logits * scale).softmax(-1), _channel(classes, 0.2)
        for _ in range(_EM_STEPS):
            posterior = p * channel[:, labels].T
            posterior /= posterior.sum(-1, keepdim=True) + _TINY
            counts = torch.zeros(classes, classes, dtype=torch.float64, device="cpu").index_add_(1, labels, posterior.T)
            rate = 1 - float(counts.trace() / counts.sum())
            symmetric = torch.full((classes, classes), rate / max(1, classes - 1), dtype=torch.float64, device="cpu")
            channel = counts + _STRENGTH * symmetric.fill_diagonal_(1 - rate)
            channel /= channel.sum(-1, keepdim=True)
        value = ((p * channel[:, labels].T).sum(-1) + _TINY).log().mean().item()
        if best is None or value > best[0]:
            best = value, scale, channel
    assert best is not None
    return best[1], best[2]


def _channel(classes: int, rate: float) -> Tensor:
    """The channel that replaces each label by a uniformly drawn one with probability `rate`."""
    uniform = torch.full((classes, classes), rate / classes, dtype=torch.float64, device="cpu")
    return uniform + (1 - rate) * torch.eye(classes, dtype=torch.float64, device="cpu")
