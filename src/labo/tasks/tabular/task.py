"""What tasks over columns of features share: the network, the settings, the label noise, reading new rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labo.errors import UserError, unknown
from labo.tasks.base import Examples, Origin, Task
from labo.tasks.labels import parse_label_noise, with_noise
from labo.tasks.tabular import features as columns
from labo.tasks.tabular import networks
from labo.tasks.tabular.table_files import read_frame


class ColumnTask(Task):
    """A task whose `preprocessing` is {"columns": […]}, as columns.py makes and applies them.

    Args:
        label_noise: "SHARE,symmetric|pair" of the training and validation labels are turned into wrong ones.
        options: what else makes the task again; None counts as not given.
    """

    def __init__(self, *, label_noise: str | None = None, **options: Any) -> None:
        given = {**options, "label_noise": label_noise}
        super().__init__(**{name: value for name, value in given.items() if value is not None})
        self.noise = parse_label_noise(label_noise) if label_noise else None

    def parts(
        self, features: Tensor, known: Origin, target: Tensor, parts: Sequence[Tensor], classes: int,
        generator: torch.Generator,
    ) -> tuple[Examples, Examples, Examples]:  # fmt: skip
        """The examples of train, validation and test indices; the first two get the label noise."""
        found = [Examples(features[part], target[part], replace(known, places=known.places[part])) for part in parts]
        if self.noise:
            found[:2] = [with_noise(part, classes, *self.noise, generator) for part in found[:2]]
        train, validation, test = found
        return train, validation, test

    def model(
        self, classes: tuple[str, ...], preprocessing: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> nn.Module:
        """See `Task.model`."""
        return networks.network(columns.width(preprocessing["columns"]), len(classes), settings)

    def default_settings(self, model: Any = None) -> dict[str, Any]:
        """See `Task.default_settings`."""
        training = {"epochs": 60, "batch_size": 64, "learning_rate": 2e-3, "weight_decay": 1e-2}
        return {**training, "schedule": "constant", **networks.DEFAULTS}

    def optimizer_candidates(self, model: Any = None) -> tuple[dict[str, Any], ...]:
        """See `Task.optimizer_candidates`."""
        return (
            {},
            {"learning_rate": 1e-3},
            {"weight_decay": 1e-1},
            {"learning_rate": 4e-3},
            {"learning_rate": 1e-3, "weight_decay": 1e-1},
            {"weight_decay": 1.0},
        )

    def read_examples(
        self, path: Path, preprocessing: Mapping[str, Any], classes: Sequence[str], target: str | None
    ) -> Examples:
        """See `Task.read_examples`."""
        name = target or self.options.get("target", "target")
        frame = read_frame(path)
        if name not in frame.columns:
            raise unknown("column", name, frame.columns)
        found = [columns.class_index(value, classes) for value in frame[name]]
        if None in found:
            row = found.index(None)
            raise UserError(
                f"Expected one of the classes trained on ({', '.join(classes)}) in row {row + 1} of column '{name}', "
                f"but got '{frame[name][row]}'."
            )
        return Examples(columns.encode(frame, preprocessing["columns"]), torch.tensor(found))

    def read_inputs(self, path: Path, preprocessing: Mapping[str, Any]) -> Tensor:
        """See `Task.read_inputs`."""
        return columns.encode(read_frame(path), preprocessing["columns"])
