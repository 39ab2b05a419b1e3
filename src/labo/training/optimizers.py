"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from labo.regularizers.base import Regularizer
from labo.settings import TrainingSettings

# Where the schedule "steps" divides the learning rate by ten, as fractions of training.
MILESTONES = (0.5, 0.75)
# Names of parameters without weight decay, as Transformers' Trainer has them; those of LayerNorm have none either.
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def make_optimizer(model: nn.Module, regularizer: Regularizer, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimizer of a network's parameters and of what the regularizer learns, which has no weight decay.

    Biases and normalization layers of the network have no weight decay either, by the rule of Transformers' Trainer.
    """
    decayed, undecayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = model.get_submodule(name.rpartition(".")[0])
            plain = not isinstance(layer, nn.LayerNorm) and not _UNDECAYED.search(name.lower())
            (decayed if plain else undecayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    if learned := regularizer.learnt():
        groups.append({"params": learned, "weight_decay": 0.0})
    kind, options = optimizer_options(settings)
    optimizer = kind(groups, **options)
    if "optimizer" in regularizer.missing:
        regularizer.provide(optimizer=optimizer)
    return optimizer


def optimizer_options(settings: TrainingSettings) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """(the optimizer's class, its keyword arguments beside parameters and weight decay)."""
    options: dict[str, Any] = {"lr": settings.learning_rate}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW, options | {"betas": (settings.adam_beta1, settings.adam_beta2), "eps": 1e-8}
    return torch.optim.SGD, options | {"momentum": settings.momentum, "nesterov": settings.momentum > 0}


def make_schedule(settings: TrainingSettings, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """The learning rate over `steps` steps: a linear warm-up, then `settings.schedule`."""
    warm = math.ceil(settings.warmup * steps)
    kind = settings.schedule

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        done = (step - warm) / max(1, steps - warm)
        if kind == "inverse_sqrt":
            return math.sqrt((warm + 1) / (step + 1))
        if kind == "linear":
            return max(0.0, 1.0 - done)
        if kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        if kind == "steps":
            return 0.1 ** sum(done >= milestone for milestone in MILESTONES)
        return 1.0

    return LambdaLR(optimizer, factor)
