"""Small networks for features of fixed width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from labo.errors import UserError, unknown

NETWORKS = ("mlp", "linear")
DEFAULTS: dict[str, Any] = {"model": "mlp", "hidden": 256, "layers": 2, "dropout": 0.0}


def network(inputs: int, classes: int, settings: Mapping[str, Any]) -> nn.Module:
    """The network that `settings` name: "mlp" (`layers` hidden layers of `hidden` units, ReLU) or "linear".

    Raises:
        UserError: a setting is out of range.
    """
    if settings["model"] not in NETWORKS:
        raise unknown("model", settings["model"], NETWORKS)
    hidden, layers, dropout = (settings[key] for key in ("hidden", "layers", "dropout"))
    if hidden < 1 or layers < 0 or not 0 <= dropout < 1:
        raise UserError(
            f"Expected hidden >= 1, layers >= 0 and dropout in [0, 1), but got hidden={hidden}, layers={layers}, "
            f"dropout={dropout}."
        )
    parts: list[nn.Module] = []
    width = inputs
    for _ in range(layers if settings["model"] == "mlp" else 0):
        parts += [nn.Linear(width, hidden), nn.ReLU()]
        parts += [nn.Dropout(dropout)] if dropout else []
        width = hidden
    return Features(*parts, nn.Linear(width, classes))


class Features(nn.Sequential):
    """A sequence of layers whose input is called `features`, as the batches name it."""

    def forward(self, features):  # noqa: D102 (as its base has it)
        return super().forward(features)
