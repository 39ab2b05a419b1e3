"""Scores of classifiers, against other packages and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from labo.metrics.calibration import expected_calibration_error, reliability
from labo.metrics.scores import class_scores, classification_scores, scores, scores_at
from labo.metrics.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 4, generator=generator)
    return logits, torch.distributions.Categorical(logits=logits / 2).sample()


def test_scores_agree_with_scikit_learn(batch):
    logits, target = batch
    found = classification_scores(logits, target)
    p = logits.double().softmax(-1).numpy()
    assert found["nll"] == pytest.approx(log_loss(target.numpy(), p))
    brier = brier_score_loss(target.numpy(), p, scale_by_half=False)  # pyright: ignore[reportArgumentType]
    assert found["brier"] == pytest.approx(brier)
    assert found["accuracy"] == pytest.approx((p.argmax(-1) == target.numpy()).mean())


def test_top5_agrees_with_scikit_learn_and_is_for_more_than_five_classes():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(300, 9, generator=generator)
    target = torch.distributions.Categorical(logits=logits / 2).sample()
    found = scores_at(2.5, logits, target)
    expected = top_k_accuracy_score(target.numpy(), logits.numpy(), k=5, labels=range(9))
    assert found["top5"] == pytest.approx(expected)
    assert found["accuracy"] < found["top5"] < 1
    assert "top5" in classification_scores(logits[:, :6], target.clamp(max=5))
    assert "top5" not in classification_scores(logits[:, :5], target.clamp(max=4))


def test_class_scores_agree_with_scikit_learn(batch):
    logits, target = batch
    found = class_scores(logits, target, temperature=2.0)
    predicted, p = logits.argmax(-1), (logits.double() / 2).softmax(-1)
    expected: list = list(precision_recall_fscore_support(target, predicted))
    for key, values in zip(("precision", "recall", "examples"), (*expected[:2], expected[3]), strict=True):
        assert [entry[key] for entry in found] == pytest.approx(values.tolist())
    assert sum(entry["predicted"] for entry in found) == len(target)
    for k, entry in enumerate(found):
        of_class = target == k
        assert entry["confidence"] == pytest.approx(p[of_class, k].mean().item())
        assert entry["nll"] == pytest.approx(log_loss(target[of_class], p[of_class].numpy(), labels=range(4)))
        assert entry["recall"] == pytest.approx(accuracy_score(target[of_class], predicted[of_class]))


def test_classes_without_examples_or_predictions_have_no_score():
    logits = torch.tensor([[3.0, 0.0, 1.0], [3.0, 0.0, 1.0]])
    right, unseen, never = class_scores(logits, torch.tensor([0, 2]))
    assert (right["recall"], right["precision"]) == (1.0, 0.5)
    assert unseen == {
        "examples": 0, "predicted": 0, "recall": None, "precision": None, "confidence": None, "nll": None
    }  # fmt: skip
    assert (never["recall"], never["precision"]) == (0.0, None)


def test_ece_against_a_loop_over_bins(batch):
    logits, target = batch
    p = logits.double().softmax(-1)
    confidence, right = p.max(-1).values.numpy(), (p.argmax(-1) == target).numpy()
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert expected_calibration_error(p, target) == pytest.approx(expected)


def test_reliability_counts_every_example_once_and_leaves_empty_bins_empty(batch):
    logits, target = batch
    bins = reliability(logits.softmax(-1), target)
    assert sum(entry["count"] for entry in bins) == len(target)
    assert bins[0] == {"confidence": None, "accuracy": None, "count": 0}  # four classes: no confidence below 1/4


def test_certain_predictions_fall_into_the_last_bin():
    assert reliability(torch.eye(2), torch.tensor([0, 1]))[-1]["count"] == 2


def test_temperature_is_where_an_optimiser_finds_it(batch):
    logits, target = batch

    def nll(t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / t, target))

    expected = minimize_scalar(nll, bounds=(0.05, 100), method="bounded", options={"xatol": 1e-10}).x  # pyright: ignore
    assert fit_temperature(logits, target) == pytest.approx(expected, rel=1e-5)
    assert fit_temperature(logits, target) == pytest.approx(2, rel=0.2)  # how the targets were drawn


def test_temperature_without_a_minimum_is_the_end_of_the_range_and_is_said():
    with pytest.warns(
        UserWarning, match=r"temperature is 0\.05, an end of the search range: all predictions are right"
    ):
        assert fit_temperature(torch.eye(3), torch.arange(3)) == MIN_TEMPERATURE == 0.05
    with pytest.warns(
        UserWarning, match=r"temperature is 1e\+06, an end of the search range: the predictions carry no information"
    ):
        assert fit_temperature(-torch.eye(3), torch.arange(3)) == MAX_TEMPERATURE
    assert fit_temperature(torch.empty(0, 3), torch.empty(0, dtype=torch.long)) == 1


def test_temperature_of_large_logits_is_found(batch):
    logits, target = batch
    expected = fit_temperature(logits, target)
    for factor in (100.0, 2_500.0, 30_000.0):
        assert fit_temperature(factor * logits, target) == pytest.approx(factor * expected, rel=1e-5)


ONES, CLASSES = torch.full((2, 2), 0.5), torch.tensor([0, 1])


@pytest.mark.parametrize("measure", [reliability, expected_calibration_error])
@pytest.mark.parametrize(
    ("probabilities", "target", "message"),
    [
        (torch.tensor([[3.0, -2.0], [0.0, 1.0]]), CLASSES, "`probabilities` to have no negative or NaN entries"),
        (2 * ONES, CLASSES, "`probabilities` to sum to 1 over the classes, but got 2"),
        (ONES / 0, CLASSES, "`probabilities` to be free of NaN and inf"),
        (ONES, torch.tensor([0, -100]), r"`target` to be class indices in \[0, 2\), but got -100"),
        (ONES[:0], CLASSES[:0], "with at least one example"),
        (ONES, CLASSES[:1], r"got shapes \(2, 2\) and \(1,\)"),
    ],
)
def test_what_calibration_cannot_be_measured_of_is_refused(measure, probabilities, target, message):
    with pytest.raises(ValueError, match=message):
        measure(probabilities, target)


@pytest.mark.parametrize("measure", [classification_scores, class_scores, fit_temperature])
def test_scores_refuse_nan_and_targets_that_are_no_classes(measure):
    with pytest.raises(ValueError, match="`logits` to be free of NaN and inf"):
        measure(torch.tensor([[math.nan, 0.0], [0.0, 1.0]]), CLASSES)
    with pytest.raises(ValueError, match="but got -100"):
        measure(torch.zeros(2, 2), torch.tensor([-100, 1]))
    with pytest.raises(TypeError, match=r"`target` to be class indices, but got dtype torch\.float32"):
        measure(torch.zeros(2, 2), torch.ones(2))


def test_scaling_mends_confidence_and_leaves_accuracy(batch):
    logits, target = batch
    found = scores(logits[:250], target[:250], logits[250:], target[250:])
    assert found["nll_scaled"] < found["nll"]
    assert found["ece_scaled"] < found["ece"]
    assert set(found) == {
        "accuracy", "nll", "nll_scaled", "brier", "brier_scaled", "ece", "ece_scaled", "temperature", "ece_adaptive",
        "ece_adaptive_scaled", "ece_classwise", "ece_classwise_scaled", "aurc", "auroc", "coverage_1", "coverage_5",
        "aurc_normalized", "auroc_normalized", "coverage_1_normalized", "coverage_5_normalized", "norm_exponent",
    }  # fmt: skip
    assert all(math.isfinite(value) for value in found.values())
    assert np.isclose(found["accuracy"], classification_scores(logits[250:], target[250:])["accuracy"])
