"""Transformers' Trainer with a regularizer as its loss.

    Trainer(…, compute_loss_func=TrainerLoss(LabelRegularizedLoss(regularizer)))

is enough for regularizers without batch inputs and without state. `LabelRegularizedTrainer` also provides their inputs,
saves their state in checkpoints, and writes checkpoints atomically.

Importing this module lets every Trainer with a `TrainerLoss` count the targets of that loss (see `targets.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from labo.errors import UserError
from labo.indexed import IndexedDataset
from labo.integrations import checkpoint_files, heads, targets
from labo.integrations.batch_inputs import INDEX, BatchInputs
from labo.integrations.checkpoint_files import REGULARIZER as REGULARIZER
from labo.integrations.saving import WholeCheckpoints
from labo.integrations.trainer_loss import TrainerLoss
from labo.modules import LabelRegularizedLoss
from labo.networks import logits_of
from labo.regularizers.base import Regularizer

__all__ = ["LabelRegularizedTrainer", "TrainerLoss"]

targets.own_the_denominator()


class LabelRegularizedTrainer(WholeCheckpoints):
    """`transformers.Trainer` whose loss is a regularizer.

    The regularizer receives the model, the numbers of examples and epochs, the optimizer, and with every batch the
    inputs that it needs. Class counts and a teacher are provided by you, with `regularizer.provide`. `dense_logits` are
    taken from the outputs of the model. Its learnt parameters are an optimizer group without weight decay.

    The state of the regularizer is saved in every checkpoint and restored by `resume_from_checkpoint`. Each checkpoint
    is written to a temporary folder and renamed, so that a folder checkpoint-N is always complete.

    Args:
        loss: the loss; `LabelRegularizedLoss(labo.regularizers.create(name, …))`.
        shift_labels: as in `TrainerLoss`; by default True for causal language models of Transformers, classes that
            inherit from one, and these under torch.compile or PEFT; required for logits (B, T, C) of unknown networks.
        class_dim: as in `TrainerLoss`; sequences of Transformers' networks have classes last.
        linear: compute the loss from the last hidden states in training, so that the (tokens, V) logits are never
            materialized; for networks with an output embedding, and methods that support it. Evaluation uses logits.
        args, kwargs: as in `transformers.Trainer`, without `compute_loss_func`.

    If a batch of an encoder-decoder network lacks `decoder_input_ids`, they are computed from its labels. Outputs may
    have any form that `TrainerLoss` accepts, and all of them are among the predictions. The loss of an evaluation is,
    as the Trainer computes it, the mean over its batches, weighted by their examples.

    Raises:
        TypeError, ValueError: as in `TrainerLoss`; the regularizer needs epochs but max_steps is set; linear=True is
            not supported by the method or the network, or the weights are sharded; one process has several GPUs.
    """

    def __init__(
        self,
        *args: Any,
        loss: LabelRegularizedLoss,
        shift_labels: bool | None = None,
        class_dim: int | None = None,
        linear: bool = False,
        **kwargs: Any,
    ) -> None:
        compute = TrainerLoss(loss, shift_labels=shift_labels, class_dim=class_dim)
        super().__init__(*args, compute_loss_func=compute, **kwargs)
        targets.require_one_device(self.args)
        if shift_labels is None:
            compute.shift_labels = targets.predicts_next_token(self.model)
        compute.of_transformers = isinstance(targets.unwrapped(self.model), PreTrainedModel)
        if self.args.label_names is None or not self.label_names:  # this loss takes labels, whatever the network takes
            self.label_names = ["labels"]
        self._compute = compute
        self._inputs = self._provide(loss.regularizer)
        self.linear = linear
        self._checked_network: nn.Module | None = None
        if linear:
            self._check_linear(loss.regularizer)
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

    def _check_linear(self, regularizer: Regularizer) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(
                "Expected an unsharded network in each process for linear=True (one device, or "
                "DistributedDataParallel), but the Trainer shards its weights: use linear=False."
            )
        heads.require_linear_form(regularizer, len(heads.head_of(self._network(self.model)).weight))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """Like `Trainer.compute_loss`, with the batch inputs of the regularizer."""
        self.loss.train(model.training)
        indices = inputs.pop(INDEX, None)
        network = self._network(model)
        inputs = heads.with_decoder_inputs(network, inputs)
        self._compute.batch = self._batch_inputs(indices, inputs) if model.training else {}
        # A caller that requests outputs expects logits among them.
        linear = self.linear and model.training and not return_outputs
        try:
            with self._hidden(network, inputs) if linear else nullcontext():
                return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        finally:
            self._compute.batch = {}

    def prediction_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Like `Trainer.prediction_step`, which expects outputs with names or a loss in front of them."""
        hook = model.register_forward_hook(lambda module, inputs, outputs: _named(outputs))
        try:
            return super().prediction_step(model, *args, **kwargs)
        finally:
            hook.remove()

    def _network(self, model: Any) -> nn.Module:
        """The network without the wrappers of the Trainer and torch.compile."""
        network = self.accelerator.unwrap_model(model)
        return getattr(network, "_orig_mod", network)

    @contextmanager
    def _hidden(self, network: nn.Module, inputs: dict[str, Any]) -> Iterator[None]:
        """Hidden states instead of logits, for the network and for the loss."""
        if self._checked_network is not network:
            heads.require_plain_head(network, inputs)
            self._checked_network = network
        # The loss now multiplies with the head, in the precision of autocast, as the network would.
        with heads.hidden_states(network) as self._compute.head, self.accelerator.autocast():
            try:
                yield
            finally:
                self._compute.head = None

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


def _named(outputs: Any) -> dict[str, Any]:
    """The outputs of a network by name, in their order."""
    if isinstance(outputs, Mapping):
        return outputs if isinstance(outputs, dict) else dict(outputs)
    if hasattr(outputs, "logits") and hasattr(outputs, "_asdict"):  # a named tuple
        return outputs._asdict()
    if hasattr(outputs, "logits") or not isinstance(outputs, tuple):
        return {"logits": logits_of(outputs)}
    return {"logits": logits_of(outputs)} | {f"output_{index}": value for index, value in enumerate(outputs) if index}


class _ZeroGradients(TrainerCallback):
    """Clears the gradients of the regularizer's parameters; the Trainer clears only those of the model."""

    def __init__(self, loss: LabelRegularizedLoss) -> None:
        self.loss = loss

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.loss.zero_grad()
