"""What another forward pass gives, as rows beside those of the batch, and how far two predictions are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from labo import inner, networks
from labo.errors import UserError
from labo.kernels import reference
from labo.reduction import Rows


def rows_of(found: Tensor, rows: Rows, whose: str, *, count: int | None = None) -> Tensor:
    """The logits that a network gave as (N, C) in working precision; `count` is N where it is not that of `rows`.

    Raises:
        UserError: they are of other classes or of another number of rows; `whose` says whose they are.
    """
    size, classes = rows.raw.shape
    size = size if count is None else count
    # The loss takes classes in dimension 1; a caller whose network has them last has moved or flattened them.
    shapes = [found.movedim(1, -1), found] if found.dim() > 2 and len(rows.shape) > 1 else [found]
    last = next((shape for shape in shapes if shape.shape[-1] == classes), None)
    if last is None:
        raise UserError(f"Expected {whose} to have {classes} classes, as the logits, but it has {shapes[0].shape[-1]}.")
    if last.numel() != size * classes:
        raise UserError(
            f"Expected {whose} to give logits of {size} rows of {classes} classes, but got shape {tuple(found.shape)}."
        )
    return inner.working(last.reshape(-1, classes))


def masked_as(logits: Tensor, other: Tensor) -> Tensor:
    """`logits` with the classes masked that `other` masks: a class that cannot be is nobody's label."""
    return torch.where(other == -math.inf, -math.inf, logits)


def constant_logits(network: nn.Module, inputs: Any, rows: Rows, whose: str) -> Tensor:
    """The logits (N, C) of a network in the mode it is in, without gradient, masked as the batch's."""
    with torch.no_grad():
        found = networks.forward(network, on_device(inputs, rows.raw.device))
        return masked_as(rows_of(found, rows, whose), inner.working(rows.logits))


def divergence(logits: Tensor, towards: Tensor, temperature: float) -> Tensor:
    """KL(softmax(towards / temperature) || softmax(logits / temperature)) of each row, (N,); `towards` is constant."""
    z, t = logits / temperature, towards.detach() / temperature
    log_q = reference.masked_log_softmax(t)
    q = log_q.exp()
    far = reference.cross_entropy(q, reference.masked_log_softmax(z)) + torch.special.xlogy(q, q).sum(-1)
    # Where the two are close, as at high temperature, that is a small difference of two large numbers, and what is
    # lost is multiplied by temperature ** 2. With off = t - z, shifted to mean 0 under q, the divergence is
    # log(sum q exp(-off)) = log1p(sum q (exp(-off) - 1 + off)), whose terms are as small as it is.
    masked = z == -math.inf
    off = torch.where(masked | (t == -math.inf), 0.0, t - z)
    off = off - (q * off).sum(-1, keepdim=True)
    close = ((off.abs() <= 1) & (masked | (t > -math.inf))).all(-1)
    off = torch.where(close.unsqueeze(-1) & ~masked, off, 0.0)
    return torch.where(close, torch.log1p((q * (torch.expm1(-off) + off)).sum(-1)), far)


def on_device(inputs: Any, device: torch.device) -> Any:
    """The inputs of a batch (a tensor, a mapping or a tuple of them) on a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: on_device(value, device) for name, value in inputs.items()}
    return tuple(on_device(value, device) for value in inputs) if isinstance(inputs, tuple) else inputs


def beside(network: nn.Module, rows: Rows) -> nn.Module:
    """The network, moved to the device of the logits if it is not there."""
    first = next(network.parameters(), None)
    return network if first is None or first.device == rows.raw.device else network.to(rows.raw.device)
