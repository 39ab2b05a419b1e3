"""The interface of a task: splits drawn by a seed, a network for them, and default settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from labo.errors import UserError
from labo.settings import TrainingSettings

# An example for display: an image uint8 (H, W) or (H, W, 3), or the columns of a row and their values as strings.
Sample = np.ndarray | dict[str, str]


@dataclass(frozen=True)
class Origin:
    """Where examples stand in their source: `source_indices` (N,) int64, counted from 0.

    `name` gives the display name of a source index: a file name, or "row 18" for index 17.
    """

    source_indices: Tensor
    name: Callable[[int], str]

    def names(self) -> list[str]:
        """The display names of all examples."""
        return [self.name(index) for index in self.source_indices.tolist()]

    def subset(self, indices: Tensor) -> Origin:
        """The origin of the examples at `indices`."""
        return replace(self, source_indices=self.source_indices[indices])


@dataclass(frozen=True)
class Examples:
    """Features (N, …) float32 and class indices (N,) int64.

    The splits of a task have an `origin`; with label noise they also have the (N,) clean labels, `before_noise`.
    `notes` are sentences for who evaluates them.
    """

    features: Tensor
    target: Tensor
    origin: Origin | None = None
    before_noise: Tensor | None = None
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.target)

    def class_counts(self, size: int) -> Tensor:
        """The number of examples of each of `size` classes, int64 (size,)."""
        return self.target.bincount(minlength=size)

    def subset(self, indices: Tensor) -> Examples:
        """The examples at `indices` (M,)."""
        return replace(
            self,
            features=self._subset_features(indices),
            target=self.target[indices],
            origin=None if self.origin is None else self.origin.subset(indices),
            before_noise=None if self.before_noise is None else self.before_noise[indices],
        )

    def _subset_features(self, indices: Tensor) -> Any:
        return self.features[indices]

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch; torch's data loader calls this once for all indices of a batch."""
        return {"features": self.features[indices], "labels": self.target[indices]}


@dataclass(frozen=True)
class Splits:
    """The three splits of one seed.

    `preprocessing` is JSON-able. Together with `files` (names and contents, saved with a run) it suffices to rebuild
    the network and to read new inputs. `notes` are sentences to show to the user.
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    notes: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def sequences(self) -> bool:
        """Whether each example is a sequence with a label per token."""
        return "vocabulary_size" in self.preprocessing

    @property
    def size(self) -> int:
        """The number of classes; for sequences, the size of the target vocabulary."""
        return self.preprocessing["vocabulary_size"] if self.sequences else len(self.classes)


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`. A GPU copies it from pinned memory, so that nothing waits for work before it."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def no_shifts(name: str) -> UserError:
    """The error for distribution shifts of a task that has none."""
    return UserError(f"Task '{name}' has no shifts: only image tasks have.")


class Task(ABC):
    """Data, a network and default settings. `options` recreate the task in another process."""

    name: str
    # Decides which metrics are computed: "classification" or "translation".
    kind: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    # The distribution shifts that `shifted` can apply to inputs.
    shifts: ClassVar[tuple[str, ...]] = ()
    # Settings of training that records have even where they have their default.
    recorded_defaults: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        self.options = options

    @abstractmethod
    def splits(self, seed: int) -> Splits:
        """The splits of a seed, with label noise; statistics are computed on the training split alone."""

    def recorded_splits(self, seed: int, classes: Sequence[str], preprocessing: Mapping[str, Any]) -> Splits:
        """The splits of a run that has these `classes` and this `preprocessing`, as it was trained on them."""
        return self.splits(seed)

    @abstractmethod
    def model(
        self, classes: tuple[str, ...], preprocessing: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> nn.Module:
        """A network initialised from torch's global generator: forward(features) returns logits (N, C)."""

    def model_files(self, model: nn.Module, settings: Mapping[str, Any]) -> Mapping[str, bytes]:
        """Files to save with a run, by name, where its settings do not suffice to rebuild the network."""
        return {}

    def saved_settings(self, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The settings that rebuild the network of the run in `folder` from the files of `model_files`."""
        return dict(settings)

    def notes(self, splits: Splits, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Sentences to show before a network is trained with these settings."""
        return splits.notes

    def augmentation(self, splits: Splits, settings: Mapping[str, Any]) -> Any:
        """A function of a training batch's (features, labels) that returns the batch to train on, or None."""
        return None

    @abstractmethod
    def training_settings(self, model: Any = None) -> TrainingSettings:
        """The default settings of training, for the model named `model` or the task's default model."""

    @abstractmethod
    def network_settings(self, model: Any = None) -> dict[str, Any]:
        """The other default settings: of the network, of augmentation, of decoding."""

    def default_settings(self, model: Any = None) -> dict[str, Any]:
        """All default settings, flat, as the command line and records have them."""
        return {**self.training_settings(model).to_mapping(self.recorded_defaults), **self.network_settings(model)}

    @abstractmethod
    def optimizer_candidates(self, model: Any = None) -> tuple[dict[str, Any], ...]:
        """Optimizer settings for `labo compare` to try, first {} (the defaults)."""

    @abstractmethod
    def read_inputs(self, path: Path, preprocessing: Mapping[str, Any]) -> Tensor:
        """The features of new, unlabelled inputs in a file."""

    def input_notes(self, path: Path, preprocessing: Mapping[str, Any]) -> tuple[str, ...]:
        """Sentences for who predicts the inputs that `read_inputs` reads."""
        return ()

    def read_readable(self, path: Path, preprocessing: Mapping[str, Any]) -> tuple[Any, list[str]]:
        """(the features that `read_inputs` reads, the names of the images that are left out as unreadable).

        Raises:
            UserError: the task has no images.
        """
        raise UserError(f"Task '{self.name}' has no images, so --skip-unreadable does not apply.")

    def input_files(self, path: Path) -> list[str] | None:
        """The file of each input that `read_inputs` reads from `path`; None where `path` is one file of many inputs."""
        return None

    @abstractmethod
    def read_examples(
        self, path: Path, preprocessing: Mapping[str, Any], classes: Sequence[str], target: str | None
    ) -> Examples:
        """New, labelled examples in a file; `target` names the labels where they differ from the task's default."""

    @abstractmethod
    def samples(self, examples: Examples, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """Examples of a split of this task for display."""

    def shifted(self, features: Any, kind: str, severity: int, seed: int, device: Any = None) -> Any:
        """Features (N, …) under one of `shifts` at severity 1 to 5; `seed` determines the noise.

        Raises:
            UserError: the task has no such shift.
        """
        raise no_shifts(self.name)

    def fingerprint(self) -> str:
        """Changes when the data change; empty for data that cannot."""
        return ""
