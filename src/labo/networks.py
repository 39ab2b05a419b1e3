"""How regularizers use a network: forward passes, frozen statistics, frozen copies."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def logits_of(outputs: Any) -> Tensor:
    """The logits among a model's outputs: a tensor, a mapping or object with `logits`, or the first of a tuple."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    logits = getattr(outputs, "logits", None)
    if logits is None and isinstance(outputs, tuple) and outputs and isinstance(outputs[0], Tensor):
        logits = outputs[0]
    if logits is None:
        raise ValueError(f"Expected the model to return logits, but got {type(outputs).__name__} without them.")
    return logits


def forward(model: nn.Module, inputs: Any) -> Tensor:
    """The logits of a batch's inputs: a mapping is the model's keyword arguments, a tuple its arguments."""
    if isinstance(inputs, Mapping):
        return logits_of(model(**inputs))
    return logits_of(model(*inputs) if isinstance(inputs, tuple) else model(inputs))


@contextmanager
def frozen_batch_norm_stats(model: nn.Module) -> Iterator[nn.Module]:
    """Within this context the model normalizes by batch statistics, but does not update its running statistics."""
    norms = [m for m in model.modules() if isinstance(m, _NORMS) and m.track_running_stats and m.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield model
    finally:
        for norm in norms:
            norm.track_running_stats = True


class FrozenCopy(nn.Module):
    """A frozen copy of a network: in evaluation mode, without gradients, saved with its owner."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenCopy:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's logits, float32 or wider."""
        with torch.no_grad():
            logits = logits_of(self.model(*args, **kwargs))
        return logits if logits.dtype == torch.float64 else logits.float()

    @torch.no_grad()
    def ema_update(self, model: nn.Module, *, decay: float = 0.0) -> None:
        """Set parameters to decay * own + (1 - decay) * those of `model`, and copy its buffers."""
        for own, new in zip(self.model.parameters(), model.parameters(), strict=True):
            own.lerp_(new.to(own), 1 - decay) if decay else own.copy_(new)
        for own, new in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(new)
