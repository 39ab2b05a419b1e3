"""Datasets that tell indices, and the places of labels in sentences."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import labo
from labo.indexed import IndexedDataset, LabelPlaces

FEATURES, LABELS = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_indices_of_their_examples(workers):
    loader = DataLoader(
        IndexedDataset(TensorDataset(FEATURES, LABELS)), batch_size=4, shuffle=True, num_workers=workers
    )
    seen = []
    for features, labels, indices in loader:
        assert torch.equal(features, FEATURES[indices])
        assert torch.equal(labels, LABELS[indices])
        seen += indices.tolist()
    assert sorted(seen) == list(range(10))


def test_examples_of_every_kind():
    assert IndexedDataset([{"x": 1.0}])[0] == {"x": 1.0, "indices": 0}
    assert IndexedDataset([{"x": 1.0}], key="at")[0] == {"x": 1.0, "at": 0}
    assert IndexedDataset([(1.0, 2)])[0] == (1.0, 2, 0)
    assert IndexedDataset([5.0, 6.0])[1] == (6.0, 1)
    assert len(IndexedDataset([5.0, 6.0])) == 2


def test_iterable_datasets_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([1, 2])

    with pytest.raises(TypeError, match="an iterable one, whose examples have no fixed indices"):
        IndexedDataset(Stream())
    with pytest.raises(TypeError, match="a training dataset with a length, but got generator"):
        IndexedDataset(x for x in range(3))


def test_the_five_lines_learn_past_wrong_labels():
    torch.manual_seed(0)
    features = torch.randn(400, 20)
    right = (features[:, 0] > 0).long()
    wrong = torch.rand(400) < 0.3
    labels = torch.where(wrong, 1 - right, right)
    accuracy = {}
    for name in ("plain", "memory"):
        torch.manual_seed(0)
        data = IndexedDataset(TensorDataset(features, labels))
        criterion = labo.LABOLoss(prior="memory", examples=len(data), sharpness=2.0)
        model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(40):
            for x, y, indices in DataLoader(data, batch_size=50, shuffle=True):
                loss = (
                    criterion(model(x), y, indices=indices) if name == "memory" else nn.CrossEntropyLoss()(model(x), y)
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        fresh = torch.randn(2000, 20, generator=torch.Generator().manual_seed(1))
        accuracy[name] = (model(fresh).argmax(-1) == (fresh[:, 0] > 0)).double().mean().item()
    assert accuracy["memory"] > accuracy["plain"] + 0.05


def test_places_of_labels_whatever_the_padding():
    places = LabelPlaces(torch.tensor([2, 0, 3]), ignore_index=-100)
    assert places.total == 5
    left = places.of(torch.tensor([2, 0]), torch.tensor([[7, 8, 9], [-100, 5, 6]]))
    right = places.of(torch.tensor([0, 2]), torch.tensor([[5, 6, -100, -100], [7, 8, 9, -100]]))
    assert left[0].tolist() == [2, 3, 4]
    assert left[1, 1:].tolist() == [0, 1]
    assert right[0, :2].tolist() == [0, 1]
    assert right[1, :3].tolist() == [2, 3, 4]
    with pytest.raises(ValueError, match="as many labels as before training, but got more"):
        places.of(torch.tensor([0]), torch.tensor([[5, 6, 7]]))


def test_labels_are_counted_where_an_example_has_several():
    assert IndexedDataset([{"labels": 1}, {"labels": 2}]).label_counts(-100) is None
    assert IndexedDataset([{"labels": torch.tensor([0.5, 0.5])}]).label_counts(-100) is None
    counts = IndexedDataset([{"labels": [1, 2, -100]}, {"labels": [4]}]).label_counts(-100)
    assert counts is not None
    assert counts.tolist() == [2, 1]


def test_the_second_entry_of_a_pair_is_its_label():
    pairs = IndexedDataset(TensorDataset(FEATURES, LABELS))
    assert torch.equal(pairs.targets(), LABELS)
    assert pairs.label_counts(-100) is None
    tokens = torch.tensor([[1, 2, -100], [3, -100, -100]])
    counts = IndexedDataset(TensorDataset(torch.zeros(2, 3), tokens)).label_counts(-100)
    assert counts is not None
    assert counts.tolist() == [2, 1]


def test_one_example_tells_that_each_has_one_label():
    read = []

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            read.append(index)
            return FEATURES[index], int(LABELS[index])

    assert IndexedDataset(Images()).label_counts(-100) is None
    assert read == [0]
