"""An Accelerate loop on sequences: the mean is over all tokens of a step, in all processes and accumulated batches.

    python examples/accelerate_loop.py
    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py

The task: say the 8 symbols of a sequence in reverse order. Of each sequence, 3 to 8 labels are known.
"""

from contextlib import nullcontext
from itertools import islice

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import labo
from labo.integrations.accelerate import target_count

SYMBOLS, LENGTH = 6, 8


class Reverser(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, 32)
        self.network = nn.GRU(32, 64, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128 * LENGTH, LENGTH * SYMBOLS)

    def forward(self, symbols):
        hidden, _ = self.network(self.embedding(symbols))
        return self.head(hidden.flatten(1)).view(-1, LENGTH, SYMBOLS)


def main():
    torch.manual_seed(0)
    symbols = torch.randint(SYMBOLS, (768, LENGTH))
    labels = symbols.flip(1)
    known = torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (768, 1))
    data = TensorDataset(symbols[:512], torch.where(known, labels, -100)[:512])

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    criterion = labo.LabelRegularizedLoss(labo.regularizers.create("labo", alpha=0.1, beta=2.0))
    model = Reverser()
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=4e-3), DataLoader(data, batch_size=32, shuffle=True)
    )
    for _ in range(8):
        iterator = iter(loader)
        while batches := list(islice(iterator, accelerator.gradient_accumulation_steps)):
            count = target_count(accelerator, [y for _, y in batches])
            for number, (x, y) in enumerate(batches, 1):
                with nullcontext() if number == len(batches) else accelerator.no_sync(model):
                    logits = model(x)
                    loss = criterion.mean_over(logits.flatten(0, 1), y.flatten(), count)
                    accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        accuracy = (model(symbols[512:]).argmax(-1) == labels[512:]).float().mean()
    accelerator.print(f"Symbols of new sequences     {accuracy:.1%}")


if __name__ == "__main__":
    main()
