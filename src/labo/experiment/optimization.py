"""How a network is optimized: settings of the optimizer and its learning rate, as the Trainer takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from labo import distributed

# Where schedule "steps" divides the learning rate by ten, as shares of training.
STEPS_AT = (0.5, 0.75)


def arguments(settings: Mapping[str, Any], seed: int, output: Path) -> TrainingArguments:
    """The Trainer's arguments: nothing is logged or saved by its own rules.

    A batch is divided among the processes that train together, and in each into `settings["accumulation"]` parts.
    """
    by_steps = "steps" in settings
    processes, parts = distributed.world_size(), int(settings.get("accumulation", 1))
    half = settings.get("precision", "float32") == "bfloat16"
    found = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=1 if by_steps else settings["epochs"],
        max_steps=int(settings["steps"]) if by_steps else -1,
        per_device_train_batch_size=max(1, int(settings.get("batch_size", 1)) // (processes * parts)),
        gradient_accumulation_steps=parts,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        # Without an accelerator the Trainer has to be told so, or it overlooks other processes and refuses bfloat16.
        use_cpu=(processes > 1 or half) and not torch.accelerator.is_available(),
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        bf16=half,
        max_grad_norm=0.0,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=seed,
    )
    # The Trainer would split a batch over all accelerators that it sees, and make it so many times larger.
    found._n_gpu = min(1, found.n_gpu)
    return found


def optimizer(settings: Mapping[str, Any]) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The optimizer's class and options: "adamw", or "sgd" with Nesterov's momentum."""
    betas = settings.get("adam_beta1", 0.9), settings.get("adam_beta2", 0.999)
    rate = {"lr": settings["learning_rate"]}
    if settings.get("optimizer", "adamw") == "adamw":
        return torch.optim.AdamW, {**rate, "betas": betas, "eps": 1e-8}
    momentum = settings.get("momentum", 0.9)
    return torch.optim.SGD, {**rate, "momentum": momentum, "nesterov": momentum > 0}


def schedule(settings: Mapping[str, Any], optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """The learning rate over `steps` steps: a straight warm-up over a share of them, then `settings["schedule"]`."""
    warm = math.ceil(settings.get("warmup", 0.0) * steps)
    kind = settings["schedule"]

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
            return 0.1 ** sum(done >= at for at in STEPS_AT)
        return 1.0

    return LambdaLR(optimizer, factor)
