"""Segmentation: logits (N, C, H, W), one label per pixel, 255 where nobody has looked.

    python examples/segmentation.py

Bright disks and dim squares on noise; a border of two pixels around each is not labelled, as in PASCAL VOC.
"""

import torch
from torch import nn

import labo

CLASSES, SIZE, UNLABELLED = 3, 24, 255


def images(count):
    """Images (N, 1, 24, 24) with one object each, and their labels: 0 background, 1 disk, 2 square."""
    grid = torch.arange(SIZE)
    center, radius = torch.randint(7, SIZE - 7, (count, 2, 1, 1)), 5
    kind = torch.randint(1, CLASSES, (count, 1, 1))
    down, across = (grid[:, None] - center[:, 0]).abs(), (grid[None] - center[:, 1]).abs()
    distance = torch.where(kind == 1, (down**2 + across**2).float().sqrt(), torch.maximum(down, across).float())
    labels = torch.where(distance <= radius, kind, 0)
    x = torch.randn(count, SIZE, SIZE) * 0.3 + torch.where(labels == 1, 1.6, 0.8) * (labels > 0)
    labels = torch.where((distance > radius) & (distance <= radius + 2), UNLABELLED, labels)
    return x.unsqueeze(1), labels


def main():
    torch.manual_seed(0)
    x, y = images(128)
    new_x, new_y = images(256)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 5, padding=4, dilation=2),
        nn.ReLU(),
        nn.Conv2d(16, CLASSES, 1),
    )
    criterion = labo.LABOLoss(alpha=0.1, beta=2.0, ignore_index=UNLABELLED)  # as nn.CrossEntropyLoss(ignore_index=255)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(12):
        for batch in torch.randperm(len(x)).split(8):
            optimizer.zero_grad()
            criterion(model(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        predicted, kept = model(new_x).argmax(1), new_y != UNLABELLED
    for label, name in enumerate(("background", "disk", "square")):
        ours, theirs = (predicted == label) & kept, (new_y == label) & kept
        print(f"{name:12} intersection over union   {(ours & theirs).sum() / (ours | theirs).sum():.1%}")


if __name__ == "__main__":
    main()
