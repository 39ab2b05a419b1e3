"""What tasks over pictures share: splits, statistics, label noise, settings, reading new pictures."""

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

from labo.errors import UserError
from labo.splitting import some, stratified
from labo.tasks.base import Examples, Origin, Sample, Splits, Task
from labo.tasks.images import augmentation as augment
from labo.tasks.images import corruptions as shift
from labo.tasks.images import dataset as sets
from labo.tasks.images import models, own
from labo.tasks.images.dataset import ImageSet, Part
from labo.tasks.images.decoding import Encoded, Numbered, Pictures, channels_first
from labo.tasks.images.examples import ImageExamples, Normalised, channel_statistics
from labo.tasks.labels import parse_label_noise, with_noise

VALIDATION_SHARE, MOST_VALIDATION, TEST_SHARE = 0.1, 5_000, 0.2
# So many training pictures tell the channels' statistics where they are decoded one by one.
STATISTICS_PICTURES = 5_000
# The last set read, by what it was read with: the seeds of a comparison differ in the split alone.
_KEPT: dict[str, tuple[ImageSet, int]] = {}


class ImageTask(Task):
    """Pictures of classes, as bytes (see `ImageExamples`), of one square size.

    The data's own test part tests, and the seed draws what validates, classes in proportion, from the rest. Data with
    a validation part and no test part test on the former; of data without either, the seed draws a fifth to test.

    Args:
        data: where they lie; by default in the folder that LABO_DATA names.
        fetch: download them if they are not there.
        image_size: the side of the pictures; by default the task's.
        validation_size: how many validate; by default a tenth of the training part, at most 5,000.
        train_size: how many of the rest to train on, classes in proportion; all by default.
        label_noise: "SHARE,symmetric|pair" of the training and validation labels are turned into wrong ones.
        skip_unreadable: leave out pictures that cannot be read, and tell how many; else the first one is an error.
        options: what else makes the task again; None counts as not given.
    """

    shifts = shift.KINDS
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
        named = data is not None and self.may_be_on_hub(data) and not Path(data).exists()
        self.data = str(Path(data).resolve()) if data is not None and not named else data
        # Fetching is no part of a task, once the data are there; those on the hub are asked for every time.
        given = {"data": self.data, "fetch": (named and fetch) or None, "image_size": image_size} | {
            "validation_size": validation_size, "train_size": train_size, "label_noise": label_noise,
            "skip_unreadable": skip_unreadable or None
        }  # fmt: skip
        super().__init__(**{name: value for name, value in {**given, **options}.items() if value is not None})
        self.on_hub = named
        self.fetch, self.image_size, self.skip_unreadable = fetch, image_size, skip_unreadable
        self.validation_size, self.train_size = validation_size, train_size
        self.noise = parse_label_noise(label_noise) if label_noise else None

    def may_be_on_hub(self, data: str) -> bool:
        """Whether what is no path here is perhaps the name of a data set on the Hugging Face hub."""
        return False

    @abstractmethod
    def read(self) -> ImageSet:
        """The data, as they are."""

    def splits(self, seed: int) -> Splits:
        """See `Task.splits`.

        Raises:
            UserError: the data are not there or will not do, or a size does not fit them.
        """
        found, size = self._prepared()
        generator = torch.Generator().manual_seed(seed)
        parts, notes = self._drawn(found, generator)
        crops = (1.0, self.crop, self.crop)  # to train on, parts of the whole are drawn by the augmentation
        drawn = [
            ImageExamples(self._features(part.images, size, crop, part.index), part.labels, part.origin())
            for part, crop in zip(parts, crops, strict=True)
        ]
        if self.noise:
            drawn[:2] = [with_noise(part, len(found.classes), *self.noise, generator) for part in drawn[:2]]
        train, validation, test = drawn
        about = {"image_size": size, "crop": self.crop, "folders": list(found.folders)}
        seen = train.features
        if isinstance(seen, Pictures):
            seen = seen.subset(torch.arange(min(len(seen), STATISTICS_PICTURES)))
            notes.append(f"The channels' statistics are those of the first {len(seen)} training pictures.")
        about["mean"], about["deviation"] = channel_statistics(seen)
        return Splits(train, validation, test, found.classes, about, (*found.notes, *notes))

    def model(
        self, classes: tuple[str, ...], preprocessing: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> nn.Module:
        """See `Task.model`: the network that `settings` name, behind `Normalised`."""
        network = models.build(settings["model"], len(classes), preprocessing["image_size"], settings)
        statistics = preprocessing["mean"], preprocessing["deviation"]
        return Normalised(network, *statistics, channels_last=settings.get("channels_last", False))

    def augmentation(self, splits: Splits, settings: Mapping[str, Any]) -> augment.Augmentation:
        """See `Task.augmentation`: what `settings` say is done to a batch of bytes."""
        return augment.Augmentation(settings, splits.preprocessing["image_size"], len(splits.classes))

    def default_settings(self, model: Any = None) -> dict[str, Any]:
        """See `Task.default_settings`: SGD with Nesterov's momentum, a short warm-up, then a cosine.

        A model may have its own instead (see `models.usual`).
        """
        length = {"epochs": self.epochs, "batch_size": 128}
        steps = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
        steps |= models.usual(model)
        rate = {"precision": "float32", "schedule": "cosine", "warmup": 0.05}
        return {
            **length,
            **steps,
            **rate,
            "model": "convnet",
            **models.DEFAULTS,
            **augment.DEFAULTS,
            "augment": "standard",
        }

    def optimizer_candidates(self, model: Any = None) -> tuple[dict[str, Any], ...]:
        """See `Task.optimizer_candidates`."""
        usual = self.default_settings(model)
        half, twice = ({"learning_rate": usual["learning_rate"] * factor} for factor in (0.5, 2))
        more, most = ({"weight_decay": usual["weight_decay"] * factor} for factor in (2, 4))
        return {}, half, more, twice, half | more, most

    def read_inputs(self, path: Path, preprocessing: Mapping[str, Any]) -> Tensor:
        """See `Task.read_inputs`: a picture, all in a folder, or the array `images` of an .npz file; uint8."""
        return self._read(own.unlabelled(path), preprocessing)

    def input_files(self, path: Path) -> list[str] | None:
        """See `Task.input_files`: a picture is a file, an .npz file holds many."""
        files = own.files_of(path)
        return None if files is None else [str(file) for file in files]

    def read_examples(
        self, path: Path, preprocessing: Mapping[str, Any], classes: Sequence[str], target: str | None
    ) -> ImageExamples:
        """See `Task.read_examples`: class folders, an .npz file, or a data set that `datasets` reads here."""
        part = own.labelled(path, target or self.options.get("target"), classes, preprocessing["folders"])
        return ImageExamples(self._read(part.images, preprocessing), torch.from_numpy(part.labels))

    def samples(self, examples: Examples, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """See `Task.samples`: the pictures as the network gets them."""
        return list(examples.features[:].permute(0, 2, 3, 1).numpy())

    def shifted(self, features: Any, kind: str, severity: int, seed: int, device: Any = None) -> shift.Shifted:
        """See `Task.shifted`: pictures with noise, blur or less contrast, made in pieces on `device`."""
        return shift.Shifted(features, kind, severity, seed, device)

    def _prepared(self) -> tuple[ImageSet, int]:
        """(the data at one size, in memory if they fit, the size); kept for the next seed."""
        drawing = ("train_size", "validation_size", "label_noise")
        reading = {key: value for key, value in self.options.items() if key not in drawing}
        key = json.dumps([self.name, self.fingerprint(), reading], sort_keys=True)
        if key not in _KEPT:
            _KEPT.clear()
            found = self.read()
            size = self.image_size or self.size or sets.common_size(found.parts["train"])
            if size is None:
                size = sets.DEFAULT_SIZE
                found = replace(found, notes=(*found.notes, sets.SIZE_NOTE))
            _KEPT[key] = sets.prepared(found, size, self.crop, self.skip_unreadable), size
        return _KEPT[key]

    def _drawn(self, found: ImageSet, generator: torch.Generator) -> tuple[list[_Drawn], list[str]]:
        """Train, validation and test, and what is to be said of them."""
        train = _Drawn.all_of(found.parts, "train")
        validation, test = (
            _Drawn.all_of(found.parts, name) if name in found.parts else None for name in ("validation", "test")
        )
        notes = []
        if test is None and validation is not None:
            validation, test = None, validation
            notes.append("The data have no test part: their validation part tests, and the seed draws what validates.")
        if test is None:
            lonely = train.labels.bincount(minlength=len(found.classes)) == 1
            if lonely.any():
                raise UserError(
                    f"The class '{found.classes[int(lonely.int().argmax())]}' has a single picture, which cannot both "
                    "train and test: merge the class with another or leave it out."
                )
            train, test = train.cut(stratified(train.labels, (1 - TEST_SHARE, TEST_SHARE), generator))
            notes.append("The data have no test part: the seed draws a fifth of the pictures to test.")
        if validation is None:
            size = self._validation_size(len(train.labels), len(found.classes))
            train, validation = train.cut(stratified(train.labels, (len(train.labels) - size, size), generator))
        elif self.validation_size is not None:
            raise UserError("The data have a validation part of their own: leave `validation_size` out.")
        return [self._fewer(train, generator), validation, test], notes

    def _validation_size(self, count: int, classes: int) -> int:
        size = self.validation_size
        if size is None:
            size = max(classes, min(MOST_VALIDATION, round(VALIDATION_SHARE * count)))
        if not classes <= size <= count - classes:
            raise UserError(
                f"Expected a validation size from {classes} (the classes) to {count - classes} (all but one picture of "
                f"each class), but got {size}; the training part holds {count} pictures."
            )
        return size

    def _fewer(self, train: _Drawn, generator: torch.Generator) -> _Drawn:
        if self.train_size is None:
            return train
        try:
            return train.cut([some(train.labels, self.train_size, generator)])[0]
        except ValueError as error:
            raise UserError(
                f"Expected a train size from {len(train.labels.unique())} (the classes) to {len(train.labels)} (all "
                f"there is to train on), but got {self.train_size}."
            ) from error

    def _read(self, images: np.ndarray | Encoded, preprocessing: Mapping[str, Any]) -> Any:
        size, crop = preprocessing["image_size"], preprocessing["crop"]
        part, _ = sets.prepared_part(Part(images, np.zeros(len(images), np.int64)), size, crop, skip_unreadable=False)
        return self._features(part.images, size, crop)

    def _features(self, images: np.ndarray | Encoded, size: int, crop: float, index: Tensor | None = None) -> Any:
        """The pictures, or those of `index`, as uint8 (N, 3, size, size); still encoded where they do not fit."""
        if isinstance(images, Encoded):
            return Pictures(images, torch.arange(len(images)) if index is None else index, size, crop)
        return channels_first(images if index is None else images[index.numpy()])


@dataclass(frozen=True)
class _Drawn:
    """Some pictures of a part: `index` among them, None for all, and their labels."""

    images: np.ndarray | Encoded
    labels: Tensor
    all: Origin
    index: Tensor | None = None

    @classmethod
    def all_of(cls, parts: Mapping[str, Part], name: str) -> _Drawn:
        part = parts[name]
        places = np.arange(len(part.labels)) if part.kept is None else part.kept
        origin = Origin(torch.from_numpy(places), part.name or Numbered(name))
        return cls(part.images, torch.from_numpy(part.labels), origin)

    def origin(self) -> Origin:
        return self.all if self.index is None else replace(self.all, places=self.all.places[self.index])

    def cut(self, pieces: Sequence[Tensor]) -> list[_Drawn]:
        """Pieces, each of these of its pictures."""
        return [
            replace(self, labels=self.labels[piece], index=piece if self.index is None else self.index[piece])
            for piece in pieces
        ]
