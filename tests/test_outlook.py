"""What is said before a training: the data, and how long it may take."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import trial
from labo import tasks
from labo.experiment import compare, outlook
from labo.experiment.compare import ComparisonConfig
from test_compare import Watcher


def test_the_data_are_described() -> None:
    splits = tasks.create("digits").splits(0)
    counts = torch.bincount(splits.train.target).tolist()
    listed = ", ".join(f"{digit}: {count}" for digit, count in enumerate(counts))
    assert outlook.data_sentence(splits) == (
        "400 training, 397 validation and 1,000 test examples of 10 classes; training examples by class " + listed + "."
    )
    many = replace(
        splits,
        classes=tuple(f"c{index}" for index in range(13)),
        train=replace(splits.train, target=torch.cat([torch.arange(13).repeat(30), torch.full((10,), 4)])),
    )
    assert outlook.data_sentence(many).endswith("13 classes; from 30 (c0) to 40 (c4) training examples each.")


def test_the_seconds_are_those_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances a tenth of a second a step: 2 epochs of 7 steps take 1.4 seconds."""
    clock = itertools.count()
    own, splits = tasks.create("digits"), tasks.create("digits").splits(0)
    monkeypatch.setattr(outlook, "time", type("Clock", (), {"monotonic": lambda: next(clock) / 10}))
    before = torch.get_num_threads()
    assert outlook.trial_seconds(trial("none"), own, splits) == pytest.approx(1.4)
    assert torch.get_num_threads() == before
    sentence = outlook.time_sentence(trial("none"), own, splits, 100, 4)
    assert sentence is not None
    assert "about 35 s for 100 trials, 4 side by side" in sentence


def test_slow_steps_are_not_all_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 10 seconds a step the second time is read and no third one."""
    clock = itertools.count(0, 10)
    task = tasks.create("digits")
    monkeypatch.setattr(outlook, "time", type("Clock", (), {"monotonic": lambda: next(clock)}))
    assert outlook.trial_seconds(trial("none"), task, task.splits(0)) == 14 * 10
    assert next(clock) == 20


def test_steps_that_diverge_are_no_estimate() -> None:
    task = tasks.create("digits")
    assert outlook.time_sentence(trial("none", set={"learning_rate": 1e30}), task, task.splits(0), 8, 1) is None


def test_a_comparison_says_both_before_it_trains(tmp_path: Path) -> None:
    watcher = Watcher()
    fixed = {"epochs": 1, "average_epochs": 1}
    config = ComparisonConfig(["none"], tmp_path, baseline="none", seeds=1, settings_per_method=1, jobs=1, set=fixed)
    assert compare.run(config, watcher) == 0
    assert watcher.said[0].startswith("400 training, 397 validation and 1,000 test examples of 10 classes")
    assert any(sentence.startswith("First estimate") and "for 1 trial." in sentence for sentence in watcher.said)
    again = Watcher()
    assert compare.run(config, again) == 0
    assert not any("First estimate" in sentence for sentence in again.said)
