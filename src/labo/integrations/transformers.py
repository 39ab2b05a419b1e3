"""Transformers' Trainer with a member of the family as its loss.

    Trainer(…, compute_loss_func=TrainerLoss(LabelRegularizedLoss(regularizer)))

is enough for members that remember nothing. `LabelRegularizedTrainer` also keeps what they remember in its checkpoints,
and writes each checkpoint whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer import TRAINER_STATE_NAME

from labo import checks
from labo.errors import UserError
from labo.modules import LabelRegularizedLoss
from labo.networks import logits_of

__all__ = ["LabelRegularizedTrainer", "TrainerLoss"]

REGULARIZER = "regularizer.safetensors"
_PREFIX = "checkpoint-"
_COUNTED_OUT = -100


class TrainerLoss:
    """A `LabelRegularizedLoss` as the Trainer's `compute_loss_func`.

    The mean is over the whole accumulated batch, on all devices, as the Trainer counts it (`num_items_in_batch`).
    Class weights need another count, which the Trainer does not make: with them, accumulating gradients or several
    devices are refused.

    Args:
        loss: the loss, with reduction "mean".
        shift_labels: for causal language models, whose logits at a place predict the label at the next.

    Raises:
        TypeError: `loss` is another kind of loss.
        ValueError: its reduction or ignore_index is another, the model gives no logits, or they do not fit the labels.

    Example:
        >>> import labo
        >>> criterion = labo.LabelRegularizedLoss(labo.regularizers.create("labo"))
        >>> TrainerLoss(criterion)({"logits": torch.zeros(2, 4)}, torch.tensor([0, 3]))
        tensor(1.3863)
    """

    def __init__(self, loss: LabelRegularizedLoss, *, shift_labels: bool = False) -> None:
        if not isinstance(loss, LabelRegularizedLoss):
            raise TypeError(
                f"Expected argument `loss` to be a LabelRegularizedLoss, but got {type(loss).__name__}; "
                "LABOLoss(alpha=a, beta=b) is LabelRegularizedLoss(labo.regularizers.create('labo', alpha=a, beta=b))."
            )
        if loss.reduction != "mean":
            raise ValueError(f"Expected argument `loss` with reduction 'mean', but got {loss.reduction!r}.")
        if loss.ignore_index != _COUNTED_OUT:
            raise ValueError(
                f"Expected argument `loss` with ignore_index {_COUNTED_OUT}, the one that the Trainer leaves out of "
                f"its counts, but got {loss.ignore_index}."
            )
        self.loss = loss
        self.shift_labels = shift_labels

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of a model's outputs: logits (…, C) and labels (…), or (N, C, d1, …) and (N, d1, …)."""
        if labels is None:
            raise ValueError("Expected the batch to have `labels`, but it has none.")
        logits = logits_of(outputs)
        if self.shift_labels:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        logits, labels = _flat(logits, labels)
        self.loss.to(logits.device)
        if num_items_in_batch is None:
            return self.loss(logits, labels)
        items = torch.as_tensor(num_items_in_batch, device=logits.device, dtype=torch.float32)
        if labels.dtype.is_floating_point:
            items = items / logits.shape[1]  # the Trainer counts every entry of a probability target
        if self.loss.weight is not None:
            self._refuse_parts(labels, items)
            return self.loss(logits, labels)
        return self.loss.mean_over(logits, labels, items)

    def _refuse_parts(self, labels: Tensor, items: Tensor) -> None:
        rows = len(labels) if labels.dtype.is_floating_point else (labels != self.loss.ignore_index).sum()
        checks.require(
            torch.as_tensor(rows, device=items.device) == items,
            "Expected no class weights with gradient accumulation or several devices: the Trainer counts examples, not "
            "their weights.",
        )


def _flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Classes last, as Transformers has sequences, to rows; anything else as `F.cross_entropy` takes it."""
    if labels.shape == logits.shape[:-1] or (labels.dtype.is_floating_point and labels.shape == logits.shape):
        return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1, *labels.shape[logits.dim() - 1 :])
    return logits, labels


class LabelRegularizedTrainer(Trainer):
    """`transformers.Trainer` whose loss is a member of the family.

    What the regularizer remembers is saved in every checkpoint and comes back with `resume_from_checkpoint`. A
    checkpoint is written beside its place and renamed into it, so that a folder checkpoint-N is always whole.

    Args:
        loss: the loss; `LabelRegularizedLoss(labo.regularizers.create(name, …))`.
        shift_labels: as in `TrainerLoss`; by default, where the model is one of Transformers' causal language models.
        args, kwargs: as in `transformers.Trainer`, without `compute_loss_func`.

    Raises:
        TypeError, ValueError: as `TrainerLoss` raises them.
    """

    def __init__(self, *args: Any, loss: LabelRegularizedLoss, shift_labels: bool | None = None, **kwargs: Any) -> None:
        compute = TrainerLoss(loss, shift_labels=bool(shift_labels))
        super().__init__(*args, compute_loss_func=compute, **kwargs)
        if shift_labels is None:
            compute.shift_labels = type(self.model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        self.loss = loss.to(self.args.device)
        self._staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return folder if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        home = Path(self._get_output_dir(trial))
        name = f"{_PREFIX}{self.state.global_step}"
        self._staging = home / ".saving"
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._complete(self._staging / name, home)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()

    def _complete(self, staged: Path, home: Path) -> None:
        state = {name: value.contiguous() for name, value in self.loss.regularizer.state_dict().items()}
        save_file(state, staged / REGULARIZER)
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent == staged.parent:
            self.state.best_model_checkpoint = str(home / Path(best).name)
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        for file in staged.iterdir():
            _to_disk(file)
        final = home / staged.name
        shutil.rmtree(final, ignore_errors=True)
        os.replace(staged, final)
        shutil.rmtree(staged.parent, ignore_errors=True)
        self._forget(home)

    def _forget(self, home: Path) -> None:
        limit = self.args.save_total_limit
        if not limit or limit < 1:
            return
        best = Path(self.state.best_model_checkpoint or "").name
        newest = checkpoints(home)[-1].name
        # The best and the newest come last: they stay, even where that is one more than asked for.
        found = sorted(checkpoints(home), key=lambda folder: folder.name in (best, newest))
        for folder in found[: len(found) - limit]:
            if folder.name not in (best, newest):
                shutil.rmtree(folder, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / REGULARIZER
        if path.is_file():
            self.loss.regularizer.load_state_dict(load_file(path, device=str(self.args.device)))
        elif self.loss.regularizer.state_dict():
            raise UserError(
                f"The checkpoint '{resume_from_checkpoint}' lacks {REGULARIZER}: what the method remembers."
            )


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the oldest first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def _to_disk(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
