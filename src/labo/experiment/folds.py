"""Folds of the training split: what a network is trained without, and its logits of that part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labo.errors import NonFiniteLogitsError, UserError
from labo.experiment.evaluators.classification import predict
from labo.metrics.scores import classification_scores
from labo.records.trial import HELD_OUT, check_file, read_record
from labo.splitting import equal_parts
from labo.tasks.base import Examples, Splits
from labo.training import checkpoints


def leave_out(splits: Splits, fold: str, seed: int) -> tuple[Splits, Examples]:
    """(the splits without fold "2/5" of the training split, the examples of that fold)."""
    number, count = map(int, fold.split("/"))
    parts = equal_parts(splits.train.target, count, seed)
    held_out = parts.pop(number - 1)
    return replace(splits, train=splits.train.subset(torch.cat(parts))), splits.train.subset(held_out)


def save_logits(model: nn.Module, held_out: Examples, folder: Path) -> dict[str, float]:
    """Write the logits of the examples of a fold; returns their scores by their given labels.

    Raises:
        NonFiniteLogitsError: the logits are NaN or infinite.
    """
    logits = predict(model, held_out.features)
    if not bool(logits.isfinite().all()):
        raise NonFiniteLogitsError
    checkpoints.save_tensors({"logits": logits}, folder / HELD_OUT)
    return classification_scores(logits, held_out.target)


def read_logits(folder: Path, examples: int, classes: int) -> Tensor:
    """The logits (examples, classes) of the fold of a finished trial.

    Raises:
        UserError: the trial did not finish, failed, or its logits are damaged.
    """
    record: Any = read_record(folder)
    if record is None:
        raise UserError(f"The fold in '{folder}' did not finish; the same command runs it again.")
    if failed := record.get("failed"):
        raise UserError(f"The fold in '{folder}' failed at step {failed['step']}: {failed['reason']}.")
    logits = checkpoints.read_weights(check_file(folder, HELD_OUT, record)).get("logits")
    if logits is None or logits.shape != (examples, classes):
        raise UserError(f"'{folder / HELD_OUT}' is damaged: delete the folder to run this fold again.")
    return logits
