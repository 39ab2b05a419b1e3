"""Images in chunks: corrupted, predicted and labelled as if all at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from image_files import EncodedBytes, jpeg, noise
from labo import regularizers
from labo.experiment.evaluators import classification
from labo.tasks.images.corruptions import CorruptedImages, corrupt
from labo.tasks.images.dataset import ImageExamples
from labo.tasks.images.decoding import LazyImages


def many(count: int = 300) -> torch.Tensor:
    return torch.from_numpy(noise(3, count, 3, 8, 8))


def lazily(count: int = 30) -> LazyImages:
    files = [jpeg(image) for image in noise(4, count, 8, 8, 3)]
    return LazyImages(EncodedBytes(files), torch.arange(count), 8)


@pytest.mark.parametrize("kind", ["noise", "blur", "contrast"])
def test_chunks_of_corrupted_images_are_those_of_the_whole(kind: str):
    whole = corrupt(many(), kind, 4, seed=5)
    pieces = list(CorruptedImages(many(), kind, 4, 5).split(70))
    assert [len(piece) for piece in pieces] == [70, 70, 70, 70, 20]
    assert torch.equal(torch.cat(pieces), whole)


def test_encoded_images_are_corrupted_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch):
    images = lazily()
    asked = []
    get = LazyImages.__getitem__
    monkeypatch.setattr(LazyImages, "__getitem__", lambda self, index: asked.append(1) or get(self, index))
    worse = CorruptedImages(images, "noise", 2, 1)
    assert (len(worse), worse.shape, worse.dtype) == (30, (30, 3, 8, 8), torch.uint8)
    assert not asked
    found = torch.cat(list(worse.split(8)))
    assert len(asked) == 4
    assert torch.equal(found, corrupt(images[:], "noise", 2, 1))


class Watched(torch.nn.Module):
    """A linear network that notes how many rows come at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.seen = torch.nn.Linear(192, 4), []

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(features))
        return self.head(features.flatten(1).float() / 255)


@pytest.mark.parametrize("make", [many, lazily, lambda: many().float()], ids=["bytes", "encoded", "floats"])
def test_prediction_takes_rows_by_their_bytes(make: Any, monkeypatch: pytest.MonkeyPatch):
    features, model = make(), Watched()
    whole = classification.predict(model, features)
    assert model.seen == [len(features)]
    model.seen.clear()
    monkeypatch.setattr(classification, "PREDICTION_BYTES", 7 * 192 * 4 + 5)
    model.train()
    torch.testing.assert_close(classification.predict(model, features), whole)
    assert model.training
    assert max(model.seen) == 7
    assert sum(model.seen) == len(features)
    monkeypatch.setattr(classification, "PREDICTION_BYTES", 1)  # an image larger than that is still taken
    model.seen.clear()
    classification.predict(model, features[:3])
    assert model.seen == [1, 1, 1]


def test_rows_are_never_more_than_1024():
    assert [len(piece) for piece in classification.prediction_batches(torch.zeros(2500, 3))] == [1024, 1024, 452]


@pytest.mark.parametrize("method", ["labo", "distillation", "none"])
def test_mean_labels_in_pieces_are_those_of_the_whole(method: str, monkeypatch: pytest.MonkeyPatch):
    examples = ImageExamples(lazily(), torch.arange(30) % 3)  # class 3 has none
    regularizer = regularizers.create(method)
    if method == "distillation":
        regularizer.provide(teacher=Watched())
    whole = classification.mean_labels(Watched(), regularizer, examples, 4)
    monkeypatch.setattr(classification, "PREDICTION_BYTES", 7 * 192 * 4)
    model = Watched()
    found = classification.mean_labels(model, regularizer, examples, 4)
    assert max(model.seen) == 7
    if method == "none":
        assert whole is found is None
        return
    assert found is not None
    assert whole is not None
    assert found[3] == [None] * 4
    np.testing.assert_allclose(np.array(found[:3], float), np.array(whole[:3], float), atol=1e-6)
