"""What a Trainer does for a regularizer: it provides its inputs, trains its parameters and saves its state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from labo.errors import UserError
from labo.indexed import IndexedDataset
from labo.integrations import checkpoint_files
from labo.integrations.batch_inputs import INDEX, BatchInputs
from labo.integrations.saving import WholeCheckpoints
from labo.regularized_loss import LabelRegularizedLoss
from labo.regularizers.base import Regularizer


class RegularizedTraining(WholeCheckpoints):
    """The part of a Trainer that a regularizer needs; `_use_loss` is called when the Trainer is made."""

    def _use_loss(self, loss: LabelRegularizedLoss) -> None:
        self._inputs = self._provide(loss.regularizer)
        self.loss = loss.to(self.args.device)
        self.add_callback(_ZeroGradients(loss))

    def _provide(self, regularizer: Regularizer) -> BatchInputs:
        needs = regularizer.needs
        by_epochs = next((need for need in ("epochs", "epoch") if need in needs), None)
        if by_epochs and self.args.max_steps > 0:
            raise UserError(
                f"Method '{regularizer.name}' needs epochs, but the length of this run is set in steps (max_steps="
                f"{self.args.max_steps}): use num_train_epochs."
            )
        if "model" in needs:
            self._check_same_network(regularizer)
        # A partial epoch counts as one.
        epochs = math.ceil(self.args.num_train_epochs)
        model: Any = self.model
        inputs = BatchInputs(regularizer, self.train_dataset, model=model, epochs=epochs, seed=self.args.seed)
        self.train_dataset = inputs.dataset
        return inputs

    def _check_same_network(self, regularizer: Regularizer) -> None:
        if self.model_init is not None:  # which creates a new network when training starts
            raise UserError(f"Method '{regularizer.name}' needs the network: pass `model`, not `model_init`.")
        if "model" not in regularizer.missing and regularizer.provided("model") is not self.model:
            raise UserError(
                f"Method '{regularizer.name}' was provided with another network before: create one per network."
            )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer of the Trainer, with an additional group for the parameters of the regularizer."""
        existing = self.optimizer
        optimizer = super().create_optimizer(*args, **kwargs)
        regularizer = self.loss.regularizer
        if existing is None and regularizer.learnt():
            optimizer.add_param_group({"params": regularizer.learnt(), "weight_decay": 0.0})
        if "optimizer" in regularizer.missing:
            regularizer.provide(optimizer=optimizer)
        return optimizer

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # Labels too, because the loss needs them even if the network does not.
        columns = [
            *(self._signature_columns or []),
            "labels",
            *([INDEX] if isinstance(self._inputs.dataset, IndexedDataset) else []),
        ]
        self._signature_columns = list(dict.fromkeys(columns))

    def _batch_inputs(self, indices: Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        epoch = int((self.state.epoch or 0.0) + 1e-9)
        counts = {"epoch": epoch, "step": self.state.global_step, "steps": self.state.max_steps}
        return self._inputs.of(indices, inputs, **counts, partners=self._partners)

    def _partners(self, dataset: IndexedDataset, indices: list[int]) -> dict[str, Any]:
        collate = self._get_collator_with_removed_columns(self.data_collator)
        return self._prepare_inputs(dataset.inputs(indices, collate))

    def _write_extra(self, folder: Path) -> None:
        super()._write_extra(folder)
        checkpoint_files.save_regularizer(self.loss.regularizer, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        checkpoint_files.load_regularizer(self.loss.regularizer, Path(resume_from_checkpoint), self.args.device)


class _ZeroGradients(TrainerCallback):
    """Clears the gradients of the regularizer's parameters; the Trainer clears only those of the model."""

    def __init__(self, loss: LabelRegularizedLoss) -> None:
        self.loss = loss

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.loss.zero_grad()
