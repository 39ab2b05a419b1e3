"""timm's recipes: mixed targets, and labels that are smoothed once."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

import labo
from labo.integrations.timm import train_loss


def test_a_mixup_that_smooths_is_refused():
    with pytest.raises(ValueError, match=r"Mixup smooths labels by 0\.1 .* label_smoothing=0"):
        train_loss(SimpleNamespace(label_smoothing=0.1))
    assert train_loss(SimpleNamespace(label_smoothing=0.0), alpha=0.3).alpha == 0.3
    assert train_loss().beta == 2.0


def test_mixtures_have_no_memory():
    with pytest.raises(ValueError, match="Mixtures of two examples have no memory"):
        train_loss(SimpleNamespace(label_smoothing=0.0), prior="memory", examples=8)
    assert train_loss(prior="memory", examples=8).member is not None


@pytest.mark.filterwarnings("default")  # theirs
def test_mixed_targets_are_smoothed_once():
    data = pytest.importorskip("timm.data")
    losses = pytest.importorskip("timm.loss")
    torch.manual_seed(0)
    mixup = data.Mixup(mixup_alpha=0.8, label_smoothing=0.0, num_classes=5)
    _, target = mixup(torch.randn(8, 3, 4, 4), torch.arange(8) % 5)
    logits = torch.randn(8, 5)
    plain = train_loss(mixup, alpha=0.0)(logits, target)
    torch.testing.assert_close(plain, losses.SoftTargetCrossEntropy()(logits, target))
    smoothed = 0.9 * target + 0.1 / 5
    ours = train_loss(mixup, alpha=0.1, beta=math.inf)(logits, target)
    torch.testing.assert_close(ours, losses.SoftTargetCrossEntropy()(logits, smoothed))
    expected = labo.labo_cross_entropy(logits, target, alpha=0.1, beta=2.0)
    torch.testing.assert_close(train_loss(mixup)(logits, target), expected)


@pytest.mark.filterwarnings("default")
def test_their_mixup_that_smooths_is_refused():
    data = pytest.importorskip("timm.data")
    with pytest.raises(ValueError, match="label_smoothing=0"):
        train_loss(data.Mixup(mixup_alpha=0.8, num_classes=5))
