"""Selective prediction, adaptive and class-wise calibration: against brute force, scikit-learn and values by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from experiments import trial
from labo import cli
from labo.experiment import run_trial
from labo.metrics import selective
from labo.metrics.calibration import adaptive_calibration_error, classwise_calibration_error
from labo.metrics.scores import scores, scores_at
from labo.metrics.selective import aurc, auroc, coverage_at_risk, fit_exponent, normalized_confidence, selective_scores
from labo.records.trial import RECORD, read_record


def sample(rows: int = 300, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    noisy = logits + 2 * torch.randn(rows, classes, generator=generator)
    return logits, noisy.argmax(-1)


def test_aurc_is_the_mean_risk_by_hand() -> None:
    confidence, correct = torch.tensor([0.9, 0.2, 0.7, 0.5]), torch.tensor([True, False, False, True])
    # In the order 0.9, 0.7, 0.5, 0.2 the risks are 0, 1/2, 1/3 and 2/4.
    assert aurc(confidence, correct) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_examples_of_equal_confidence_are_in_random_order() -> None:
    confidence = [0.9, 0.5, 0.5, 0.5, 0.1]
    correct = [True, False, True, True, False]
    orders = []
    for middle in itertools.permutations(range(1, 4)):
        wrong = np.cumsum([not correct[index] for index in (0, *middle, 4)])
        orders.append(np.mean(wrong / np.arange(1, 6)))
    assert aurc(torch.tensor(confidence), torch.tensor(correct)) == pytest.approx(np.mean(orders))
    # A threshold answers 1, 4 or 5 examples: at four the risk is 1/4, at two it would be less.
    assert coverage_at_risk(torch.tensor(confidence), torch.tensor(correct), 0.2) == pytest.approx(1 / 5)
    assert coverage_at_risk(torch.tensor(confidence), torch.tensor(correct), 0.25) == pytest.approx(4 / 5)
    assert coverage_at_risk(torch.tensor([0.5]), torch.tensor([False]), 0.5) == 0


def test_auroc_is_that_of_scikit_learn_and_of_pairs() -> None:
    logits, target = sample()
    correct = logits.argmax(-1) == target
    confidence = logits.softmax(-1).amax(-1)
    found = selective_scores(logits, target)
    assert found["auroc"] == pytest.approx(roc_auc_score(correct.numpy(), confidence.numpy()), abs=1e-9)
    pairs = [float(a > b) for a in confidence[correct] for b in confidence[~correct]]
    assert found["auroc"] == pytest.approx(np.mean(pairs), abs=1e-9)
    assert auroc(confidence, torch.ones(len(confidence), dtype=torch.bool)) is None
    assert "auroc" not in selective_scores(logits, logits.argmax(-1))


def test_normalized_confidence_by_hand_and_whatever_the_scale_of_the_logits() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0]])  # centred: 2, −1, −1
    assert normalized_confidence(logits, 1).item() == pytest.approx(2 / 4)
    assert normalized_confidence(logits, 2).item() == pytest.approx(2 / math.sqrt(6))
    many, _ = sample()
    scale = torch.rand(len(many), 1) + 0.1
    torch.testing.assert_close(
        normalized_confidence(many, 3), normalized_confidence(many * scale + 5, 3), rtol=1e-5, atol=1e-6
    )


def test_the_exponent_has_the_least_aurc_on_validation() -> None:
    logits, target = sample(classes=6)
    correct = logits.argmax(-1) == target
    exponent = fit_exponent(logits, target)
    assert exponent in selective.EXPONENTS
    areas = {p: aurc(normalized_confidence(logits, p), correct) for p in selective.EXPONENTS}
    assert areas[exponent] == min(areas.values())
    two, of_two = sample(classes=2)
    assert fit_exponent(two, of_two) is None
    assert not any("normalized" in key or "exponent" in key for key in scores(two, of_two, two, of_two))


def test_normalization_repairs_a_ranking_that_the_scale_of_logits_spoils() -> None:
    """Wrong predictions whose logits are large in all classes, the case that label smoothing makes."""
    logits, target = sample(600, 5)
    wrong = (logits.argmax(-1) != target).unsqueeze(-1)
    spoilt = torch.where(wrong, 20 * logits, logits)
    found = selective_scores(spoilt, target, 2)
    assert found["aurc"] > 1.5 * found["aurc_normalized"]
    assert found["auroc"] < found["auroc_normalized"]


def test_adaptive_bins_hold_equally_many_examples() -> None:
    # Confidences 0.6, 0.7, 0.8, 0.9; right: no, yes, yes, yes. Two bins: |1.3 − 1| and |1.7 − 2|, over four.
    probabilities = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.8, 0.2]], dtype=torch.float64)
    target = torch.tensor([1, 0, 0, 0])
    assert adaptive_calibration_error(probabilities, target, bins=2) == pytest.approx((0.3 + 0.3) / 4)
    # As many bins as examples, and no more: the mean of |confidence − right|.
    assert adaptive_calibration_error(probabilities, target, bins=99) == pytest.approx((0.6 + 0.1 + 0.3 + 0.2) / 4)


def test_classwise_error_by_a_loop_over_classes_and_bins() -> None:
    logits, target = sample(200, 3)
    p = logits.double().softmax(-1).numpy()
    total = 0.0
    for k in range(3):
        for low in range(15):
            inside = (p[:, k] > low / 15) & (p[:, k] <= (low + 1) / 15)
            if inside.any():
                total += inside.mean() * abs(p[inside, k].mean() - (target.numpy()[inside] == k).mean())
    found = classwise_calibration_error(torch.from_numpy(p), target)
    assert found == pytest.approx(total / 3)


def test_scores_have_them_raw_and_scaled() -> None:
    logits, target = sample(classes=6)
    found = scores_at(2.0, logits, target, 2)
    p = (logits.double() / 2).softmax(-1)
    assert found["ece_adaptive_scaled"] == adaptive_calibration_error(p, target)
    assert found["ece_classwise_scaled"] == classwise_calibration_error(p, target)
    assert found["norm_exponent"] == 2
    assert 0 < found["coverage_1"] <= found["coverage_5"] <= 1 or found["coverage_1"] == 0


def test_a_record_has_them_and_evaluate_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    record = run_trial.run(trial("label_smoothing"), folder)
    keys = {"aurc", "auroc", "coverage_1", "coverage_5", "aurc_normalized", "ece_adaptive", "ece_classwise_scaled"}
    assert keys <= record["metrics"].keys()
    assert record["peak_memory"] > 1e7
    assert cli.main(["evaluate", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == pytest.approx(record["metrics"])
    assert cli.main(["evaluate", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "AURC, normalized" in shown
    assert "ECE, adaptive" in shown
    # A run of an earlier version has no exponent: it is evaluated without normalized logits.
    earlier = read_record(folder)
    assert earlier is not None
    earlier["metrics"] = {key: value for key, value in earlier["metrics"].items() if key in ("nll", "temperature")}
    (folder / RECORD).write_text(json.dumps(earlier))
    assert cli.main(["evaluate", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert "aurc" in found
    assert "aurc_normalized" not in found
