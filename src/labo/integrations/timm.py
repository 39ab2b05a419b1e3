"""The training loss of timm's recipes, where Mixup may smooth labels as well."""

from __future__ import annotations

from typing import Any

from labo.errors import UserError
from labo.modules import LABOLoss

__all__ = ["train_loss"]


def train_loss(mixup: Any = None, **options: Any) -> LABOLoss:
    """`LABOLoss` as `train_loss_fn`, in place of timm's `LabelSmoothingCrossEntropy` and `SoftTargetCrossEntropy`.

    It takes class indices and the mixed probabilities of Mixup and CutMix alike.

    Args:
        mixup: the `timm.data.Mixup` (or `FastCollateMixup`) of the training, or None.
        options: as of `LABOLoss`.

    Raises:
        UserError: `mixup` smooths labels too, or the loss has a memory, which mixtures of two examples have not.

    Example:
        >>> train_loss(alpha=0.2)
        LABOLoss(alpha=0.2, beta=2.0, reduction='mean')
    """
    criterion = LABOLoss(**options)
    if mixup is None:
        return criterion
    if mixup.label_smoothing:
        raise UserError(
            f"Mixup smooths labels by {mixup.label_smoothing:g} before LABO does: create it with label_smoothing=0."
        )
    if criterion.member is not None:
        raise UserError('Mixtures of two examples have no memory: train with prior="memory" or with Mixup.')
    return criterion
