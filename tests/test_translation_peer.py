"""The peer that translators are measured beside."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import Seq2SeqTrainer

from labo import tasks
from labo.experiment import settings as flat
from labo.experiment.run_trial import Trial, build
from labo.settings import TrainingSettings
from labo.training.loop import TrainingLoop


@pytest.fixture
def peer() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "translation_peer.py"
    spec = importlib.util.spec_from_file_location("translation_peer", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_what_is_there_is_not_run_again(peer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(side: str, asked: Any) -> dict[str, Any]:
        return {**peer.told(side, asked), "bleu": 1.0, "tokens_per_second": 2.0}

    monkeypatch.setattr(peer, "measured", measured)
    monkeypatch.setattr(peer.torch, "set_num_threads", lambda count: None)
    output = ["--output", str(tmp_path / "found"), "--task", "numbers"]
    others = ([], [], ["--epochs", "2"], ["--train-size", "40"], ["--threads", "2"], ["--seed", "1"])
    others += (["--learning-rate", "0.001"], ["--learning-rate", "0.002"])
    counts = []
    for other in others:
        monkeypatch.setattr(sys, "argv", ["translation_peer.py", *output, *other])
        peer.main()
        counts.append(len((tmp_path / "found.jsonl").read_text().splitlines()))
    assert counts == [2, 2, 4, 6, 8, 10, 10, 12]
    first = json.loads((tmp_path / "found.jsonl").read_text().splitlines()[0])
    assert [first[name] for name in peer.KEY] == ["labo", "numbers", 0, 30, None, 1, 1e-3]


def test_the_same_weights_decay_on_both_sides(peer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.create("numbers", train_size=40)
    settings = flat.resolve(task.default_settings(), "label_smoothing", {"epochs": 1})
    splits = task.splits(0)
    groups = []

    def train(trainer: Any) -> None:
        optimizer = trainer.optimizer or trainer.create_optimizer()
        named = {parameter: name for name, parameter in trainer.model.named_parameters()}
        told = [(group["weight_decay"], group["betas"], group["params"]) for group in optimizer.param_groups]
        groups.append([(decay, betas, [named[each] for each in params]) for decay, betas, params in told])

    monkeypatch.setattr(Seq2SeqTrainer, "train", train)
    monkeypatch.setattr(TrainingLoop, "run", train)
    own, _ = flat.split(settings, "label_smoothing")
    for side in (peer.by_labo, peer.by_peer):
        model, loss = build(Trial("numbers", "label_smoothing", 0, settings, dict(task.options)), task, splits)
        side(model, loss, splits, TrainingSettings.from_mapping(own), 0, tmp_path)
    mine, theirs = groups
    assert mine == theirs
    assert [decay for decay, _, _ in mine] == [own["weight_decay"], 0.0]
    assert all(name.endswith("bias") or "norm" in name for name in mine[1][2])
