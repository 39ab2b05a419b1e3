"""timm: LABO as `train_loss_fn` beside Mixup, which must not smooth labels as well.

    pip install timm torchvision
    python examples/timm_mixup.py

The digits of scikit-learn as images of 32 x 32, and a small network of timm.
"""

import timm
import torch
from sklearn.datasets import load_digits
from timm.data import Mixup
from torch.utils.data import DataLoader, TensorDataset

from labo.integrations.timm import train_loss


def main():
    torch.manual_seed(0)
    images, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = (images / 16).float().view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
    images = torch.nn.functional.interpolate(images, size=32)
    data = TensorDataset(images[:1280], y[:1280])

    mixup = Mixup(mixup_alpha=0.2, label_smoothing=0.0, num_classes=10)  # timm's default, 0.1, would smooth twice
    train_loss_fn = train_loss(mixup, alpha=0.1, beta=2.0)  # in place of SoftTargetCrossEntropy()
    model = timm.create_model("resnet10t", num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(3):
        for x, target in DataLoader(data, batch_size=64, shuffle=True, drop_last=True):
            mixed, soft = mixup(x, target)
            loss = train_loss_fn(model(mixed), soft)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (model.eval()(images[1280:]).argmax(-1) == y[1280:]).float().mean()
    print(f"New digits     {accuracy:.1%}")


if __name__ == "__main__":
    main()
