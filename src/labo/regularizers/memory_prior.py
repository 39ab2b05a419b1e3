"""LABO's prior from a memory: what the network has said of each example, sharpened."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from labo import checks, functional, inner
from labo.kernels import reference
from labo.reduction import Rows
from labo.regularizers.prediction_memory import PredictionMemory


class MemoryPrior(nn.Module):
    """The prior r = m ** sharpness / sum(m ** sharpness) of each example, m from a `PredictionMemory`.

    The loss of an example with smoothed target t = (1 - epsilon) * target + epsilon / C is
    (1 - alpha) * CE(t, p) + alpha * V(logits; r), whose gradient is p - (1 - alpha) * t - alpha * q*. The prediction
    is remembered afterwards, in training alone.

    Args:
        method: the name of the method, for errors.
        sharpness: above 0.
        epsilon: in [0, 1].
        decay, top: as in `PredictionMemory`.
    """

    def __init__(self, method: str, *, sharpness: float, epsilon: float, decay: float, top: int | None = None) -> None:
        super().__init__()
        checks.finite_positive("sharpness", sharpness)
        checks.between("epsilon", epsilon, 0.0, 1.0)
        self.sharpness, self.epsilon = sharpness, epsilon
        self.memory = PredictionMemory(method, decay=decay, top=top)

    def options(self) -> dict[str, Any]:
        """The options that it was made with."""
        memory = {"decay": self.memory.decay, "epsilon": self.epsilon, "top": self.memory.top}
        return {"sharpness": self.sharpness, **memory}

    @torch.no_grad()
    def priors(self, rows: Rows, examples: int) -> Tensor:
        """The priors (N, C) of the rows, in working precision; the uniform one for ignored rows."""
        self.memory.prepare(examples, rows)
        return self._priors(self._distributions(self.memory.places(rows, examples), rows))

    def losses(
        self, rows: Rows, examples: int, alpha: float | Tensor, beta: float | Tensor, value: str, training: bool
    ) -> Tensor:
        """The loss of each row, (N,), in working precision; in training the predictions are remembered."""
        with torch.no_grad():
            self.memory.prepare(examples, rows)
            places = self.memory.places(rows, examples)
            if training:
                self.memory.check_labels(places, rows)
            m = self._distributions(places, rows)
            prior = self._priors(m)
        losses, p = None, None
        if not isinstance(alpha, Tensor) and not isinstance(beta, Tensor) and beta == math.inf:
            losses, p = self._at_once(rows, prior, alpha)
            if losses is None:
                losses = self._towards_prior(rows, prior, alpha)
        else:
            losses = self._general(rows, prior, alpha, beta, value)
        if training:
            with torch.no_grad():
                p = inner.belief_of_rows(inner.working(rows.logits)) if p is None else p
                self.memory.remember(places, m, p, rows)
        return losses

    def _distributions(self, places: Tensor, rows: Rows) -> Tensor:
        return self.memory.distributions(places, rows.raw.shape[-1]).to(reference.working_dtype(rows.raw))

    def _priors(self, m: Tensor) -> Tensor:
        powered = _power(m, self.sharpness)
        return powered.div_(powered.sum(-1, keepdim=True).clamp_(min=torch.finfo(m.dtype).tiny))

    def _at_once(self, rows: Rows, prior: Tensor, alpha: float) -> tuple[Tensor | None, Tensor | None]:
        """(losses, p) of class indices with finite logits on a CPU, in few operations; (None, None) for others."""
        if rows.raw.device.type != "cpu" or rows.has_probabilities or not checks.plain(rows.raw):
            return None, None
        with torch.no_grad():
            logits = inner.working(rows.logits)
            share = (1 - alpha) * (1 - self.epsilon)
            label = prior.mul(alpha).add_((1 - alpha) * self.epsilon / max(1, logits.shape[-1]))
            label.scatter_(-1, rows.target.unsqueeze(-1), share, reduce="add")
            log_p = torch.log_softmax(logits, -1)
            losses = torch.linalg.vecdot(label, log_p).neg_()
            if not math.isfinite(losses.sum().item()):  # masked classes, or NaN
                return None, None
            p = log_p.exp_()
        if not (torch.is_grad_enabled() and rows.logits.requires_grad):
            return losses, p
        return _CrossEntropy.apply(rows.logits, losses, p, label), p

    def _towards_prior(self, rows: Rows, prior: Tensor, alpha: float) -> Tensor:
        """At beta = inf: the cross-entropy of target, uniform distribution and prior, mixed."""
        strength = 1 - (1 - alpha) * (1 - self.epsilon)
        if not strength:
            return functional.soft_label_losses(rows, prior, 0.0)
        with torch.no_grad():
            logits = inner.working(rows.logits)
            beta = inner.over_rows("beta", math.inf, logits)
            labels = inner.labels_of_rows(logits, beta, prior).mul_(alpha / strength)
            if self.epsilon:
                labels += inner.labels_of_rows(logits, beta, None).mul_((1 - alpha) * self.epsilon / strength)
        return functional.soft_label_losses(rows, labels, strength)

    def _general(self, rows: Rows, prior: Tensor, alpha: float | Tensor, beta: float | Tensor, value: str) -> Tensor:
        smoothed = functional.labo_losses(rows, functional.row_options(rows, self.epsilon, math.inf, None))
        options = functional.row_options(rows, 1.0, beta, None, value)
        regularized = reference.row_losses(rows.logits, rows.target, **{**options.named(), "prior": prior})
        return reference.mix(smoothed, regularized, rows.per_row("alpha", alpha))


class _CrossEntropy(torch.autograd.Function):
    """Losses -sum(label * log p) that are known already, (N,), with their gradient p - label in the logits (N, C)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, losses: Tensor, p: Tensor, label: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.p, ctx.label = p, label
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        p = torch.softmax(inner.working(logits), -1) if torch.is_grad_enabled() else ctx.p
        return ((p - ctx.label) * grads[0].unsqueeze(-1)).to(logits.dtype), None, None, None


def _power(m: Tensor, exponent: float) -> Tensor:
    """The power of m, new; a general exponent takes five times as long as these."""
    if exponent == 1.0:
        return m.clone()
    if exponent == 1.5:
        return m.sqrt().mul_(m)
    return m * m if exponent == 2.0 else m.pow(exponent)
