"""TRL's SFTTrainer with a regularizer as its loss, from hidden states.

    LabelRegularizedSFTTrainer(model, args=SFTConfig(…), train_dataset=…)

where `SFTTrainer` stood.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]  # exported lazily

from labo.errors import UserError
from labo.integrations import attached, targets
from labo.integrations.batch_inputs import INDEX
from labo.integrations.fused import Fused, criterion, fuse, fused_of
from labo.integrations.regularized import RegularizedTraining
from labo.integrations.targets import TOKEN_WEIGHTS
from labo.regularized_loss import LabelRegularizedLoss

__all__ = ["LabelRegularizedSFT", "LabelRegularizedSFTTrainer"]

targets.own_the_denominator()
attached.attach_to_trainers()

_LOSS_TYPES = {field.default for field in dataclasses.fields(SFTConfig) if field.name == "loss_type"} | {"nll", None}


class LabelRegularizedSFT(RegularizedTraining):
    """A mixin that gives TRL's `SFTTrainer`, or a class derived from it, a regularizer as its loss.

        class Mine(LabelRegularizedSFT, MySFTTrainer): ...

    Arguments are as in `LabelRegularizedSFTTrainer`.
    """

    # A model that another training has fused is fused anew.
    fuses_model = True

    def __init__(
        self, *args: Any, loss: str | LabelRegularizedLoss = "labo", linear: bool = True, **kwargs: Any
    ) -> None:
        given = inspect.signature(SFTTrainer.__init__).bind_partial(self, *args, **kwargs).arguments
        if given.get("compute_loss_func") is not None:
            raise UserError("Expected one loss, but got `loss` and compute_loss_func: leave compute_loss_func out.")
        if given.get("args") is not None:
            _require_only_loss(given["args"])
        super().__init__(*args, **kwargs)
        loss = criterion(loss, weight=None)
        weighted = TOKEN_WEIGHTS in (getattr(given.get("train_dataset"), "column_names", None) or ())
        if weighted:
            self._require_positions(f"`{TOKEN_WEIGHTS}` of the dataset belong to")
        fuse(self.model, loss, linear=linear, statistics=True)
        self.model_accepts_loss_kwargs = True
        remembers = {"indices", "partners"} & set(loss.regularizer.needs)
        if remembers:
            self._require_positions(f"Method '{loss.regularizer.name}' remembers")
        self._use_loss(loss)
        if remembers or weighted:
            self.data_collator = _KeepingCollator(self.data_collator)

    def _require_positions(self, told: str) -> None:
        args: Any = self.args
        if args.packing or args.padding_free:
            raise UserError(
                f"{told} each example and position, which packing and padding_free do not keep: use packing=False and "
                "padding_free=False."
            )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        if TOKEN_WEIGHTS not in columns:
            self._signature_columns = [*columns, TOKEN_WEIGHTS]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch, and with `return_outputs` the outputs, in evaluation with logits."""
        network: Any = self.model
        fused, training = self._fused, network.training
        inputs = {**inputs, "use_cache": False}
        indices = inputs.pop(INDEX, None)
        fused.compute.batch = self._batch_inputs(indices, inputs) if training else {}
        if getattr(self, "aux_loss_enabled", False):
            inputs["output_router_logits"] = True
        steps = getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
        fused.auxiliary_parts = 1 if num_items_in_batch is None else steps
        fused.gives_logits = return_outputs
        try:
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        finally:
            fused.compute.batch, fused.gives_logits = {}, False
        loss = outputs["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # which DDP averages
        self._record(fused, inputs, training)
        return (loss, outputs) if return_outputs else loss

    @property
    def _fused(self) -> Fused:
        fused = fused_of(self.model)
        assert fused is not None
        return fused

    def _record(self, fused: Fused, inputs: dict[str, Any], training: bool) -> None:
        """Add what TRL logs: accuracy and entropy of tokens, and their number so far."""
        metrics: Any = self._metrics["train" if training else "eval"]  # pyright: ignore[reportAttributeAccessIssue]
        sums = fused.take_statistics(training=training)
        assert sums is not None
        for name, value in attached.named_statistics(sums).items():
            metrics[name].append(value)
        if training:
            mask = inputs.get("attention_mask")
            tokens = inputs["input_ids"].new_tensor(inputs["input_ids"].numel()) if mask is None else mask.sum()
            gathered: Any = self.accelerator.gather_for_metrics(tokens)
            total = gathered.sum().item()
            self._total_train_tokens += total // self.get_tp_size()  # pyright: ignore[reportAttributeAccessIssue]
        metrics["num_tokens"] = [self._total_train_tokens]  # pyright: ignore[reportAttributeAccessIssue]

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The loss and, unless it alone is asked for, the logits and labels of a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if prediction_loss_only:
                return self.compute_loss(model, inputs).detach(), None, None
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            return loss.detach(), outputs["logits"], inputs.get("labels")


class LabelRegularizedSFTTrainer(LabelRegularizedSFT, SFTTrainer):
    """TRL's `SFTTrainer` whose loss is a regularizer, computed from hidden states: no logits in training.

    Evaluation reports the negative log-likelihood. Packing, completion-only and assistant-only masks, LoRA and gradient
    checkpointing are as TRL has them; accuracy and entropy of tokens are logged as by TRL. Methods with a memory, such
    as labo[prior=memory], remember each token of each example, and need sequences that are not packed. A column
    `token_weights` of a tokenized dataset, as long as its tokens, multiplies the losses of the tokens.

    Args:
        loss: a method's name, or `LabelRegularizedLoss(labo.regularizers.create(name, …))`.
        linear: False computes the loss from logits, as in `labo.integrations.transformers.fuse`.
        args, kwargs: as in `trl.SFTTrainer`.

    Raises:
        UserError: another loss was configured (compute_loss_func, label_smoothing_factor, loss_type, use_liger_kernel);
            as in `labo.integrations.transformers.fuse`; sequences are packed and the method has a memory.
    """


def _require_only_loss(args: Any) -> None:
    attached.require_only_loss(args, "`loss`")
    kind = getattr(args, "loss_type", None)
    if kind not in _LOSS_TYPES:
        raise UserError(f"Expected one loss, but got `loss` and loss_type={kind!r}: leave loss_type out.")


class _KeepingCollator:
    """TRL's collator, which drops columns that it does not know, with the indices and the weights of tokens."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if INDEX in examples[0]:
            batch[INDEX] = torch.tensor([example[INDEX] for example in examples])
        if TOKEN_WEIGHTS in examples[0]:
            batch[TOKEN_WEIGHTS] = self._weights(examples, batch["labels"])
        return batch

    def _weights(self, examples: list[dict[str, Any]], labels: Tensor) -> Tensor:
        weights = torch.zeros(labels.shape)
        for row, example in enumerate(examples):
            given = torch.as_tensor(example[TOKEN_WEIGHTS], dtype=torch.float32)
            if len(given) != len(example["input_ids"]):
                raise UserError(
                    f"Expected `{TOKEN_WEIGHTS}` as long as the tokens of each example, which are not truncated, but "
                    f"got {len(given)} for {len(example['input_ids'])} tokens."
                )
            weights[row, : len(given)] = given
        return weights
