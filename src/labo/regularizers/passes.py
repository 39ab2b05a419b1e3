"""Logits of a second forward pass as rows, and the divergence of two predictions."""

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


def rows_of(outputs: Tensor, rows: Rows, source: str, *, count: int | None = None) -> Tensor:
    """The logits of a network as (N, C) in working precision; `count` is N if it differs from that of `rows`.

    Raises:
        UserError: the number of classes or rows does not fit; the message names the `source` of the logits.
    """
    size, classes = rows.raw.shape
    size = size if count is None else count
    # The loss takes classes in dimension 1; if the network has them last, its caller has moved or flattened them.
    layouts = [outputs.movedim(1, -1), outputs] if outputs.dim() > 2 and len(rows.shape) > 1 else [outputs]
    if len(layouts) > 1 and layouts[0].shape == layouts[1].shape:
        raise UserError(
            f"Expected {source} to return logits (rows, {classes}), one row for each target, because classes could be "
            f"dimension 1 or the last one of shape {tuple(outputs.shape)}."
        )
    last = next((layout for layout in layouts if layout.shape[-1] == classes), None)
    if last is None:
        raise UserError(
            f"Expected {source} to have {classes} classes, as the logits, but it has {layouts[0].shape[-1]}."
        )
    if last.numel() != size * classes:
        raise UserError(
            f"Expected {source} to return logits for {size} rows of {classes} classes, but got shape "
            f"{tuple(outputs.shape)}."
        )
    return inner.working(last.reshape(-1, classes))


def masked_as(logits: Tensor, other: Tensor) -> Tensor:
    """`logits` with the classes masked that `other` masks, so that the labels give them no mass."""
    return torch.where(other == -math.inf, -math.inf, logits)


def constant_logits(network: nn.Module, inputs: Any, rows: Rows, source: str) -> Tensor:
    """The logits (N, C) of a network in its present mode, without gradient, masked like those of the batch."""
    with torch.no_grad():
        outputs = networks.forward(network, on_device(inputs, rows.raw.device))
        return masked_as(rows_of(outputs, rows, source), inner.working(rows.logits))


def divergence(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL(softmax(labels / temperature) || softmax(logits / temperature)) of each row, (N,).

    Both arguments are logits (N, C); `labels` are constant for the gradient.
    """
    z, t = logits / temperature, labels.detach() / temperature
    log_q = reference.masked_log_softmax(t)
    q = log_q.exp()
    far = reference.cross_entropy(q, reference.masked_log_softmax(z)) + torch.special.xlogy(q, q).sum(-1)
    # If the two are close, as at high temperature, this is a small difference of two large numbers, and the rounding
    # error is multiplied by temperature ** 2. With off = t - z, shifted to mean 0 under q, the divergence is
    # log(sum q exp(-off)) = log1p(sum q (exp(-off) - 1 + off)), whose terms are as small as the result.
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


def to_device_of(network: nn.Module, rows: Rows) -> nn.Module:
    """The network, moved to the device of the logits if necessary."""
    first = next(network.parameters(), None)
    return network if first is None or first.device == rows.raw.device else network.to(rows.raw.device)
