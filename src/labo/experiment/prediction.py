"""What a classifier says of features, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from labo.networks import logits_of

# What predicts at once: so many examples, and fewer where they would be more bytes than this as the network's floats.
PREDICTION_ROWS, PREDICTION_BYTES = 1024, 2**26


def pieces(features: Any) -> Iterator[Tensor]:
    """Features (N, …) in order, in pieces that can be predicted at once; pictures that are still encoded are decoded.

    Example:
        >>> [len(piece) for piece in pieces(torch.zeros(2, 3, 2048, 2048, dtype=torch.uint8))]
        [1, 1]
    """
    row = 4 * math.prod(features.shape[1:])
    yield from features.split(max(1, min(PREDICTION_ROWS, PREDICTION_BYTES // max(1, row))))


def predict(model: nn.Module, features: Any) -> Tensor:
    """Logits (N, C) of features (N, …), float32 on the CPU, in evaluation mode; taken in `pieces`."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad():
        parts = [logits_of(model(piece.to(device))).float().cpu() for piece in pieces(features)]
    model.train(training)
    return torch.cat(parts)
