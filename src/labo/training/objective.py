"""The training loss on a part of a batch: augmentation, the forward pass, what the regularizer needs, the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from labo import regularizers
from labo.errors import UserError
from labo.indexed import IndexedDataset
from labo.integrations import heads
from labo.integrations.batch_inputs import INDEX, BatchInputs
from labo.kernels.linear import Head
from labo.networks import logits_of
from labo.regularized_loss import LabelRegularizedLoss
from labo.settings import TrainingSettings
from labo.training import data_loading

# (features, labels) of a batch to those that are trained on.
Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Objective:
    """The training loss of a network on parts of batches.

    Args:
        model: the network, on the device.
        loss: its loss; before `settings.start_after` steps it is that of the method `settings.start_with`.
        settings: of the training.
        inputs: what the regularizer needs with each batch.
        augment: applied to each part of a batch, and to partners; None for nothing.
        sequences: whether examples have a label for each token.
        linear: whether to compute the loss from the last hidden states, so that logits are never whole in memory.
        device: where the network is.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LabelRegularizedLoss,
        settings: TrainingSettings,
        inputs: BatchInputs,
        *,
        augment: Augment | None,
        sequences: bool,
        linear: bool,
        device: torch.device,
    ) -> None:
        self.model, self.loss, self.settings, self.inputs = model, loss, settings, inputs
        self.augment, self.sequences, self.linear, self.device = augment, sequences, linear, device
        self.first_loss = LabelRegularizedLoss(regularizers.create(settings.start_with))
        self.plain_loss = LabelRegularizedLoss(regularizers.create("none"))

    def __call__(
        self,
        network: nn.Module,
        inputs: dict[str, Tensor],
        count: Tensor,
        *,
        epoch: int,
        step: int,
        steps: int,
        with_nll: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """(the sum of the loss over the rows of a part, divided by `count`; the plain NLL of the part, or None).

        Args:
            network: what is called: the model, which may be split over the processes, or its DistributedDataParallel.
            inputs: a part of a batch, with its labels.
            count: (), the rows of the whole batch in all processes.
            epoch, step, steps: the number of the epoch, and how many steps were taken, of how many.
            with_nll: whether to compute the NLL, a mean over the rows of the part, which has no gradient.
        """
        indices = inputs.pop(INDEX, None)
        if self.augment is not None:
            inputs["features"], inputs["labels"] = self.augment(inputs["features"], inputs["labels"])
        if self.sequences:
            inputs = heads.with_decoder_inputs(self.model, inputs)
        batch = self.inputs.of(indices, inputs, epoch=epoch, step=step, steps=steps, partners=self._partner_inputs)
        labels = inputs.pop("labels")
        loss, nll = self.loss if step >= self.settings.start_after else self.first_loss, None
        if self.linear and (unshard := getattr(network, "unshard", None)) is not None:
            unshard()  # of FSDP: the loss uses the head's weights outside the forward pass
        with heads.hidden_states(self.model) if self.linear else nullcontext() as head:
            outputs = network(**inputs)
            if "dense_logits" in self.inputs.needs:
                batch["dense_logits"] = outputs.get("dense_logits") if isinstance(outputs, Mapping) else None
            logits = logits_of(outputs)
            # The product with the head is a part of the loss then, in the precision of the network's other products.
            half = self.linear and self.settings.precision == "bfloat16"
            with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
                if with_nll:
                    with torch.no_grad():
                        nll = compute_loss(self.plain_loss, logits, labels, head)
                return compute_loss(loss, logits, labels, head, count, batch), nll

    def _partner_inputs(self, dataset: IndexedDataset, indices: list[int]) -> dict[str, Any]:
        """The network's inputs for other examples of the same classes, augmented as the batch is."""
        inputs = data_loading.to_device(dataset.inputs(indices, data_loading.identity_collate), self.device)
        if self.augment is not None:
            inputs["features"], _ = self.augment(inputs["features"], torch.zeros(len(indices), dtype=torch.long))
        return inputs


def compute_loss(
    loss: LabelRegularizedLoss,
    logits: Tensor,
    labels: Tensor,
    head: Head | None,
    count: Tensor | None = None,
    batch: Mapping[str, Any] | None = None,
) -> Tensor:
    """The sum of a loss over rows divided by `count`, by default by the number of rows.

    Args:
        logits: (N, C), or (B, T, V) of sentences; with a head the hidden states (B, T, D) instead.
        labels: (N,), (N, C) or (B, T).
        batch: what the regularizer needs of the batch.
    """
    batch = dict(batch or {})
    if batch.get("indices") is not None:
        batch["indices"] = batch["indices"].flatten()
    if head is not None:
        return loss.linear(logits, head.weight, labels, head.bias, count=count, **batch)
    if logits.dim() > 2:
        logits, labels = logits.flatten(0, 1), labels.flatten()
    return loss(logits, labels, **batch) if count is None else loss.mean_over(logits, labels, count, **batch)


def has_linear_form(model: nn.Module, examples: Any, loss: LabelRegularizedLoss) -> bool:
    """Whether the loss can be computed from the network's last hidden states."""
    try:
        heads.require_linear_form(loss.regularizer, len(heads.head_of(model).weight))
        heads.require_plain_head(model, examples.__getitems__([0]))
    except UserError:
        return False
    return True


@contextmanager
def bfloat16_forward(model: nn.Module) -> Iterator[None]:
    """Within, a network's forward runs in bfloat16 and gives float32, whoever calls it; a copy of it does the same."""
    plain = type(model).forward

    @wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(self.parameters()).device.type, torch.bfloat16):
            outputs = plain(self, *args, **kwargs)
        if isinstance(outputs, Tensor):
            return outputs.float()
        for name, value in outputs.items():
            if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
                outputs[name] = value.float()
        return outputs

    model.forward = MethodType(forward, model)  # a deep copy of the network binds it to the copy
    try:
        yield
    finally:
        del model.forward
