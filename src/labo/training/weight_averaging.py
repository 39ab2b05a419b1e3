"""Averages of a network's weights: a moving one over the steps, and the mean over the last epochs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from labo.training import checkpoints


class MovingAverage:
    """An exponential moving average of a network's parameters and floating-point buffers, as `self.model`.

    Update t, from 0, is average <- decay_t * average + (1 - decay_t) * weights with
    decay_t = min(decay, (1 + t) / (10 + t)), so that the first weights, which are random, are soon forgotten; update 0
    copies the weights. Integer buffers, which count, are those of the network.

    Args:
        model: the network; it is copied.
        decay: in (0, 1).

    Source: Polyak and Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992; the decay of the first
        updates is that of `tf.train.ExponentialMovingAverage`.

    Example:
        >>> from torch import nn
        >>> network = nn.Linear(1, 1, bias=False)
        >>> average = MovingAverage(network, 0.9)
        >>> for value in (1.0, 12.0):
        ...     _ = nn.init.constant_(network.weight, value)
        ...     average.update(network)
        >>> average.model.weight.item()  # 2/11 of 1 and 9/11 of 12
        10.0
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model`, without waiting for the device."""
        averaged, current = _tensors(self.model), _tensors(model)
        floating = [place for place, tensor in enumerate(averaged) if tensor.is_floating_point()]
        if self.updates:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            pairs = [averaged[place] for place in floating], [current[place] for place in floating]
            get_ema_multi_avg_fn(decay)(*pairs, self.updates)  # pyright: ignore[reportArgumentType] (a number, unused)
        for place in set(range(len(averaged))) - set(floating if self.updates else ()):
            averaged[place].copy_(current[place])
        self.updates += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*(parameter.detach() for parameter in model.parameters()), *model.buffers()]


def save_epoch(model: nn.Module, folder: Path, step: int, *, keep: int) -> None:
    """Save the weights at the end of an epoch, and remove those of all but the last `keep` epochs."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save_epoch(model, epoch_file(folder, step), step=step)
    saved = sorted(folder.glob("epoch-*.safetensors"), key=lambda path: int(path.stem.partition("-")[2]))
    for file in saved[:-keep]:
        file.unlink()


def epoch_file(folder: Path, step: int) -> Path:
    """The file of the weights of the epoch that ended with a step."""
    return folder / f"epoch-{step}.safetensors"


def mean(files: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of saved weights, computed in float64; integers, which count, are those of the last file.

    Raises:
        UserError: a file is missing or damaged.
    """
    last, _ = checkpoints.read_epoch(files[-1])
    sums = {name: value.double().zero_() for name, value in last.items() if value.is_floating_point()}
    for file in files:
        weights, _ = checkpoints.read_epoch(file)
        for name, total in sums.items():
            total += weights[name].double() / len(files)
    return {name: sums[name].to(value.dtype) if name in sums else value for name, value in last.items()}
