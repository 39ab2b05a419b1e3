"""What the sweep of a loss knows of each row besides the loss.

Implementations write it into a buffer (5, N) in working precision, in the order below; it holds NaN for rows of weight
0, which are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from labo import inner
from labo.kernels.options import Options
from labo.kernels.reference import capped, capped_slope
from labo.reduction import Rows

NLL, LOGSUMEXP, ENTROPY, LABEL_ENTROPY, CORRECT = range(5)
COUNT = 5


class LossStatistics(NamedTuple):
    """The loss, and what it says of each row; tensors of the shape of the indices unless said otherwise.

    They are in float32 (float64 for float64 logits) and in nats, and have no gradient except `loss`, and with
    differentiable=True `nll` and `logsumexp`. Rows that are ignored or have weight 0 are NaN (`correct`: False), so
    that `nll.nanmean()` is the mean over the others.

    Args:
        loss: the loss, as it is returned without statistics; includes the z-loss.
        nll: -log p of the target: the cross-entropy without regularization and weights. exp(nll.nanmean()) is the
            perplexity. With probabilities t as target, CE(t, p).
        logsumexp: the log of the normaliser of the prediction p, of the soft-capped logits.
        entropy: of p.
        correct: bool; whether no class has a larger logit than the target (with probabilities, than their largest).
        label_entropy: of the optimal label q*; NaN if the prior has no mass on an unmasked class.
        z_loss: the part of `loss` that is z_loss * logsumexp², reduced like it and without gradient.

    Example:
        >>> import labo
        >>> logits, target = torch.zeros(2, 4), torch.tensor([0, -100])
        >>> statistics = labo.labo_cross_entropy(logits, target, return_statistics=True)
        >>> statistics.nll, statistics.correct
        (tensor([1.3863,    nan]), tensor([ True, False]))
    """

    loss: Tensor
    nll: Tensor
    logsumexp: Tensor
    entropy: Tensor
    correct: Tensor
    label_entropy: Tensor
    z_loss: Tensor


class Wanted(NamedTuple):
    """Whether statistics are wanted, and whether two of them have a gradient."""

    statistics: bool = False
    differentiable: bool = False


NOTHING = Wanted()


def new_buffer(row_weights: Tensor) -> Tensor:
    """A buffer (5, N) of NaN, for rows of these weights."""
    return row_weights.new_full((COUNT, len(row_weights)), math.nan)


def as_statistics(
    loss: Tensor, buffer: Tensor, rows: Rows, row_weights: Tensor, options: Options, reduction: str, wanted: Wanted
) -> LossStatistics:
    """The statistics for the user, from the buffer and the final weights of the rows."""
    fixed = buffer.detach() if wanted.differentiable else buffer
    z_loss = _z_loss(loss, fixed, row_weights.detach(), options.z_loss, reduction == "none")
    shaped = fixed if len(rows.shape) == 1 else fixed.reshape(COUNT, *rows.shape)
    nll, logsumexp, entropy, label_entropy, correct = shaped.unbind()
    if wanted.differentiable:
        nll, logsumexp = buffer[NLL].reshape(rows.shape), buffer[LOGSUMEXP].reshape(rows.shape)
    return LossStatistics(loss, nll, logsumexp, entropy, correct == 1, label_entropy, z_loss)


def _z_loss(loss: Tensor, buffer: Tensor, row_weights: Tensor, strength: float, per_row: bool) -> Tensor:
    """The part of the loss that is the z-loss, of its shape."""
    if not strength:
        return torch.zeros_like(loss, requires_grad=False)
    losses = torch.where(row_weights == 0, 0.0, strength * row_weights * buffer[LOGSUMEXP].square())
    return (losses.reshape(loss.shape) if per_row else losses.sum()).to(loss.dtype)


def row_gradients(grad_statistics: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients (N,) in nll and logsumexp; 0 in rows of weight 0, whose statistics are NaN."""
    nll, logsumexp = torch.where(row_weights == 0, 0.0, grad_statistics[:ENTROPY])
    return nll, logsumexp


class StatisticsGradient:
    """The gradient in the logits of nll, p - onehot(target), and of logsumexp, p; a solver, see autograd.py.

    It is that of the cross-entropy without regularization, and the part of logsumexp at the target.
    """

    def __init__(self, solve: Callable[..., tuple[Tensor, Tensor | None]], nll: Tensor, logsumexp: Tensor) -> None:
        self.solve, self.nll, self.logsumexp = solve, nll, logsumexp

    def of(self, part: slice | Tensor) -> StatisticsGradient:
        """The solver of a subset of the rows."""
        return StatisticsGradient(self.solve, self.nll[part], self.logsumexp[part])

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        row_weights: Tensor,
        options: Options,
        *,
        gradient: bool,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Like `blocked.solve`."""
        cap, has_classes = options.softcap, target.dim() == 1
        index = target.unsqueeze(-1)
        at_target = self.logsumexp.unsqueeze(-1) * (1 if has_classes else target)
        if cap is not None:  # read before `out` may overwrite the logits
            chosen = inner.working(logits.gather(-1, index) if has_classes else logits)
            at_target = at_target * capped_slope(capped(chosen, cap), cap)
        at_target = torch.where(self.logsumexp.unsqueeze(-1) == 0, 0.0, at_target).to(logits.dtype)
        weights = self.nll + self.logsumexp
        losses, grads = self.solve(logits, target, weights, Options(0.0, math.inf, softcap=cap), gradient=True, out=out)
        if grads is not None:
            grads = grads.scatter_add_(-1, index, at_target) if has_classes else grads.add_(at_target)
        return losses, grads
