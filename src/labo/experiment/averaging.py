"""The average of a network's weights over training, which is what is measured and kept where a run asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from labo.errors import UserError
from labo.experiment.checkpoint import read_weights

AVERAGE = "average.safetensors"


def mean(files: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of saved weights, worked out in float64; what counts (integers) is that of the last file.

    Raises:
        UserError: a file is damaged.
    """
    found = read_weights(files[-1])
    for name, last in found.items():
        if last.is_floating_point():
            found[name] = torch.zeros_like(last, dtype=torch.float64)
    for file in files:
        for name, value in read_weights(file).items():
            if value.is_floating_point():
                found[name] += value.double() / len(files)
    return {name: value.float() if value.dtype == torch.float64 else value for name, value in found.items()}


class Average(AveragedModel):
    """An exponential moving average of a network's parameters and floating-point buffers, as `self.module`.

    Update t, from 0, makes of the average decay_t * average + (1 - decay_t) * weights with
    decay_t = min(decay, (1 + t) / (10 + t)), so that the first weights, which are random, do not linger; update 0 takes
    the weights as they are. Buffers that count (integers) are those of the network.

    Args:
        model: the network; it is copied.
        decay: in (0, 1).

    Source: Polyak and Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992; the early decay is that
        of `tf.train.ExponentialMovingAverage`.

    Example:
        >>> from torch import nn
        >>> network = nn.Linear(1, 1, bias=False)
        >>> average = Average(network, 0.9)
        >>> for value in (1.0, 12.0):
        ...     _ = nn.init.constant_(network.weight, value)
        ...     average.update_parameters(network)
        >>> average.module.weight.item()  # 2/11 of 1 and 9/11 of 12
        10.0
    """

    def __init__(self, model: Any, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._move, use_buffers=True)
        self.module.requires_grad_(False)
        self.decay = decay

    def _move(self, averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            before = int(updates)
            get_ema_multi_avg_fn(min(self.decay, (1 + before) / (10 + before)))(list(averaged), list(current), before)
            return
        for mine, theirs in zip(averaged, current, strict=True):
            mine.copy_(theirs)

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        # Copies: the file format takes no two names of one memory, and no other order of it.
        state = {name: value.clone(memory_format=torch.contiguous_format) for name, value in self.state_dict().items()}
        save_file(state, folder / AVERAGE)

    def load(self, folder: Path) -> None:
        """Take what `save` wrote.

        Raises:
            UserError: it is not there.
        """
        if not (folder / AVERAGE).is_file():
            raise UserError(f"The checkpoint '{folder}' lacks {AVERAGE}: the average of the weights.")
        self.load_state_dict(load_file(folder / AVERAGE))
