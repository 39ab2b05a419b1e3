"""A dataset that returns the index of each example, and the places of labels in a memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from labo import checks

_LABELS = ("labels", "label", "label_ids")


class IndexedDataset(Dataset):
    """Wraps `dataset` so that each example includes its index, for losses with state per example.

    A tuple or list gets the index as its last entry, a mapping gets it under `key`, and anything else becomes the pair
    (example, index).

    Args:
        dataset: a map-style dataset with a length.
        key: the name of the index in examples that are mappings.

    Raises:
        TypeError: `dataset` is iterable, so its examples have no fixed indices, or has no length.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))
        >>> features, labels, indices = next(iter(DataLoader(IndexedDataset(data), batch_size=2)))
        >>> indices
        tensor([0, 1])
    """

    def __init__(self, dataset: Any, *, key: str = "indices") -> None:
        if isinstance(dataset, IterableDataset):
            raise TypeError(
                "Expected a map-style dataset, but got an iterable one, whose examples have no fixed indices."
            )
        if not hasattr(dataset, "__len__") or not (hasattr(dataset, "__getitem__") or _fetches_batches(dataset)):
            raise TypeError(f"Expected a training dataset with a length, but got {type(dataset).__name__}.")
        self.dataset, self.key = dataset, key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self._with_index(self.dataset[index], index)

    def __getitems__(self, indices: list[int]) -> Any:
        """The examples of several indices, as torch's data loader fetches them."""
        batch = _fetch(self.dataset, indices)
        if isinstance(batch, Mapping):
            return {**batch, self.key: torch.tensor(indices, device="cpu")}
        return [self._with_index(example, index) for example, index in zip(batch, indices, strict=True)]

    def _with_index(self, example: Any, index: int) -> Any:
        if isinstance(example, Mapping):
            return {**example, self.key: index}
        return (*example, index) if isinstance(example, (tuple, list)) else (example, index)

    def inputs(self, indices: list[int], collate: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of these indices, without its labels."""
        return {name: value for name, value in collate(_fetch(self.dataset, indices)).items() if name not in _LABELS}

    def targets(self) -> Tensor:
        """The class of every example, (N,) int64.

        Raises:
            TypeError: an example has no class index as its label.
        """
        try:
            targets = checks.as_tensor(self._labels())
        except (TypeError, ValueError, RuntimeError):
            targets = torch.empty(0, 0, device="cpu")
        if targets.dim() != 1 or targets.dtype.is_floating_point:
            raise TypeError("Expected every training example to have one class index as its label.")
        return targets.long().cpu()

    def label_counts(self, ignore_index: int) -> Tensor | None:
        """The number of labels of each example, (N,) int64, as in sentences; None if each has one label."""
        target = getattr(self.dataset, "target", None)
        if (lengths := getattr(target, "lengths", None)) is not None:
            return lengths
        by_example = target is None and not hasattr(self.dataset, "column_names")
        if (
            by_example and len(self) and _one_label(_label_of(self.dataset[0]))
        ):  # one example tells, which saves reading all
            return None
        labels = self._labels()
        if not len(labels) or _one_label(labels[0]):
            return None
        labelled = (checks.as_targets(checks.as_tensor(label)) != ignore_index for label in labels)
        return torch.tensor([int(kept.sum()) for kept in labelled], device="cpu")

    def _labels(self) -> Any:
        """The labels of all examples, with None for examples without."""
        labels = getattr(self.dataset, "target", None)
        if labels is None and hasattr(self.dataset, "column_names"):
            labels = next((self.dataset[name] for name in _LABELS if name in self.dataset.column_names), None)
        if labels is None:
            labels = [_label_of(self.dataset[index]) for index in range(len(self))]
        return labels


class LabelPlaces:
    """Maps the labels of examples with several labels each, such as sentences, to places in a memory.

    The labels of all examples are concatenated. Ignored labels have no place, so padding may be on either side.

    Args:
        counts: (N,), the number of labels of each example.
        ignore_index: the value of ignored labels.

    Example:
        >>> places = LabelPlaces(torch.tensor([2, 3]), ignore_index=-100)
        >>> places.of(torch.tensor([1, 0]), torch.tensor([[7, 8, 9], [-100, 5, 6]]))
        tensor([[2, 3, 4],
                [0, 0, 1]])
    """

    def __init__(self, counts: Tensor, *, ignore_index: int) -> None:
        self.counts, self.ignore_index = counts, ignore_index
        self.starts = counts.cumsum(0) - counts
        self.total = int(counts.sum())

    def of(self, indices: Tensor, labels: Tensor) -> Tensor:
        """The place of each label of a batch, of the shape (B, d1, …) of `labels`; arbitrary for ignored labels.

        Raises:
            ValueError: an example has more labels than were counted.
        """
        if self.starts.device != labels.device:
            self.starts, self.counts = self.starts.to(labels.device), self.counts.to(labels.device)
        kept = (checks.as_targets(labels) != self.ignore_index).flatten(1)
        if labels.device.type == "cpu" and bool((kept.sum(1) > self.counts[indices]).any()):
            raise ValueError(
                "Expected an example to have as many labels as before training, but got more: a memory needs "
                "fixed label positions (no random cropping or packing)."
            )
        within = (kept.cumsum(1) - 1).clamp(min=0)
        return (self.starts[indices].unsqueeze(1) + within).view(labels.shape)


def _label_of(example: Any) -> Any:
    """The label of an example: of a mapping by its name, of a tuple or list the second entry; None without."""
    if isinstance(example, Mapping):
        return next((example[name] for name in _LABELS if name in example), None)
    return example[1] if isinstance(example, (tuple, list)) and len(example) > 1 else None


def _one_label(label: Any) -> bool:
    """Whether a label is one class index or one distribution, or there is none."""
    label = torch.empty((), device="cpu") if label is None else checks.as_tensor(label)
    return label.dim() == 0 or label.dtype.is_floating_point


def _fetches_batches(dataset: Any) -> bool:
    return callable(getattr(dataset, "__getitems__", None))


def _fetch(dataset: Any, indices: list[int]) -> Any:
    return dataset.__getitems__(indices) if _fetches_batches(dataset) else [dataset[index] for index in indices]
