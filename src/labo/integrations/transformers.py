"""Transformers' Trainer with a regularizer as its loss.

    Trainer(model=fuse(model), …)                      # language models: from hidden states, without logits
    Trainer(…, compute_loss_func=labo_loss())          # any network: from logits

are enough for regularizers without batch inputs and without state. `LabelRegularizedTrainer` also provides their
inputs, saves their state in checkpoints, and writes checkpoints atomically.

Importing this module lets every Trainer with one of these losses count its targets (see `targets.py`), and check that
it is the only loss (see `attached.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from labo.errors import UserError
from labo.integrations import attached, heads, targets
from labo.integrations.batch_inputs import INDEX
from labo.integrations.checkpoint_files import REGULARIZER as REGULARIZER
from labo.integrations.fused import criterion, fuse, unfuse, with_logits
from labo.integrations.regularized import RegularizedTraining
from labo.integrations.trainer_loss import TrainerLoss
from labo.networks import logits_of
from labo.regularized_loss import LabelRegularizedLoss
from labo.regularizers.base import Regularizer

__all__ = ["LabelRegularizedTrainer", "TrainerLoss", "fuse", "labo_loss", "unfuse", "with_logits"]

targets.own_the_denominator()
attached.attach_to_trainers()


def labo_loss(
    method: str | LabelRegularizedLoss = "labo",
    *,
    shift_labels: bool | None = None,
    class_dim: int | None = None,
    weight: Tensor | None = None,
    **options: Any,
) -> TrainerLoss:
    """LABO as the `compute_loss_func` of Transformers' Trainer, where `label_smoothing_factor` would stand.

        Trainer(…, compute_loss_func=labo_loss(alpha=0.1, beta=2.0))

    The mean is over the targets of the whole accumulated batch on all devices. The loss of an evaluation is the
    negative log-likelihood. Causal language models predict the next label; `decoder_input_ids` that the batch of an
    encoder-decoder network lacks are computed from its labels.

    Args:
        method: a method, such as "labo" or "label_smoothing", or a loss.
        shift_labels: as in `TrainerLoss`; by default known from the class of the network.
        class_dim: as in `TrainerLoss`.
        weight: (C,) class weights, as in `LabelRegularizedLoss`.
        options: options of the method, as in `labo.regularizers.create`.

    Raises:
        UserError: an option is unknown; when the Trainer is made, it was also given `label_smoothing_factor` or
            `use_liger_kernel`.

    Example:
        >>> import torch
        >>> labo_loss()({"logits": torch.zeros(2, 4)}, torch.tensor([0, 3]))
        tensor(1.3863)
    """
    loss = criterion(method, weight=weight, **options)
    return TrainerLoss(loss, shift_labels=shift_labels, class_dim=class_dim, nll_in_evaluation=True)


class LabelRegularizedTrainer(RegularizedTraining):
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
        self._compute: Any = self.compute_loss_func  # the one that is bound to the network
        targets.require_one_device(self.args)
        if self.args.label_names is None or not self.label_names:  # this loss takes labels, whatever the network takes
            self.label_names = ["labels"]
        self._use_loss(loss)
        self.linear = linear
        self._checked_network: nn.Module | None = None
        if linear:
            self._check_linear(loss.regularizer)

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


def _named(outputs: Any) -> dict[str, Any]:
    """The outputs of a network by name, in their order."""
    if isinstance(outputs, Mapping):
        return outputs if isinstance(outputs, dict) else dict(outputs)
    if hasattr(outputs, "logits") and hasattr(outputs, "_asdict"):  # a named tuple
        return outputs._asdict()
    if hasattr(outputs, "logits") or not isinstance(outputs, tuple):
        return {"logits": logits_of(outputs)}
    return {"logits": logits_of(outputs)} | {f"output_{index}": value for index, value in enumerate(outputs) if index}
