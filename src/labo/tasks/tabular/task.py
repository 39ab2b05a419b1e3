"""What tabular tasks share: the network, default settings, label noise, and reading new rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from labo import numeric
from labo.errors import UserError, unknown
from labo.settings import TrainingSettings
from labo.tasks.base import Examples, Origin, Task
from labo.tasks.labels import parse_label_noise, with_noise
from labo.tasks.tabular import classes as table_classes
from labo.tasks.tabular import features, table_files

MODELS = ("mlp", "linear")


@dataclass(frozen=True)
class NetworkOptions:
    """The options of the network.

    Args:
        model: "mlp", or "linear" for a network without hidden layers.
        hidden: units of a hidden layer.
        layers: hidden layers.
        dropout: probability in [0, 1), after each hidden layer.

    Raises:
        UserError: an option is out of range.
    """

    model: str = "mlp"
    hidden: int = 256
    layers: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        numeric.setting("hidden", self.hidden, minimum=1, maximum=65_536, whole=True)
        numeric.setting("layers", self.layers, minimum=0, maximum=1_000, whole=True)
        numeric.setting("dropout", self.dropout, minimum=0, below=1)


class TabularTask(Task):
    """A task whose `preprocessing` is {"columns": […]}, as `features.fit` returns them.

    Args:
        label_noise: "SHARE,symmetric|pair": this share of the training and validation labels is changed.
        options: further options that recreate the task; None counts as not given.
    """

    recorded_defaults = ("schedule",)

    def __init__(self, *, label_noise: str | None = None, **options: Any) -> None:
        options = {**options, "label_noise": label_noise}
        super().__init__(**{name: value for name, value in options.items() if value is not None})
        self.noise = parse_label_noise(label_noise) if label_noise else None

    def make_parts(
        self, inputs: Tensor, origin: Origin, target: Tensor, parts: Sequence[Tensor], classes: int,
        generator: torch.Generator,
    ) -> tuple[Examples, Examples, Examples]:  # fmt: skip
        """Train, validation and test examples of `inputs` (N, D) at the indices `parts`, the first two with noise."""
        examples = [Examples(inputs[part], target[part], origin.subset(part)) for part in parts]
        if self.noise:
            examples[:2] = [with_noise(part, classes, *self.noise, generator) for part in examples[:2]]
        train, validation, test = examples
        return train, validation, test

    @override
    def model(
        self, classes: tuple[str, ...], preprocessing: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> nn.Module:
        return build_network(features.width(preprocessing["columns"]), len(classes), settings)

    @override
    def training_settings(self, model: Any = None) -> TrainingSettings:
        return TrainingSettings(epochs=60, batch_size=64, learning_rate=2e-3, weight_decay=1e-2)

    @override
    def network_settings(self, model: Any = None) -> dict[str, Any]:
        return asdict(NetworkOptions())

    @override
    def optimizer_candidates(self, model: Any = None) -> tuple[dict[str, Any], ...]:
        return (
            {},
            {"learning_rate": 1e-3},
            {"weight_decay": 1e-1},
            {"learning_rate": 4e-3},
            {"learning_rate": 1e-3, "weight_decay": 1e-1},
            {"weight_decay": 1.0},
        )

    @override
    def read_examples(
        self, path: Path, preprocessing: Mapping[str, Any], classes: Sequence[str], target: str | None
    ) -> Examples:
        name = target or self.options.get("target", "target")
        frame = self.read_frame(path)
        if name not in frame.columns:
            raise unknown("column", name, frame.columns)
        texts = table_classes.class_texts(frame[name])
        codes = table_classes.class_codes(texts, classes, preprocessing.get("rules", 1))
        if (wrong := codes == -2).any():
            row = int(wrong.argmax())
            raise UserError(
                f"Expected one of the classes trained on ({table_classes.abbreviate(classes)}) in row {row + 1} of "
                f"column '{name}', but got '{texts[row]}'."
            )
        notes = []
        if unlabelled := int((codes == -1).sum()):
            if unlabelled == len(frame):
                raise UserError(f"The column '{name}' in '{path}' is empty in every row.")
            notes.append(table_classes.unlabelled_note(name, unlabelled))
            frame, codes = frame[codes >= 0], codes[codes >= 0]
        columns, decimal = preprocessing["columns"], self.options.get("decimal")
        inputs = features.encode(frame, columns, decimal)
        notes += features.unseen_values(frame, columns, decimal)
        return Examples(inputs, torch.from_numpy(codes), notes=tuple(notes))

    @override
    def read_inputs(self, path: Path, preprocessing: Mapping[str, Any]) -> Tensor:
        return features.encode(self.read_frame(path), preprocessing["columns"], self.options.get("decimal"))

    @override
    def input_notes(self, path: Path, preprocessing: Mapping[str, Any]) -> tuple[str, ...]:
        return features.unseen_values(self.read_frame(path), preprocessing["columns"], self.options.get("decimal"))

    def read_frame(self, path: str | Path) -> table_files.Frame:
        """The table in a file, with the separator that the task was given."""
        return table_files.read_frame(path, self.options.get("separator"))


def build_network(inputs: int, classes: int, settings: Mapping[str, Any]) -> nn.Module:
    """The network of `settings`: "mlp" (`layers` hidden layers of `hidden` units, ReLU) or "linear".

    Features (N, inputs) to logits (N, classes).

    Raises:
        UserError: a setting is out of range.
    """
    options = NetworkOptions(**{each.name: settings[each.name] for each in fields(NetworkOptions)})
    modules: list[nn.Module] = []
    width = inputs
    for _ in range(options.layers if options.model == "mlp" else 0):
        modules += [nn.Linear(width, options.hidden), nn.ReLU()]
        modules += [nn.Dropout(options.dropout)] if options.dropout else []
        width = options.hidden
    return FeatureSequential(*modules, nn.Linear(width, classes))


class FeatureSequential(nn.Sequential):
    """A sequence of layers whose input is called `features`, the key of a batch."""

    @override
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features)
