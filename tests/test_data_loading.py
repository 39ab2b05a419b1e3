"""How examples come to the network: what stays on the device, who reads ahead, the channels last; the numbers stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from experiments import trial
from labo import machine, tasks
from labo.errors import UserError
from labo.experiment import run_trial
from labo.records import trial as trials
from labo.tasks.base import Examples
from labo.tasks.images import dataset
from labo.tasks.images.decoding import LazyImages
from labo.training import data_loading

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty pictures of two classes, a file each."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for index in range(40):
        place = tmp_path / "pictures" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return tmp_path / "pictures"


def encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is decoded before it is asked for."""
    monkeypatch.setattr(dataset, "MAX_DECODED_BYTES", 0)


def image_trial(data: Path, **settings: Any) -> trials.Trial:
    options = {"data": str(data), "validation_size": 6, "image_size": 8}
    given = {"width": 4, "batch_size": 8, "learning_rate": 0.05, **settings}
    return trial("labo", task="image", task_options=options, set=given, epochs=2)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / trials.WEIGHTS)


def test_what_stays_on_the_device(monkeypatch, folder):
    cifar = Examples(torch.empty(50_000, 3, 32, 32, dtype=torch.uint8), torch.zeros(50_000, dtype=torch.long))
    assert data_loading.fit(cifar, GPU)
    assert not data_loading.fit(cifar, CPU)
    assert data_loading.worker_count(cifar, CPU) == 0
    large = Examples(torch.empty(1).expand(2**29), torch.zeros(1))  # two GiB of float32, were they there
    assert not data_loading.fit(large, GPU)
    encoded(monkeypatch)
    task = tasks.create("image", data=str(folder), image_size=8, validation_size=6)
    pictures = task.splits(0).train
    assert isinstance(pictures.features, LazyImages)
    assert not data_loading.fit(pictures, GPU)
    assert data_loading.worker_count(pictures, CPU) == 0
    for cores, beside, count in ((16, "", 8), (4, "", 3), (1, "", 1), (16, "4", 3), (8, "8", 1)):
        monkeypatch.setattr(machine, "cores", lambda cores=cores: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", beside or "1")
        assert data_loading.worker_count(pictures, GPU) == count
        assert data_loading.worker_count(large, GPU) == count


def test_examples_that_stay_teach_the_same(tmp_path, monkeypatch, folder):
    run_trial.run(image_trial(folder), tmp_path / "plain")
    asked = []
    monkeypatch.setattr(data_loading, "fit", lambda examples, device: asked.append(device.type) or True)
    run_trial.run(image_trial(folder), tmp_path / "resident")
    assert asked == ["cpu"]
    first, second = weights(tmp_path / "plain"), weights(tmp_path / "resident")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_examples_that_others_read_ahead_teach_the_same(tmp_path, monkeypatch, folder):
    encoded(monkeypatch)
    found = {}
    for count in (0, 2):
        monkeypatch.setattr(data_loading, "worker_count", lambda *_, count=count: count)
        run_trial.run(image_trial(folder, augment="none"), tmp_path / str(count))
        found[count] = weights(tmp_path / str(count))
    assert all(torch.equal(found[0][name], found[2][name]) for name in found[0])


@pytest.mark.parametrize("share", [0.4, 0.5])  # within an epoch, and between two
def test_a_stopped_run_that_reads_ahead_goes_on_exactly(tmp_path, monkeypatch, folder, share):
    encoded(monkeypatch)
    monkeypatch.setattr(data_loading, "worker_count", lambda *_: 2)

    def stop(done: float) -> None:
        if done > share:
            raise KeyboardInterrupt

    asked = image_trial(folder)
    run_trial.run(asked, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_trial.run(trials.Trial(**{**vars(asked), "save_seconds": 0.0}), tmp_path / "cut", stop)
    run_trial.run(asked, tmp_path / "cut")
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_picture_that_another_process_cannot_read_is_told_in_one_sentence(tmp_path, monkeypatch, folder):
    encoded(monkeypatch)
    monkeypatch.setattr(data_loading, "worker_count", lambda *_: 1)
    asked = image_trial(folder)
    tasks.create("image", **asked.task_options).splits(0)  # which looks at every picture, and is kept
    for path in folder.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        run_trial.run(asked, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("Cannot read the image '")


@pytest.mark.parametrize("name", ["convnet", "resnet18", "vit_small"])
def test_channels_last_changes_nothing_but_the_last_digits(name):
    preprocessing = {"image_size": 16, "mean": [0.4, 0.5, 0.6], "deviation": [0.2, 0.3, 0.2]}
    task = tasks.create("image", data="nowhere")
    pictures = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = []
    for last in (False, True):
        torch.manual_seed(0)
        settings = {**task.default_settings(), "model": name, "channels_last": last}
        network = task.model(("a", "b", "c"), preprocessing, settings)
        seen: list[Tensor] = []
        handle = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(
            lambda _, given, __, seen=seen: seen.append(given[0])
        )
        logits = network(pictures)
        handle.remove()
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        assert seen[0].is_contiguous(memory_format=torch.channels_last) == last
        weight = next(p for p in network.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        found.append((logits, {key: p.grad for key, p in network.named_parameters()}))
    (plain, gradients), (logits, others) = found
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-4)
    for key, value in gradients.items():
        torch.testing.assert_close(others[key], value, atol=1e-5, rtol=1e-3)


def test_channels_last_is_for_pictures(tmp_path):
    with pytest.raises(UserError, match="`channels_last` is for images, which task 'digits' has none of"):
        run_trial.run(trial("none", epochs=1, set={"channels_last": True}), tmp_path)
