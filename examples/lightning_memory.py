"""Lightning: the criterion in the module, and a callback that tells it the indices.

    python examples/lightning_memory.py

Digits of scikit-learn, a fifth of the 600 training labels wrong. The training step is the same for all criteria.
"""

import logging

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import labo
from labo.integrations.lightning import LABOCallback


class Classifier(LightningModule):
    def __init__(self, criterion):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.criterion = criterion  # its memory is in the checkpoints

    def training_step(self, batch, batch_idx):
        x, y, *_ = batch
        return self.criterion(self.network(x), y)  # the callback passes the indices of the batch

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x, order = (x / 16).float(), torch.randperm(len(x))
    train_rows, test_rows = order[:600], order[600:]
    given = y[train_rows].clone()
    wrong = torch.randperm(600)[:120]
    given[wrong] = (given[wrong] + torch.randint(1, 10, (120,))) % 10
    data = labo.IndexedDataset(TensorDataset(x[train_rows], given))

    for name, criterion in {
        "labo.LABOLoss()": labo.LABOLoss(),
        'labo.LABOLoss(prior="memory")': labo.LABOLoss(prior="memory", examples=len(data)),
    }.items():
        torch.manual_seed(0)
        model = Classifier(criterion)
        trainer = Trainer(
            max_epochs=30,
            callbacks=[LABOCallback()],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(data, batch_size=64, shuffle=True))
        accuracy = (model.network(x[test_rows]).argmax(-1) == y[test_rows]).float().mean()
        print(f"{name:35}{accuracy:.1%}")


if __name__ == "__main__":
    main()
