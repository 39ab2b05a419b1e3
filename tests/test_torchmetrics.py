"""Calibration beside torchmetrics: the same away from bin edges; on them, the bins of Guo et al. (2017)."""

from __future__ import annotations

import pytest
import torch

from labo.metrics.calibration import BINS, expected_calibration_error, reliability
from labo.metrics.scores import classification_scores

metrics = pytest.importorskip("torchmetrics.functional.classification", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("default")  # theirs


def drawn(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(500, classes, generator=draw, dtype=torch.float64)
    return logits, torch.randint(classes, (500,), generator=draw)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("bins", [5, BINS, 40])
def test_calibration_error_is_theirs_away_from_bin_edges(classes, bins):
    logits, target = drawn(classes)
    p = logits.softmax(-1)
    theirs = metrics.multiclass_calibration_error(p, target, classes, n_bins=bins, norm="l1")
    assert expected_calibration_error(p, target, bins) == pytest.approx(theirs.item(), abs=1e-6)


def test_accuracies_are_theirs():
    logits, target = drawn(10)
    ours = classification_scores(logits, target)
    for name, top in (("accuracy", 1), ("top5", 5)):
        theirs = metrics.multiclass_accuracy(logits, target, 10, average="micro", top_k=top)
        assert ours[name] == pytest.approx(theirs.item(), abs=1e-6)


def test_certain_predictions_belong_to_the_last_bin():
    # Two bins: (0.5, 1] has the confidences 0.75 (wrong) and 1 (right), so the gap is |0.875 - 0.5|.
    p = torch.tensor([[0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([0, 1])
    assert expected_calibration_error(p, target, 2) == 0.375
    # torchmetrics has a third bin for 1 alone: the gaps are 0.75 and 0. docs/adopt.md says so.
    assert metrics.multiclass_calibration_error(p, target, 2, n_bins=2).item() == pytest.approx(0.375)
    right = torch.tensor([1, 0])  # now 0.75 is right and 1 wrong
    assert expected_calibration_error(p, right, 2) == 0.375
    assert metrics.multiclass_calibration_error(p, right, 2, n_bins=2).item() == pytest.approx(0.625)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    # Guo et al. have bins ((m - 1) / M, m / M]; torchmetrics puts 0.5 above the edge, together with 0.75.
    p = torch.tensor([[0.5, 0.5, 0.0], [0.75, 0.25, 0.0]], dtype=torch.float64)
    target = torch.tensor([0, 1])
    assert [entry["count"] for entry in reliability(p, target, 2)] == [1, 1]
    assert expected_calibration_error(p, target, 2) == pytest.approx((0.5 + 0.75) / 2)
    assert metrics.multiclass_calibration_error(p, target, 3, n_bins=2).item() == pytest.approx(0.125)
