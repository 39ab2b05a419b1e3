"""What a task is: splits drawn by a seed, a network for them, and the settings to start from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from labo.errors import UserError

# An example as people look at it: a picture uint8 (H, W) or (H, W, 3), or a row's columns and values as texts.
Sample = np.ndarray | dict[str, str]


@dataclass(frozen=True)
class Origin:
    """Where examples lie in the data that they were drawn from: places (N,) int64 there, counted from 0.

    `name` says what people call the example at a place: a file, "row 18" (of place 17).
    """

    places: Tensor
    name: Callable[[int], str]

    def names(self) -> list[str]:
        """What all of them are called."""
        return [self.name(place) for place in self.places.tolist()]


@dataclass(frozen=True)
class Examples:
    """Features (N, …) float32 and class indices (N,) int64.

    A task's splits know their `origin`, and where label noise was planted the (N,) labels `before_noise`.
    """

    features: Tensor
    target: Tensor
    origin: Origin | None = None
    before_noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target)

    def class_counts(self, size: int) -> Tensor:
        """How often each of `size` classes is a label, int64 (size,)."""
        return self.target.bincount(minlength=size)

    def subset(self, chosen: Tensor) -> Examples:
        """Those of the indices `chosen`."""
        origin, before = self.origin, self.before_noise
        return replace(
            self,
            features=self._features_of(chosen),
            target=self.target[chosen],
            origin=None if origin is None else replace(origin, places=origin.places[chosen]),
            before_noise=None if before is None else before[chosen],
        )

    def _features_of(self, chosen: Tensor) -> Any:
        return self.features[chosen]

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A whole batch at once, as torch's data loader asks for it."""
        return {"features": self.features[indices], "labels": self.target[indices]}


@dataclass(frozen=True)
class Splits:
    """The three splits of one seed.

    `preprocessing` is JSON-able and all that is needed to build the network again and, with `files` (names and
    contents, to be saved beside a run), to read new inputs; `notes` are sentences that the user should see.
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
        """Whether an example has a label for each piece of a sentence, and not one."""
        return "vocabulary_size" in self.preprocessing

    @property
    def size(self) -> int:
        """Among how many classes a label is: those named, or the pieces of the vocabulary."""
        return self.preprocessing["vocabulary_size"] if self.sequences else len(self.classes)


def no_shifts(name: str) -> UserError:
    """The error for shifts of a task that has none."""
    return UserError(f"Task '{name}' has no shifts: only tasks over pictures have.")


class Task(ABC):
    """Data, a network and default settings. `options` make the same task again in another process."""

    name: ClassVar[str]
    # What its networks are measured as: "classification" or "translation".
    kind: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    # The ways in which its inputs can be made worse; see `shifted`.
    shifts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        self.options = options

    @abstractmethod
    def splits(self, seed: int) -> Splits:
        """The splits of a seed, label noise included; statistics come from the training split alone."""

    @abstractmethod
    def model(
        self, classes: tuple[str, ...], preprocessing: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> nn.Module:
        """A network with fresh weights from torch's global generator: forward(features) gives logits (N, C)."""

    def model_files(self, model: nn.Module, settings: Mapping[str, Any]) -> Mapping[str, bytes]:
        """What to save beside a run, by file name, to build its network again where the settings do not say it all."""
        return {}

    def saved_settings(self, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The settings that build a run's network again, by what `model_files` left in its folder."""
        return dict(settings)

    def notes(self, splits: Splits, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Sentences that the user should see before a network is trained with these settings."""
        return splits.notes

    def augmentation(self, splits: Splits, settings: Mapping[str, Any]) -> Any:
        """What makes of a training batch's (features, labels) those that are trained on; None for themselves."""
        return None

    @abstractmethod
    def default_settings(self, model: Any = None) -> dict[str, Any]:
        """Flat settings of training and of the network: `model`, where it names one, or the task's own."""

    @abstractmethod
    def optimizer_candidates(self, model: Any = None) -> tuple[dict[str, Any], ...]:
        """What `labo compare` may try of the optimizer, {} (the defaults) first."""

    @abstractmethod
    def read_inputs(self, path: Path, preprocessing: Mapping[str, Any]) -> Tensor:
        """The features of new, unlabelled inputs in a file."""

    def input_files(self, path: Path) -> list[str] | None:
        """The file of each input that `read_inputs` reads in `path`; None where `path` is one file of many inputs."""
        return None

    @abstractmethod
    def read_examples(
        self, path: Path, preprocessing: Mapping[str, Any], classes: Sequence[str], target: str | None
    ) -> Examples:
        """New, labelled examples in a file; `target` names the labels where it is not what the task calls them."""

    @abstractmethod
    def samples(self, examples: Examples, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """Examples of a split of this task as people look at them."""

    def shifted(self, features: Any, kind: str, severity: int, seed: int, device: Any = None) -> Any:
        """Features (N, …) made worse, by one of `shifts` at severity 1 to 5, to predict from; the seed draws the noise.

        Raises:
            UserError: there is no such shift of this task's inputs.
        """
        raise no_shifts(self.name)

    def fingerprint(self) -> str:
        """Changes when the data do; empty where they cannot."""
        return ""
