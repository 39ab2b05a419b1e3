"""A small LightningModule with a criterion, and how it is trained in the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import labo
from labo.integrations.lightning import LABOCallback

CLASSES, EXAMPLES, BATCH = 4, 12, 4
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
QUIET |= {"accelerator": "cpu", "enable_checkpointing": False}


def data() -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(EXAMPLES, 3, generator=draw), torch.randint(CLASSES, (EXAMPLES,), generator=draw))


class Classifier(LightningModule):
    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(3, CLASSES)
        self.criterion = criterion
        self.losses: list[float] = []
        self.validated: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.criterion(self.network(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.validated.append(self.criterion(self.network(batch[0]), batch[1]).item())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.network.parameters(), lr=0.5)


def loader(dataset: Any, batch_size: int = BATCH) -> Any:
    return DataLoader(labo.IndexedDataset(dataset), batch_size)


def fit(model: LightningModule, loader: Any, *more: Any, checkpoint: Path | None = None, **options: Any) -> Trainer:
    trainer = Trainer(callbacks=[LABOCallback()], **{**QUIET, "max_epochs": 3, **options})
    trainer.fit(model, loader, *more, ckpt_path=checkpoint)
    return trainer
