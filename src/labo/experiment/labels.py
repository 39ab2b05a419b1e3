"""The soft label that a run's regularizer would train an input towards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from labo.errors import UserError
from labo.experiment.saved_run import Run
from labo.reduction import as_rows


def soft_labels(run: Run, logits: Tensor) -> tuple[Tensor | None, str]:
    """(q*, (N, C) float64, of inputs whose class is not known; a sentence on it).

    It is what `Regularizer.labels` gives for the run's own logits, before any temperature. Where it depends on the true
    class, the predicted class stands for it. There is none, and the sentence says why, for a method without labels, or
    whose labels need what only training has: its examples, a teacher, what it remembers.

    Args:
        run: finished.
        logits: (N, C), of its network.
    """
    method = run.about["method"]
    regularizer = run.regularizer.eval()
    needs = [need for need in regularizer.needs if need != "class_counts"]
    if "class_counts" in regularizer.missing:
        if "class_counts" not in run.about:
            return None, f"No q*: method '{method}' makes it of the class counts, which this run does not tell."
        regularizer.provide(class_counts=torch.tensor(run.about["class_counts"]))
    # A prior is an option, or made of the counts; all else that a member would save was learnt in training.
    if needs or set(regularizer.state_dict()) - {"prior"}:
        what = ", ".join(needs) or "what it learnt in training"
        return None, f"No q*: method '{method}' needs {what} for it, which is there in training alone."
    predicted = logits.argmax(-1)
    labels = _labels(regularizer, logits, predicted)
    if labels is None:
        return None, f"No q*: method '{method}' has no soft label."
    told = f"q* is the label that {method} would train towards, from the network's own logits"
    second = logits.topk(min(2, logits.shape[-1])).indices[:, -1]
    if not torch.equal(labels, _labels(regularizer, logits, second)):  # pyright: ignore[reportArgumentType]
        told += "; it depends on the true class, for which the predicted one stands"
    return labels, told + "."


def _labels(regularizer: Any, logits: Tensor, target: Tensor) -> Tensor | None:
    with torch.no_grad():
        try:
            found = regularizer.labels(replace(as_rows(logits, target, None, -100), given={}))
        except (TypeError, ValueError) as error:
            raise UserError(f"Method '{regularizer.name}' gives no label for these inputs: {error}") from error
    return None if found is None else found.double()
