"""A network whose weights, gradients and optimizer state are split over the processes that train it (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from labo import distributed
from labo.errors import UserError
from labo.regularizers.base import Regularizer
from labo.settings import TrainingSettings


def check(regularizer: Regularizer, settings: TrainingSettings) -> None:
    """Refuse what reads the weights of the network at every step.

    Raises:
        UserError: the method calls the network itself, or the weights are averaged.
    """
    if "model" in regularizer.needs:
        raise UserError(
            f"Method '{regularizer.name}' calls the network itself, whose weights --fsdp splits over the processes: "
            "leave --fsdp out."
        )
    if settings.ema:
        raise UserError(
            "Setting `ema` averages whole weights at every step, which --fsdp splits: leave one of them out."
        )


def shard(model: nn.Module) -> nn.Module:
    """A copy of a network whose weights are split over all processes: each block of a ModuleList, and the rest.

    A block's weights are whole only while it runs; those of the rest from the forward to the end of the backward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = copy.deepcopy(model)
    mesh = init_device_mesh(distributed.device().type, (distributed.world_size(),))
    for module in reversed(list(model.modules())):  # inner blocks first
        for block in module if isinstance(module, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@torch.no_grad()
def gather(sharded: nn.Module, whole: nn.Module) -> None:
    """Copy the weights of a network of `shard` into a whole one, in every process."""
    weights = whole.state_dict()
    for name, value in sharded.state_dict().items():
        weights[name].copy_(_whole(value))


@torch.no_grad()
def scatter(whole: nn.Module, sharded: nn.Module) -> None:
    """Copy the weights of a whole network, that of the main process, into one of `shard`."""
    weights = whole.state_dict()
    for name, value in sharded.state_dict().items():
        value.copy_(_split(weights[name].to(value.device), value))


def whole_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer of a network of `shard` as it is without: a checkpoint does not depend on it."""
    entries = {
        index: {name: _whole(value) for name, value in values.items()} for index, values in state["state"].items()
    }
    return {**state, "state": entries}


def split_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The inverse of `whole_state`, for this optimizer."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        index: {
            name: _split(value, parameters[index]) if value.shape == parameters[index].shape else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": entries}


def _whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _split(value: Tensor, like: Any) -> Tensor:
    """A whole tensor, split as another one is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
