"""A dataset whose examples say where they lie in it, and whose other examples of a class can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

INDEX = "labo_index"
_LABELS = ("labels", "label", "label_ids")


class Indexed(Dataset):
    """`dataset`, a map-style one of mappings, whose batches hold the places of their examples under `INDEX`."""

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "__len__") or not (hasattr(dataset, "__getitem__") or _whole(dataset)):
            raise TypeError(f"Expected a training dataset with a length, but got {type(dataset).__name__}.")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], INDEX: index}

    def __getitems__(self, indices: list[int]) -> Any:
        """Examples of several places, as torch's data loader asks for them."""
        found = _fetch(self.dataset, indices)
        if isinstance(found, Mapping):
            return {**found, INDEX: torch.tensor(indices)}
        return [{**example, INDEX: index} for example, index in zip(found, indices, strict=True)]

    def inputs(self, indices: list[int], collate: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of so many places, without its labels."""
        return {name: value for name, value in collate(_fetch(self.dataset, indices)).items() if name not in _LABELS}

    def targets(self) -> Tensor:
        """The class of every example, (N,) int64.

        Raises:
            TypeError: the examples have no class index each.
        """
        known = getattr(self.dataset, "target", None)
        if known is None and hasattr(self.dataset, "column_names"):
            known = next((self.dataset[name] for name in _LABELS if name in self.dataset.column_names), None)
        if known is None:
            examples = (self.dataset[index] for index in range(len(self)))
            known = [next((example[name] for name in _LABELS if name in example), None) for example in examples]
        try:
            found = torch.as_tensor(known)
        except (TypeError, ValueError, RuntimeError):
            found = torch.empty(0, 0)
        if found.dim() != 1 or found.dtype.is_floating_point:
            raise TypeError("Expected every training example to have one class index as its label.")
        return found.long().cpu()


def _whole(dataset: Any) -> bool:
    return callable(getattr(dataset, "__getitems__", None))


def _fetch(dataset: Any, indices: list[int]) -> Any:
    return dataset.__getitems__(indices) if _whole(dataset) else [dataset[index] for index in indices]
