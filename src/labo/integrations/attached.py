"""What every Trainer of Transformers does at its start with a loss of this package."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

from labo import distributed
from labo.errors import UserError
from labo.integrations import fused, heads, targets
from labo.integrations.fused import Fused
from labo.integrations.trainer_loss import TrainerLoss

_LIGER_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
# The Trainer's own, even if this module is imported again.
_init = getattr(Trainer.__init__, "labo_wraps", Trainer.__init__)


@functools.wraps(_init)
def _attached_init(self: Any, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    attach(self)


def attach_to_trainers() -> None:
    """Let every Trainer that is made check that a loss of this package is its only one, and prepare it.

    Its `compute_loss_func` is not told of the network, and a fused model not of the Trainer, so that nothing but the
    Trainer's start can do it. Trainers without a loss of this package are unaffected.
    """
    wrapper: Any = _attached_init
    wrapper.labo_wraps = _init
    Trainer.__init__ = wrapper


def attach(trainer: Any) -> None:
    """Prepare the loss of a Trainer, if it is one of this package.

    Raises:
        UserError: the Trainer was also given another loss.
    """
    loss, model = trainer.compute_loss_func, fused.fused_of(trainer.model)
    if isinstance(loss, TrainerLoss):
        require_only_loss(trainer.args, "compute_loss_func")
        network = targets.unwrapped(trainer.model)
        # A copy, because another Trainer may train another network by the same loss.
        trainer.compute_loss_func = loss.bound_to(
            predicts_next_token=targets.predicts_next_token(trainer.model),
            of_transformers=isinstance(network, PreTrainedModel),
        )
        if hasattr(network, "prepare_decoder_input_ids_from_labels"):
            _give_decoder_inputs(trainer, network)
    if model is not None and not getattr(trainer, "fuses_model", False):
        _attach_fused(trainer, model)


def _give_decoder_inputs(trainer: Any, network: nn.Module) -> None:
    """Compute a batch's decoder inputs from its labels, which the Trainer does not pass to the network."""
    compute_loss = trainer.compute_loss

    def with_inputs(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return compute_loss(model, heads.with_decoder_inputs(network, inputs), *args, **kwargs)

    trainer.compute_loss = with_inputs


def require_only_loss(args: Any, ours: str) -> None:
    """Raise an error if a Trainer's arguments ask for a loss other than ours.

    Args:
        args: the TrainingArguments.
        ours: what the Trainer was given.

    Raises:
        UserError: they do.
    """
    if args.label_smoothing_factor:
        raise UserError(
            f"Expected one loss, but got {ours} and label_smoothing_factor={args.label_smoothing_factor}: leave "
            "label_smoothing_factor at 0; method 'label_smoothing' with epsilon= is label smoothing."
        )
    kernels = getattr(args, "liger_kernel_config", None) or {}
    if args.use_liger_kernel and any(kernels.get(name, True) for name in _LIGER_LOSSES):
        raise UserError(
            f"Expected one loss, but got {ours} and use_liger_kernel=True, which brings its own: pass "
            "use_liger_kernel=False, or liger_kernel_config={'cross_entropy': False, 'fused_linear_cross_entropy': "
            "False} for its other kernels alone."
        )


def _attach_fused(trainer: Any, model: Fused) -> None:
    require_only_loss(trainer.args, "a fused model")
    if trainer.compute_loss_func is not None:
        raise UserError(
            "Expected one loss, but got a fused model and a compute_loss_func: pass one of them "
            "(LabelRegularizedTrainer passes its own, and with linear=True needs no fused model)."
        )
    if any(kind.__module__.startswith("trl.") for kind in type(trainer).__mro__):
        raise UserError(
            f"Expected a model that is not fused, because {type(trainer).__name__} computes its own loss: use "
            "labo.integrations.trl.LabelRegularizedSFTTrainer, which fuses the model itself, or pass unfuse(model)."
        )
    trainer.model_accepts_loss_kwargs = True
    asked = trainer.prediction_step

    def prediction_step(network: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any) -> Any:
        model.gives_logits = not prediction_loss_only
        try:
            return asked(network, inputs, prediction_loss_only, *args, **kwargs)
        finally:
            model.gives_logits = False

    trainer.prediction_step = prediction_step
    if model.statistics:
        trainer.add_callback(_LogStatistics(model))


class _LogStatistics(TrainerCallback):
    """Adds the accuracy and the entropy of tokens to what the Trainer logs."""

    def __init__(self, model: Fused) -> None:
        self.model = model

    def on_predict(self, *args: Any, **kwargs: Any) -> None:
        self.model.take_statistics(training=False)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        name = next((name for name in logs or () if name == "loss" or name.endswith("_loss")), None)
        if name is None or name == "train_loss":  # the mean over a whole run
            return
        sums = self.model.take_statistics(training=name == "loss")
        if sums is None:
            return
        found = named_statistics(sums, prefix=name.removesuffix("loss"))
        logs.update(found)
        state.log_history[-1].update(found)


def named_statistics(sums: Any, *, prefix: str = "") -> dict[str, float]:
    """The accuracy, a fraction, and the entropy, in nats, of the tokens of all processes."""
    correct, entropy, tokens = distributed.all_reduce_sum(sums).tolist()
    tokens = max(1.0, tokens)
    return {f"{prefix}mean_token_accuracy": correct / tokens, f"{prefix}entropy": entropy / tokens}
