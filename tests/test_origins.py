"""Examples say which image, row or file they are, what their labels were before label noise, and can be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from PIL import Image

from image_files import class_folders
from labo import tasks


def test_digits_say_which_image_they_are():
    from sklearn.datasets import load_digits

    task = tasks.create("digits", label_noise="0.2")
    splits = task.splits(3)
    train, images = splits.train, cast(Any, load_digits())
    assert train.origin is not None
    assert train.before_noise is not None
    place = int(train.origin.source_indices[7])
    assert train.origin.names()[7] == f"image {place + 1}"
    assert train.before_noise.tolist() == images.target[train.origin.source_indices.numpy()].tolist()
    assert int((train.before_noise != train.target).sum()) == 80
    sample = task.samples(train.subset(torch.tensor([7])), splits.preprocessing)[0]
    assert isinstance(sample, np.ndarray)
    assert sample.tolist() == (255 - (images.images[place] * 255 / 16)).round().tolist()
    assert splits.test.before_noise is None


def test_tables_say_which_row_they_are_and_show_it(tmp_path: Path):
    frame = pd.DataFrame(
        {"size": [f"{n}.5" for n in range(20)], "note": ["<b>a</b>", ""] * 10, "kind": ["x", "y"] * 10}
    )
    frame.loc[4, "kind"] = None  # left out: rows after it keep their number
    frame.to_csv(tmp_path / "t.csv", index=False)
    task = tasks.create("table", data=str(tmp_path / "t.csv"), target="kind")
    splits = task.splits(0)
    assert splits.train.origin is not None
    places = splits.train.origin.source_indices.tolist()
    assert splits.train.origin.names() == [f"row {place + 1}" for place in places]
    assert splits.train.target.tolist() == [place % 2 for place in places]
    for place, sample in zip(places, task.samples(splits.train, splits.preprocessing), strict=True):
        assert sample == {"size": f"{place}.5", "note": "<b>a</b>" if place % 2 == 0 else ""}


def test_images_say_which_file_they_are(tmp_path: Path):
    root = class_folders(tmp_path / "data", {"cat": 12, "dog": 12})
    (root / "cat" / "3.png").write_bytes(b"no image")
    task = tasks.create("image", data=str(root), skip_unreadable=True, label_noise="0.25")
    splits = task.splits(0)
    train = splits.train
    assert train.origin is not None
    assert train.before_noise is not None
    assert len(set(train.origin.names())) == len(train)
    for name, label, shown in zip(
        train.origin.names(), train.before_noise.tolist(), task.samples(train, splits.preprocessing), strict=True
    ):
        assert Path(name).parent == root / ("cat", "dog")[label]
        assert np.array_equal(np.asarray(Image.open(name)), np.asarray(shown))


def test_images_of_arrays_have_numbers(tmp_path: Path):
    images = np.arange(40, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    np.savez(tmp_path / "p.npz", images=images, labels=np.arange(40) % 2)
    splits = tasks.create("image", data=str(tmp_path / "p.npz")).splits(0)
    assert splits.train.origin is not None
    assert splits.train.origin.source_indices.tolist() == splits.train.features[:, 0, 0, 0].tolist()
    assert splits.train.origin.names()[0] == f"train, image {int(splits.train.origin.source_indices[0]) + 1}"
