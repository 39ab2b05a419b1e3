"""What image tasks share: splits, channel statistics, label noise, settings, and reading new images."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from labo.errors import UserError
from labo.settings import TrainingSettings
from labo.splitting import stratified, stratified_sample
from labo.tasks.base import Examples, Origin, Sample, Splits, Task
from labo.tasks.file_limits import absolute
from labo.tasks.images import corruptions, dataset, models, sources
from labo.tasks.images.augmentation import DEFAULTS as AUGMENTATION_DEFAULTS
from labo.tasks.images.augmentation import Augmentation
from labo.tasks.images.dataset import ImageExamples, ImageSet, Part
from labo.tasks.images.decoding import EncodedImages, LazyImages, NumberedNames, UnreadableError, channels_first
from labo.tasks.labels import parse_label_noise, with_noise

VALIDATION_FRACTION, MAX_VALIDATION, TEST_FRACTION = 0.1, 5_000, 0.2
# Lazily decoded training images that the channel statistics are computed on.
STATISTICS_IMAGES = 5_000
# The last set read, by its key: the seeds of a comparison differ in the split alone.
_CACHE: dict[str, tuple[ImageSet, int]] = {}


class ImageTask(Task):
    """Labelled images, as bytes (see `ImageExamples`), of one square size.

    The data's own test part tests; the seed draws the validation images from the rest, classes in proportion. If there
    is a validation part and no test part, the former tests; without either, the seed draws a fifth of the images to
    test.

    Args:
        data: where they are; by default in the folder that LABO_DATA names.
        fetch: download them if they are missing.
        image_size: the side of the images in pixels; by default the task's.
        validation_size: number of validation images; by default a tenth of the training part, at most 5,000.
        train_size: number of training images, classes in proportion; all by default.
        label_noise: "SHARE,symmetric|pair": this share of the training and validation labels is changed.
        skip_unreadable: leave out images that cannot be read, and note their number; else the first one is an error.
        options: further options that recreate the task; None counts as not given.
    """

    shifts = corruptions.KINDS
    recorded_defaults = ("optimizer", "momentum", "precision")
    size: ClassVar[int | None] = None
    crop: ClassVar[float] = 1.0
    epochs: ClassVar[int] = 20

    def __init__(
        self,
        *,
        data: str | None = None,
        fetch: bool = False,
        image_size: int | None = None,
        validation_size: int | None = None,
        train_size: int | None = None,
        label_noise: str | None = None,
        skip_unreadable: bool = False,
        **options: Any,
    ) -> None:
        for name, number in (("image_size", image_size), ("validation_size", validation_size)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise UserError(f"Expected option `{name}` to be a whole number above 0, but got {number!r}.")
        self.on_hub = data is not None and self.may_be_on_hub(data) and not Path(data).exists()
        self.data = str(absolute(data)) if data is not None and not self.on_hub else data
        # `fetch` is not an option of a task whose data are on disk; data on the hub are requested every time.
        options = {"data": self.data, "fetch": (self.on_hub and fetch) or None, "image_size": image_size} | {
            "validation_size": validation_size, "train_size": train_size, "label_noise": label_noise,
            "skip_unreadable": skip_unreadable or None
        } | options  # fmt: skip
        super().__init__(**{name: value for name, value in options.items() if value is not None})
        self.fetch, self.image_size, self.skip_unreadable = fetch, image_size, skip_unreadable
        self.validation_size, self.train_size = validation_size, train_size
        self.noise = parse_label_noise(label_noise) if label_noise else None

    def may_be_on_hub(self, data: str) -> bool:
        """Whether `data`, if no such path exists, may be the name of a data set on the Hugging Face hub."""
        return False

    @abstractmethod
    def read(self) -> ImageSet:
        """The data as they are."""

    @override
    def splits(self, seed: int) -> Splits:
        """The splits, with images as they are on the disk or decoded.

        Raises:
            UserError: there are no data or unsuitable ones, or a size does not fit them.
        """
        images, size = self._decoded()
        generator = torch.Generator().manual_seed(seed)
        selections, notes = self._draw(images, generator)
        crops = (1.0, self.crop, self.crop)  # training images are cropped by the augmentation
        parts = [part.examples(size, crop) for part, crop in zip(selections, crops, strict=True)]
        if self.noise:
            parts[:2] = [with_noise(part, len(images.classes), *self.noise, generator) for part in parts[:2]]
        train, validation, test = parts
        preprocessing: dict[str, Any] = {"image_size": size, "crop": self.crop, "folders": list(images.folders)}
        features = train.features
        if isinstance(features, LazyImages):
            features = features.subset(torch.arange(min(len(features), STATISTICS_IMAGES)))
            notes.append(f"The channel statistics are those of the first {len(features)} training images.")
        preprocessing["mean"], preprocessing["deviation"] = dataset.channel_statistics(features)
        return Splits(train, validation, test, images.classes, preprocessing, (*images.notes, *notes))

    @override
    def model(
        self, classes: tuple[str, ...], preprocessing: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> nn.Module:
        """The network of `settings`, behind `Normalized`."""
        network = models.build(settings["model"], len(classes), preprocessing["image_size"], settings)
        statistics = preprocessing["mean"], preprocessing["deviation"]
        return models.Normalized(network, *statistics, channels_last=settings.get("channels_last", False))

    @override
    def augmentation(self, splits: Splits, settings: Mapping[str, Any]) -> Augmentation:
        return Augmentation(settings, splits.preprocessing["image_size"], len(splits.classes))

    @override
    def training_settings(self, model: Any = None) -> TrainingSettings:
        """SGD with Nesterov momentum, a short warm-up, then cosine decay.

        Some models have their own (see `models.default_hyperparameters`).
        """
        usual = TrainingSettings(
            epochs=self.epochs,
            batch_size=128,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            schedule="cosine",
            warmup=0.05,
        )
        return replace(usual, **models.default_hyperparameters(model))

    @override
    def network_settings(self, model: Any = None) -> dict[str, Any]:
        return {"model": "convnet", **models.DEFAULTS, **AUGMENTATION_DEFAULTS, "augment": "standard"}

    @override
    def optimizer_candidates(self, model: Any = None) -> tuple[dict[str, Any], ...]:
        defaults = self.training_settings(model)
        half, double = ({"learning_rate": defaults.learning_rate * factor} for factor in (0.5, 2))
        decay_2, decay_4 = ({"weight_decay": defaults.weight_decay * factor} for factor in (2, 4))
        return {}, half, decay_2, double, half | decay_2, decay_4

    @override
    def read_inputs(self, path: Path, preprocessing: Mapping[str, Any]) -> Tensor:
        """An image, all in a folder, or the array `images` of an .npz file; uint8."""
        try:
            return self._read_features(sources.read_unlabelled(path), preprocessing)[0]
        except UnreadableError as error:
            raise UserError(f"{str(error).rstrip('.')}; {dataset.SKIP_HINT}.") from error

    @override
    def read_readable(self, path: Path, preprocessing: Mapping[str, Any]) -> tuple[Any, list[str]]:
        images = sources.read_unlabelled(path)
        features, unreadable = self._read_features(images, preprocessing, skip_unreadable=True)
        if not len(features):
            raise UserError(f"No image in '{path}' can be read.")
        return features, unreadable

    @override
    def input_files(self, path: Path) -> list[str] | None:
        """An image file is one input, an .npz file holds many."""
        files = sources.image_files(path)
        return None if files is None else [str(file) for file in files]

    @override
    def read_examples(
        self, path: Path, preprocessing: Mapping[str, Any], classes: Sequence[str], target: str | None
    ) -> ImageExamples:
        """Class folders, an .npz file, or a data set on disk that `datasets` reads."""
        part = sources.read_labelled(path, target or self.options.get("target"), classes, preprocessing["folders"])
        return ImageExamples(self._read_features(part.images, preprocessing)[0], torch.from_numpy(part.labels))

    @override
    def samples(self, examples: Examples, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """The images as the network receives them."""
        return list(examples.features[:].permute(0, 2, 3, 1).numpy())

    @override
    def shifted(
        self, features: Any, kind: str, severity: int, seed: int, device: Any = None
    ) -> corruptions.CorruptedImages:
        """Images with noise, blur or less contrast, computed in chunks on `device`."""
        return corruptions.CorruptedImages(features, kind, severity, seed, device)

    def _decoded(self) -> tuple[ImageSet, int]:
        """(the data at one size, in memory if they fit, the size); kept for the next seed."""
        split_options = ("train_size", "validation_size", "label_noise")
        read_options = {key: value for key, value in self.options.items() if key not in split_options}
        key = json.dumps([self.name, self.fingerprint(), read_options], sort_keys=True)
        if key not in _CACHE:
            _CACHE.clear()
            images = self.read()
            size = self.image_size or self.size or dataset.common_size(images.parts["train"])
            if size is None:
                size = dataset.DEFAULT_SIZE
                images = replace(images, notes=(*images.notes, dataset.SIZE_NOTE))
            _CACHE[key] = dataset.decode_set(images, size, self.crop, self.skip_unreadable), size
        return _CACHE[key]

    def _draw(self, images: ImageSet, generator: torch.Generator) -> tuple[list[_Selection], list[str]]:
        """The train, validation and test images, and notes on them."""
        train = _Selection.of_part(images.parts, "train")
        validation, test = (
            _Selection.of_part(images.parts, name) if name in images.parts else None for name in ("validation", "test")
        )
        notes = []
        if test is None and validation is not None:
            validation, test = None, validation
            notes.append("The data have no test part: their validation part tests, and the seed draws what validates.")
        if test is None:
            single = train.labels.bincount(minlength=len(images.classes)) == 1
            if single.any():
                raise UserError(
                    f"The class '{images.classes[int(single.int().argmax())]}' has a single image, which cannot be in "
                    "both training and test: merge the class with another or leave it out."
                )
            train, test = train.split(stratified(train.labels, (1 - TEST_FRACTION, TEST_FRACTION), generator))
            notes.append("The data have no test part: the seed draws a fifth of the images to test.")
        if validation is None:
            size = self._validation_size(len(train.labels), len(images.classes))
            train, validation = train.split(stratified(train.labels, (len(train.labels) - size, size), generator))
        elif self.validation_size is not None:
            raise UserError("The data have a validation part of their own: leave `validation_size` out.")
        return [self._sample(train, generator), validation, test], notes

    def _validation_size(self, count: int, classes: int) -> int:
        size = self.validation_size
        if size is None:
            size = max(classes, min(MAX_VALIDATION, round(VALIDATION_FRACTION * count)))
        if not classes <= size <= count - classes:
            raise UserError(
                f"Expected a validation size from {classes} (the number of classes) to {count - classes} (all but one "
                f"image of each class), but got {size}; the training part holds {count} images."
            )
        return size

    def _sample(self, train: _Selection, generator: torch.Generator) -> _Selection:
        if self.train_size is None:
            return train
        try:
            return train.split([stratified_sample(train.labels, self.train_size, generator)])[0]
        except ValueError as error:
            raise UserError(
                f"Expected a train size from {len(train.labels.unique())} (the number of classes) to "
                f"{len(train.labels)} (all training images), but got {self.train_size}."
            ) from error

    def _read_features(
        self, images: np.ndarray | EncodedImages, preprocessing: Mapping[str, Any], *, skip_unreadable: bool = False
    ) -> tuple[Any, list[str]]:
        size, crop = preprocessing["image_size"], preprocessing["crop"]
        part = Part(images, np.zeros(len(images), np.int64))
        decoded, unreadable = dataset.decode_part(part, size, crop, skip_unreadable=skip_unreadable)
        return _features(decoded.images, size, crop), unreadable


def _features(images: np.ndarray | EncodedImages, size: int, crop: float, index: Tensor | None = None) -> Any:
    """The images, or those at `index`, as uint8 (N, 3, size, size); `LazyImages` where they are still encoded."""
    if isinstance(images, EncodedImages):
        return LazyImages(images, torch.arange(len(images)) if index is None else index, size, crop)
    return channels_first(images if index is None else images[index.numpy()])


@dataclass(frozen=True)
class _Selection:
    """Images of a part: their `index` in it (None for all), their labels, and those to train on if they differ."""

    images: np.ndarray | EncodedImages
    labels: Tensor
    part_origin: Origin
    index: Tensor | None = None
    given: Tensor | None = None

    @classmethod
    def of_part(cls, parts: Mapping[str, Part], name: str) -> _Selection:
        part = parts[name]
        indices = np.arange(len(part.labels)) if part.source_indices is None else part.source_indices
        origin = Origin(torch.from_numpy(indices), part.name or NumberedNames(name))
        given = None if part.given is None else torch.from_numpy(part.given)
        return cls(part.images, torch.from_numpy(part.labels), origin, given=given)

    def examples(self, size: int, crop: float) -> ImageExamples:
        features = _features(self.images, size, crop, self.index)
        if self.given is None:
            return ImageExamples(features, self.labels, self.origin())
        given = self.given if self.index is None else self.given[self.index]
        return ImageExamples(features, given, self.origin(), before_noise=self.labels)

    def origin(self) -> Origin:
        return self.part_origin if self.index is None else self.part_origin.subset(self.index)

    def split(self, pieces: Sequence[Tensor]) -> list[_Selection]:
        """Selections of these images at the indices of each piece."""
        return [
            replace(self, labels=self.labels[piece], index=piece if self.index is None else self.index[piece])
            for piece in pieces
        ]
