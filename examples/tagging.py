"""Sequence tagging: logits (N, C, T), one label per token, -100 where there is none.

    python examples/tagging.py

Words have one of three tags; in the training sentences, which are padded, a tenth of the tags is missing and a fifth
wrong. With a memory, each token has a place of its own.
"""

import torch
from torch import nn

import labo
from labo.indexed import LabelPlaces

TAGS, IGNORED = 3, -100


def sentences(count):
    """Words (N, 10) of a vocabulary of 60, 0 for padding, and their tags: that of a word depends on the one before."""
    words = torch.randint(1, 60, (count, 10))
    words[torch.arange(10) >= torch.randint(4, 11, (count, 1))] = 0
    before = torch.nn.functional.pad(words, (1, 0))[:, :-1]
    tags = torch.where(words % 3 == 0, 1 + (before > 30).long(), 0)
    return words, torch.where(words == 0, IGNORED, tags)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(60, 32)
        self.network = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, TAGS)

    def forward(self, words):
        hidden, _ = self.network(self.embedding(words))
        return self.head(hidden).movedim(-1, 1)  # (N, C, T), as nn.CrossEntropyLoss takes it


def main():
    torch.manual_seed(0)
    words, tags = sentences(512)
    wrong = (torch.rand(tags.shape) < 0.2) & (tags != IGNORED)
    tags = torch.where(wrong, (tags + torch.randint(1, TAGS, tags.shape)) % TAGS, tags)
    tags[torch.rand(tags.shape) < 0.1] = IGNORED
    places = LabelPlaces((tags != IGNORED).sum(1), ignore_index=IGNORED)
    new_words, new_tags = sentences(512)
    for name, criterion in {
        "labo.LABOLoss()": labo.LABOLoss(ignore_index=IGNORED),
        'labo.LABOLoss(prior="memory")': labo.LABOLoss(prior="memory", examples=places.total),
    }.items():
        torch.manual_seed(0)
        model = Tagger()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(12):
            for indices in torch.randperm(512).split(64):
                y = tags[indices]
                memory = {} if criterion.member is None else {"indices": places.of(indices, y)}
                optimizer.zero_grad()
                criterion(model(words[indices]), y, **memory).backward()
                optimizer.step()
        kept = new_tags != IGNORED
        accuracy = (model(new_words).argmax(1) == new_tags)[kept].float().mean()
        print(f"{name:35}{accuracy:.1%}")


if __name__ == "__main__":
    main()
