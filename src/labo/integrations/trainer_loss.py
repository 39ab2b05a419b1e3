"""A regularizer as the `compute_loss_func` of Transformers' Trainer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from labo import checks, regularizers
from labo.checks import IGNORE_INDEX
from labo.errors import UserError
from labo.kernels.linear import Head
from labo.kernels.statistics import LossStatistics
from labo.networks import logits_of
from labo.regularized_loss import LabelRegularizedLoss

_DROPS_FIRST = (
    "Transformers' Trainer drops the first entry of outputs that are a tensor or a tuple from its predictions: use "
    "LabelRegularizedTrainer, or let the network return {'logits': logits}."
)


class TrainerLoss:
    """A `LabelRegularizedLoss` as the Trainer's `compute_loss_func`.

    The mean is over the targets of the whole accumulated batch on all devices (`num_items_in_batch`, which every
    Trainer counts by `targets` once `labo.integrations.transformers` is imported). Class weights are not counted, so
    with them gradient accumulation and several devices raise an error.

    The model may return a mapping or an object with `logits`, a tuple that begins with them, or the logits alone. The
    Trainer itself, unlike `LabelRegularizedTrainer`, drops the first entry of a tuple or a tensor from its predictions.

    Args:
        loss: the loss, with reduction "mean".
        shift_labels: for causal language models, whose logits at a position predict the label at the next. None refuses
            logits of sequences (B, T, C).
        class_dim: the dimension of classes in logits of sequences or images, 1 or -1. If None, the first batch whose
            labels fit only one of them decides.
        nll_in_evaluation: without gradients, as in an evaluation of the Trainer, the loss is the negative
            log-likelihood of the labels, without class weights.

    Raises:
        TypeError: `loss` is another kind of loss.
        ValueError: its reduction or ignore_index is unsupported, the model returns no logits, or they do not fit the
            labels.

    Example:
        >>> import labo
        >>> criterion = labo.LabelRegularizedLoss(labo.regularizers.create("labo"))
        >>> TrainerLoss(criterion)({"logits": torch.zeros(2, 4)}, torch.tensor([0, 3]))
        tensor(1.3863)
    """

    def __init__(
        self,
        loss: LabelRegularizedLoss,
        *,
        shift_labels: bool | None = False,
        class_dim: int | None = None,
        nll_in_evaluation: bool = False,
    ) -> None:
        if not isinstance(loss, LabelRegularizedLoss):
            raise TypeError(
                f"Expected argument `loss` to be a LabelRegularizedLoss, but got {type(loss).__name__}; "
                "LABOLoss(alpha=a, beta=b) is LabelRegularizedLoss(labo.regularizers.create('labo', alpha=a, beta=b))."
            )
        if loss.reduction != "mean":
            raise ValueError(f"Expected argument `loss` with reduction 'mean', but got {loss.reduction!r}.")
        if loss.ignore_index != IGNORE_INDEX:
            raise ValueError(
                f"Expected argument `loss` with ignore_index {IGNORE_INDEX}, the one that the Trainer ignores when it "
                f"counts labels, but got {loss.ignore_index}."
            )
        self.loss = loss
        if class_dim not in (None, 1, -1):
            raise ValueError(f"Expected argument `class_dim` to be 1, -1 or None, but got {class_dim!r}.")
        self.shift_labels = shift_labels
        self.class_dim = class_dim
        self.nll_in_evaluation = nll_in_evaluation
        # Whether the network is of Transformers, whose logits of sequences have classes last.
        self.of_transformers = False
        # The inputs of the next batch, set by `LabelRegularizedTrainer`.
        self.batch: dict[str, Any] = {}
        # The last layer, while the model returns hidden states (`LabelRegularizedTrainer(linear=True)`).
        self.head: Head | None = None
        # Is called with the statistics of every batch, which cost no other product with the head.
        self.record: Callable[[LossStatistics], None] | None = None

    def bound_to(self, *, predicts_next_token: bool | None, of_transformers: bool) -> TrainerLoss:
        """A copy for a network whose class tells whether labels are shifted, if `shift_labels` is None."""
        bound = copy.copy(self)
        if self.shift_labels is None:
            bound.shift_labels = predicts_next_token
        bound.of_transformers = of_transformers
        return bound

    def __call__(
        self,
        outputs: Any,
        labels: Tensor | None,
        num_items_in_batch: Tensor | int | None = None,
        *,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of a model's outputs: logits (…, C) and labels (…), or (N, C, d1, …) and (N, d1, …).

        With probabilities as labels, classes are last. `weights` of the shape of class indices multiply the losses of
        sequences; then the mean, and `num_items_in_batch`, are over the sum of the targets' weights.
        """
        if self.nll_in_evaluation and not torch.is_grad_enabled():
            return self.nll(outputs, labels, num_items_in_batch, weights=weights)
        return self._value(outputs, labels, num_items_in_batch, weights)

    def nll(
        self,
        outputs: Any,
        labels: Tensor | None,
        num_items_in_batch: Tensor | int | None = None,
        *,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The mean negative log-likelihood of the labels; arguments as of the loss."""
        plain = copy.copy(self)
        plain.loss = LabelRegularizedLoss(regularizers.create("none"))
        plain.batch = {}
        return plain._value(outputs, labels, num_items_in_batch, weights)

    def _value(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None, weights: Tensor | None
    ) -> Tensor:
        if labels is None:
            raise ValueError("Expected the batch to have `labels`, but it has none.")
        logits = logits_of(outputs)
        if num_items_in_batch is not None and not isinstance(outputs, Mapping) and not torch.is_grad_enabled():
            warnings.warn(_DROPS_FIRST, stacklevel=2)
        if self.shift_labels is None and _are_sequences(logits, labels):
            raise UserError(
                "Cannot tell whether the network's logits at a position predict the label at the same position or at "
                "the next: pass shift_labels=False or, for a causal language model, shift_labels=True."
            )
        labels = self.targets(labels)
        if self.shift_labels:
            logits = logits[..., :-1, :]
        batch = self._batch_inputs(outputs)
        logits, labels = self._flat(logits, labels) if self.head is None else _tokens(logits, labels)
        self.loss.to(logits.device)
        items = None
        if num_items_in_batch is not None:
            items = torch.as_tensor(num_items_in_batch, device=logits.device, dtype=torch.float32)
        if weights is not None:
            batch["row_weight"] = self._row_weight(labels, weights)
        if items is None:
            return self._loss(logits, labels, None, batch)
        if labels.dtype.is_floating_point:  # the Trainer counts every entry of probability targets
            items = items / labels.shape[1]
        if self.loss.weight is not None and weights is None:
            self._check_single_batch(labels, items)
            return self._loss(logits, labels, None, batch)
        return self._loss(logits, labels, items, batch)

    def _flat(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Flatten classes-last logits, as of Transformers, to rows; leave the layout of `F.cross_entropy` unchanged."""
        last = labels.shape == logits.shape[:-1]
        class_dim = -1 if self.shift_labels or (self.of_transformers and logits.dim() == 3) else self.class_dim
        if last and logits.dim() > 2:
            second = labels.shape == logits[:, 0].shape
            if second and class_dim is None:
                raise UserError(
                    f"Cannot tell whether classes are dimension 1 or the last one of logits {tuple(logits.shape)} with "
                    f"labels {tuple(labels.shape)}: pass class_dim=1 or class_dim=-1."
                )
            last = not second or class_dim == -1
            self.class_dim = -1 if last else 1
        elif logits.dim() > 2 and not labels.dtype.is_floating_point:
            self.class_dim = 1
        if last or (labels.dtype.is_floating_point and labels.shape == logits.shape):
            return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1, *labels.shape[logits.dim() - 1 :])
        return logits, labels

    def targets(self, labels: Tensor) -> Tensor:
        """The labels (…) or probabilities (…, C) that the loss is computed of; class indices as int64."""
        if labels.is_floating_point():
            return labels[..., 1:, :] if self.shift_labels else labels
        labels = checks.as_targets(labels)
        return labels[..., 1:] if self.shift_labels else labels

    def token_weights(self, weights: Tensor) -> Tensor:
        """The weights (…) of the targets, of weights of the labels (…)."""
        return weights[..., 1:] if self.shift_labels else weights

    def _row_weight(self, labels: Tensor, weights: Tensor) -> Tensor:
        """The weights of class indices, of their shape."""
        weights = self.token_weights(weights).float()
        if labels.is_floating_point() or labels.numel() != weights.numel():
            raise ValueError(
                f"Expected weights of {len(labels)} class indices, but got {weights.numel()} for labels of shape "
                f"{tuple(labels.shape)}."
            )
        return weights.reshape(labels.shape)

    def _loss(self, logits: Tensor, labels: Tensor, items: Tensor | None, batch: dict[str, Any]) -> Tensor:
        if self.record is not None:
            statistics = self.loss.statistics(logits, labels, self.head, count=items, **batch)
            self.record(statistics)
            return statistics.loss
        if self.head is not None:
            return self.loss.linear(logits, self.head.weight, labels, self.head.bias, count=items, **batch)
        if items is None:
            return self.loss(logits, labels, **batch)
        return self.loss.mean_over(logits, labels, items, **batch)

    def _batch_inputs(self, outputs: Any) -> dict[str, Any]:
        batch = dict(self.batch)
        if self.loss.training and "dense_logits" in self.loss.regularizer.needs and isinstance(outputs, Mapping):
            batch["dense_logits"] = outputs.get("dense_logits")
        missing = self.loss.regularizer.missing_from(batch) if self.loss.training else ()
        if missing and missing != ("dense_logits",):
            raise UserError(
                f"Method '{self.loss.regularizer.name}' needs {missing[0]}, which LabelRegularizedTrainer passes but "
                "compute_loss_func alone cannot, nor can fuse alone (for TRL: LabelRegularizedSFTTrainer)."
            )
        indices = batch.get("indices")
        if indices is not None and indices.dim() > 1:  # one index per label
            batch["indices"] = (indices[..., 1:] if self.shift_labels else indices).reshape(-1)
        return batch

    def _check_single_batch(self, labels: Tensor, items: Tensor) -> None:
        rows = len(labels) if labels.dtype.is_floating_point else (labels != self.loss.ignore_index).sum()
        checks.require(
            torch.as_tensor(rows, device=items.device) == items,
            "Expected no class weights with gradient accumulation or several devices: the Trainer counts examples, not "
            "their weights.",
        )


def _are_sequences(logits: Tensor, labels: Tensor) -> bool:
    """Whether logits or hidden states are (B, T, …) with a label at each position."""
    positions = labels.shape[:-1] if labels.is_floating_point() else labels.shape
    return logits.dim() == 3 and positions == logits.shape[:-1]


def _tokens(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (…, D) and their labels (…) or (…, V), as rows."""
    shape = labels.shape[-1:] if labels.dtype.is_floating_point else ()
    return hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1, *shape)
