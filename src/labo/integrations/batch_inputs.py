"""The inputs that a regularizer needs from training: some once, before the first batch, others with each batch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from labo.checks import IGNORE_INDEX
from labo.errors import UserError
from labo.indexed import IndexedDataset, LabelPlaces
from labo.regularizers.base import Regularizer
from labo.regularizers.same_class import SameClass

# The key of the examples' indices in a batch; no network takes an input of this name.
INDEX = "labo_index"


class BatchInputs:
    """Provides a regularizer with the model, the numbers of examples and epochs, and each batch's inputs.

    Class counts, a teacher, a decision and the optimizer are provided elsewhere.

    Args:
        regularizer: receives what it needs of `model`, `epochs` and the number of examples.
        dataset: the training dataset, or None. If the regularizer needs indices, `self.dataset` wraps it and adds the
            index of each example under the key `INDEX`.
        model: the network being trained.
        epochs: the number of epochs.
        seed: seed of the partners.
        needs: what to provide of all that the regularizer needs; None for all.

    Raises:
        TypeError: the examples have no fixed indices, or partners are needed and an example has no class index.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        dataset: Any,
        *,
        model: nn.Module,
        epochs: int,
        seed: int,
        needs: Collection[str] | None = None,
    ) -> None:
        self.needs = frozenset(regularizer.needs if needs is None else needs)
        self.dataset = dataset
        self._indexed: IndexedDataset | None = None
        self._places: LabelPlaces | None = None
        self._same_class: SameClass | None = None
        setup_inputs: dict[str, Any] = {"model": model, "epochs": epochs}
        if dataset is not None and self.needs & {"examples", "indices", "partners"}:
            self.dataset = self._indexed = IndexedDataset(dataset, key=INDEX)
            setup_inputs["examples"] = len(self._indexed)
            if "indices" in self.needs and (counts := self._indexed.label_counts(IGNORE_INDEX)) is not None:
                self._places = LabelPlaces(counts, ignore_index=IGNORE_INDEX)
                setup_inputs["examples"] = self._places.total
            if "partners" in self.needs:
                self._same_class = SameClass(self._indexed.targets(), seed=seed)
        provided = self.needs.intersection(setup_inputs, regularizer.missing)
        regularizer.provide(**{need: setup_inputs[need] for need in provided})

    def of(
        self,
        indices: Tensor | None,
        inputs: dict[str, Any],
        *,
        epoch: int,
        step: int,
        steps: int,
        partners: Callable[[IndexedDataset, list[int]], dict[str, Any]],
    ) -> dict[str, Any]:
        """The batch inputs, as keyword arguments of the loss.

        Args:
            indices: (N,), the indices of the examples, or None.
            inputs: the inputs of the network, and the labels.
            epoch: the epoch, counted from 0.
            step, steps: the number of optimizer steps taken, and their total.
            partners: returns the inputs of the network for other examples of the dataset.

        Raises:
            UserError: partners are needed, but the batch has no indices.
        """
        needs, places = self.needs, self._places
        batch: dict[str, Any] = {}
        if "indices" in needs:
            batch["indices"] = indices if places is None or indices is None else places.of(indices, inputs["labels"])
        if "inputs" in needs:
            batch["inputs"] = {name: value for name, value in inputs.items() if name != "labels"}
        if "partners" in needs:
            if self._indexed is None or self._same_class is None or indices is None:
                raise UserError("Expected batches of the training dataset, but got a batch without indices.")
            batch["partners"] = partners(self._indexed, self._same_class.draw(indices.cpu(), epoch).tolist())
        if "epoch" in needs:
            batch["epoch"] = epoch
        if "step" in needs:
            batch["step"] = step
        if "progress" in needs:
            batch["progress"] = step / max(1, steps)
        return batch
