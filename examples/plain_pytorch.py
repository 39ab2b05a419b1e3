"""A plain PyTorch loop: nn.CrossEntropyLoss, LABOLoss in its place, and LABOLoss with a memory of each example.

    python examples/plain_pytorch.py

Digits of scikit-learn, 600 of them for training, a fifth of these with a wrong label.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import labo


def train(criterion, data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(30):
        for x, y, indices in DataLoader(data, batch_size=64, shuffle=True):
            memory = getattr(criterion, "member", None) is not None
            loss = criterion(model(x), y, indices=indices) if memory else criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def main():
    torch.manual_seed(0)
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x, order = (x / 16).float(), torch.randperm(len(x))
    train_rows, test_rows = order[:600], order[600:]
    given = y[train_rows].clone()
    wrong = torch.randperm(600)[:120]
    given[wrong] = (given[wrong] + torch.randint(1, 10, (120,))) % 10

    data = labo.IndexedDataset(TensorDataset(x[train_rows], given))  # adds the index of each example to a batch
    criteria = {
        "nn.CrossEntropyLoss()": nn.CrossEntropyLoss(),
        "nn.CrossEntropyLoss(label_smoothing=0.1)": nn.CrossEntropyLoss(label_smoothing=0.1),
        "labo.LABOLoss()": labo.LABOLoss(),
        'labo.LABOLoss(prior="memory")': labo.LABOLoss(prior="memory", examples=len(data)),
    }
    print(f"{'Criterion':45}Accuracy on right labels")
    for name, criterion in criteria.items():
        model = train(criterion, data)
        accuracy = (model(x[test_rows]).argmax(-1) == y[test_rows]).float().mean()
        print(f"{name:45}{accuracy:.1%}")


if __name__ == "__main__":
    main()
