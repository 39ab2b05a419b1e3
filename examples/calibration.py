"""Calibration: LABO makes a network under-confident, and one temperature repairs it; torchmetrics agrees.

    python examples/calibration.py

Digits of scikit-learn. The temperature is fitted on validation digits and measured on test digits.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

import labo
from labo.metrics.scores import classification_scores
from labo.metrics.temperature import search_temperature


def main():
    torch.manual_seed(0)
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x, order = (x / 16).float(), torch.randperm(len(x))
    parts = order.split([600, 400, 797])
    (train_x, train_y), (validation_x, validation_y), (test_x, test_y) = [(x[part], y[part]) for part in parts]

    criterion = labo.LABOLoss(alpha=0.4, beta=4.0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(25):
        for batch in torch.randperm(len(train_x)).split(64):
            optimizer.zero_grad()
            criterion(model(train_x[batch]), train_y[batch]).backward()
            optimizer.step()

    with torch.no_grad():
        validation, test = model(validation_x), model(test_x)
    temperature = search_temperature(validation, validation_y)
    for name, scale in (("as trained", 1.0), (f"at temperature {temperature:.2f}", temperature)):
        ours = classification_scores(test, test_y, temperature=scale)
        probabilities = (test.double() / scale).softmax(-1)
        theirs = multiclass_calibration_error(probabilities, test_y, num_classes=10, n_bins=15)
        print(f"{name:20}ECE {ours['ece']:.4f} (torchmetrics: {theirs:.4f})   NLL {ours['nll']:.4f}")


if __name__ == "__main__":
    main()
