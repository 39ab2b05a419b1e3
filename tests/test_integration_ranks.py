"""Two processes of Accelerate and of Lightning train what one does, memories included."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")
pytest.importorskip("lightning")
from accelerate import Accelerator

from integration_ranks import (
    CLASSES,
    MEMORY,
    REFUSED,
    SHARDINGS,
    accelerated,
    criterion_of,
    examples,
    fused_step,
    sentences,
    work,
)
from lightning_modules import Classifier, data, fit, loader
from processes import together

pytestmark = pytest.mark.filterwarnings("default")  # theirs


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process has at the end."""
    ranks = together(work, tmp_path_factory.mktemp("ranks"))
    for rank in ranks:
        assert isinstance(rank, dict), rank
    return ranks


def whole(method: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Three steps of all examples in one batch, in plain PyTorch."""
    torch.manual_seed(0)
    criterion, network = criterion_of(method), nn.Linear(3, CLASSES)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    x, y = sentences() if method == "labo" else examples().tensors
    batch = {} if method == "labo" else {"indices": torch.arange(8)}
    for _ in range(3):
        optimizer.zero_grad()
        criterion(network(x).flatten(0, -2), y.flatten(), **batch).backward()
        optimizer.step()
    return network.state_dict(), criterion.state_dict()


@pytest.mark.parametrize("method", ["labo", MEMORY])
def test_accelerate_in_two_processes_trains_what_one_batch_does(found, method):
    network, memory = whole(method)
    for rank in found:
        torch.testing.assert_close(rank[method][0], network, atol=1e-6, rtol=0)
        torch.testing.assert_close(rank[method][1], memory, atol=1e-3, rtol=0)
        assert rank[method][1].keys() == memory.keys()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_accumulated_parts_train_what_one_batch_does(accumulation):
    torch.testing.assert_close(accelerated("labo", accumulation)[0], whole("labo")[0], atol=1e-6, rtol=0)


def test_a_checkpoint_of_accelerate_has_the_memory(tmp_path):
    x, y = examples().tensors
    saved, loaded = criterion_of(MEMORY), criterion_of(MEMORY)
    saved(x @ torch.randn(3, CLASSES), y, indices=torch.arange(8))
    for criterion, transfer in ((saved, "save_state"), (loaded, "load_state")):
        accelerator = Accelerator(cpu=True)
        accelerator.register_for_checkpointing(criterion)
        getattr(accelerator, transfer)(str(tmp_path))
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict())
    assert {name.rpartition(".")[2] for name in loaded.state_dict()} == {"values", "labels", "alignment", "visited"}


def test_lightning_in_two_processes_trains_what_one_does(found):
    model = Classifier(criterion_of(MEMORY, None))
    fit(model, loader(data()))
    alone = model.state_dict()
    for rank in found:
        for name, value in alone.items():
            torch.testing.assert_close(rank["lightning"][name], value, atol=1e-3 if "memory" in name else 1e-6, rtol=0)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """A step of a fused model in this process alone, its head whole."""
    return fused_step(None)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", SHARDINGS)
def test_a_fused_model_with_a_sharded_head_is_that_of_one_process(found, alone, name, before):
    ranks = [dict(rank[name, before]) for rank in found]
    shared = ("loss", "evaluated", "statistics")
    if name == "fsdp":  # each process has half of the examples, and FSDP averages
        parts = {key: [rank.pop(key) for rank in ranks] for key in shared}
        ranks.append({key: (parts[key][0] + parts[key][1]) / (1 if key == "statistics" else 2) for key in shared})
    for rank in ranks:
        torch.testing.assert_close(rank, {key: alone[key] for key in rank}, atol=1e-5, rtol=0)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_is_sharded_otherwise_is_refused(found, name, before):
    message = {
        "two dimensions": r"one dimension of the mesh.*\(Replicate\(\), Shard\(dim=0\)\).*mesh\['tp'\].*linear=False",
        "sharded outputs": r"outputs are whole in every process.*output_layouts=Replicate\(\)",
        "other examples": "the same `target` on every rank",
    }[name]
    for rank in found:
        assert re.search(message, rank["refused", name, before]), rank["refused", name, before]
