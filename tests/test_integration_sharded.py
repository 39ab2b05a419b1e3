"""A fused language model whose head is sharded: FSDP2 gathers it, tensor parallelism leaves it split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fused_models import LABELS, OPTIONS, TOKENS, by_logits, gradients, llama
from labo.integrations.transformers import fuse


@pytest.fixture
def mesh() -> Any:
    """A mesh of this process alone."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("before", [True, False])
def test_a_head_sharded_by_fsdp_is_gathered(mesh, before):
    from torch.distributed.fsdp import fully_shard

    model = llama().train()
    expected = by_logits(model)
    expected.backward()
    wanted = gradients(model)
    if before:
        fuse(model, **OPTIONS)
    for layer in (*model.model.layers, model.lm_head, model):
        fully_shard(layer, mesh=mesh)
    assert hasattr(model.lm_head.weight, "full_tensor")
    if not before:
        fuse(model, **OPTIONS)
    loss = model(TOKENS, labels=LABELS).loss
    loss.backward()
    found = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("style", ["shards", "parallelize_module"])
def test_a_head_split_by_tensor_parallelism_stays_split(mesh, style, monkeypatch):
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = llama().train()
    expected = by_logits(model)
    expected.backward()
    wanted = gradients(model)
    fuse(model, **OPTIONS)
    if style == "shards":
        model.lm_head.weight = nn.Parameter(distribute_tensor(model.lm_head.weight.detach(), mesh, [Shard(0)]))
    else:
        parallelize_module(model, mesh, {"lm_head": ColwiseParallel(output_layouts=Replicate())})
    gathered, gather = [], DTensor.full_tensor
    monkeypatch.setattr(DTensor, "full_tensor", lambda self: gathered.append(self.shape) or gather(self))
    loss = model(TOKENS, labels=LABELS).loss
    loss.backward()
    assert model.lm_head.weight.shape not in gathered
    gradient: Any = model.lm_head.weight.grad
    assert gradient.placements == (Shard(0),)
    found = {n: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for n, p in model.named_parameters()}
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
