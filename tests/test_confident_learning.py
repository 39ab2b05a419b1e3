"""Confident learning as a method: what is left out, the training on the rest, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from experiments import trial
from labo import LabelRegularizedLoss, regularizers
from labo.cli import main
from labo.errors import UserError
from labo.experiment import cross_fitting, run_trial
from labo.records import trial as trials

METHOD = "confident_learning"
NOISE = {"train_size": 200, "label_noise": "0.3"}


def test_the_loss_is_label_smoothing_of_what_is_kept():
    loss = LabelRegularizedLoss(regularizers.create(METHOD, epsilon=0.2))
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 3, 2])
    with pytest.raises(UserError, match=r"needs kept: call regularizer.provide\(kept=indices\)"):
        loss(logits, target)
    loss.regularizer.provide(kept=torch.arange(3))
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target, label_smoothing=0.2))


def test_where_cleanlab_is_missing_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_trial, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package cleanlab: pip install cleanlab"):
        run_trial.run(trial(METHOD), tmp_path / "run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("cleanlab")
    folder = tmp_path_factory.mktemp("pruned") / "run"
    run_trial.run(trial(METHOD, task_options=NOISE, epochs=15, set={"hidden": 32}), folder)
    return folder


def test_a_trial_trains_on_the_rest_and_counts_its_cost(whole):
    record = trials.read_record(whole)
    assert record is not None
    found = record["pruning"]
    assert found["wrong"] == 60
    assert found["removed_wrong"] > 0.5 * found["removed"]  # by chance 0.3
    assert 20 < found["removed"] < 120
    assert 1 < found["cost"] <= round(1 + 4 * 2 / 3, 2)
    assert found["sentence"] == f"Confident learning left out {found['removed']} of 200 training examples."
    assert record["seconds"] > found["seconds"] > 0
    assert record["step"] == 15 * -(-(200 - found["removed"]) // 64)  # batches of 64
    assert not (whole / trials.CROSS_FIT).exists()


def test_it_filters_by_what_the_networks_of_folds_predict(whole, tmp_path, monkeypatch):
    """Labels that contradict confident predictions go; by Northcutt et al. the count is that of the confident joint."""
    target = torch.arange(100) % 4
    written = target.clone()
    written[:10] = (written[:10] + 1) % 4
    logits = 8 * F.one_hot(target, 4).float() + torch.rand(100, 4, generator=torch.Generator().manual_seed(0))

    class Train:
        before_noise = None

    Train.target = written  # pyright: ignore[reportAttributeAccessIssue]

    class Splits:
        train = Train

    monkeypatch.setattr(cross_fitting, "out_of_fold", lambda *_: cross_fitting.OutOfFold(logits, {"cost": 2.0}))
    nothing: Any = None
    kept, found = cross_fitting.keep_confident(nothing, tmp_path, Splits, nothing)
    assert kept.tolist() == list(range(10, 100))
    assert (found["removed"], found["cost"]) == (10, 2.0)


def test_steps_folds_and_sequences_are_refused(whole, capsys):
    with pytest.raises(UserError, match="needs epochs, but the length of this run is set in steps"):
        run_trial.run(trial(METHOD, set={"steps": 5}), whole.parent / "steps")
    assert main(["labels", str(whole), "--folds", "2"]) == 2
    assert "has learnt from networks of its own folds: leave --folds out" in capsys.readouterr().err
    with pytest.raises(UserError, match="needs kept: it is for one label per example"):
        run_trial.run(trial(METHOD, task="numbers"), whole.parent / "numbers")
