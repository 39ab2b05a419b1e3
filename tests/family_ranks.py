"""Members that remember, trained for a few steps on a part of each batch: what a process of a group does."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labo import LabelRegularizedLoss, regularizers
from labo.regularizers.base import BATCH_INPUTS, Regularizer

CLASSES, EXAMPLES, EPOCHS = 4, 12, 3
REMEMBER = ("online_smoothing", "ps_kd", "dlb", "ls_plus", "beta_smoothing", "self_adaptive_smoothing")
REMEMBER += ("elr", "labo[prior=memory]")
PARTS = (slice(0, 4), slice(4, 6))  # of two processes, in a batch of six


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(EXAMPLES, 3, generator=draw), torch.randint(CLASSES, (EXAMPLES,), generator=draw)


class Course:
    """Training of a small network with a member: two batches of six an epoch, a step at a time."""

    def __init__(self, name: str, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, CLASSES)
        self.member: Regularizer = regularizers.create(name, **options)
        known = {"class_counts": torch.ones(CLASSES), "model": self.model, "examples": EXAMPLES, "epochs": EPOCHS}
        for need in self.member.missing:
            if need in known:
                self.member.provide(**{need: known[need]})
        self.optimizer = torch.optim.SGD(
            [{"params": self.model.parameters()}, {"params": self.member.learnt(), "weight_decay": 0.0}], lr=0.5
        )
        if "optimizer" in self.member.missing:
            self.member.provide(optimizer=self.optimizer)

    def step(self, step: int, part: slice = slice(None), *, learn: bool = True) -> Tensor:
        """One step; its loss. Without `learn` the network shrinks by itself, the same in every process."""
        features, target = data()
        at = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(step // 2))[step % 2 * 6 :][:6][part]
        told = {"indices": at, "inputs": features[at], "epoch": step // 2, "step": step}
        torch.manual_seed(step)
        given = {need: told[need] for need in self.member.needs if need in BATCH_INPUTS}
        loss = LabelRegularizedLoss(self.member)(self.model(features[at]), target[at], **given)
        self.optimizer.zero_grad()
        loss.backward()
        if not learn:
            for parameter in self.model.parameters():
                parameter.grad = 0.2 * parameter.detach()
        self.optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds, copied."""
        parts = {"model": self.model, "member": self.member, "optimizer": self.optimizer}
        saved: Any = {name: part.state_dict() for name, part in parts.items()}
        saved["member"] = {name: value.clone() for name, value in saved["member"].items()}
        saved["model"] = {name: value.clone() for name, value in saved["model"].items()}
        return saved

    def resume(self, saved: dict[str, Any]) -> Course:
        self.model.load_state_dict(saved["model"])
        self.member.load_state_dict(saved["member"])
        self.optimizer.load_state_dict(saved["optimizer"])
        return self


def work(rank: int, world: int, folder: Path) -> None:
    """One rank: the state of every member after some steps, and its losses; what went wrong included."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
        for name in REMEMBER:
            course = Course(name)
            losses = [course.step(step, PARTS[rank], learn=False) for step in range(5)]
            results[name] = losses, course.state()["member"]
        dist.destroy_process_group()
    except Exception:
        results["failed"] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")
