"""labo_auto: what held-out labels decide, in a trial, in a comparison, and for a training function of one's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import labo
from experiments import trial
from labo import regularizers
from labo.cli import main
from labo.errors import UserError
from labo.experiment import run_trial, saved_run
from labo.outer import health, trust
from labo.outer.channel import channel_losses
from labo.outer.trust import Decision, Evidence
from labo.records import trial as trials

# What held-out labels say.


def test_z_scores_by_hand():
    differences = torch.tensor([0.5, -0.5, 1.0, 0.0])
    assert trust.z_score(differences) == pytest.approx(0.25 / (differences.std().item() / 2))
    assert trust.z_score(torch.zeros(4)) == 0
    assert trust.z_score(-torch.ones(4)) == -math.inf


def noisy(share: float, kind: str, *, sure: float = 3.0, count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that know the true class of 4, and labels of which a share is wrong."""
    draw = torch.Generator().manual_seed(0)
    true = torch.randint(4, (count,), generator=draw)
    step = torch.ones_like(true) if kind == "pair" else torch.randint(1, 4, (count,), generator=draw)
    labels = torch.where(torch.rand(count, generator=draw) < share, (true + step) % 4, true)
    return sure * nn.functional.one_hot(true, 4).double() + torch.randn(count, 4, generator=draw).double() / 4, labels


@pytest.mark.parametrize(("share", "kind"), [(0.0, "symmetric"), (0.3, "symmetric"), (0.3, "pair")])
def test_the_likelihood_through_a_channel_is_that_of_the_noise(share, kind):
    logits, labels = noisy(share, kind, sure=9.0)
    found = channel_losses(logits, labels).mean().item()
    per_wrong = math.log(3) if kind == "symmetric" else 0.0  # which of the wrong classes
    entropy = 0 if not share else -share * math.log(share) - (1 - share) * math.log(1 - share) + share * per_wrong
    assert found == pytest.approx(entropy, abs=0.05)
    assert channel_losses(logits, labels).shape == labels.shape


def test_many_classes_have_a_symmetric_channel():
    logits = 9 * torch.eye(150)[torch.arange(600) % 150]
    assert channel_losses(logits, torch.arange(600) % 150).mean() < 0.2


def answers(
    memory: torch.Tensor,
    mild: torch.Tensor,
    labels: torch.Tensor,
    asked: list[tuple[str, int]],
    agreement: float = 1.0,
) -> Any:
    halves = (slice(0, 1000), slice(1000, 2000))

    def train_half(candidate: trust.Candidate, half: int) -> trust.HeldOut:
        asked.append((candidate.name, half))
        at = halves[half - 1]
        return trust.HeldOut((memory if candidate.name == "strong" else mild)[at], labels[at], agreement)

    return train_half


def test_a_clear_half_decides_alone():
    right, labels = noisy(0.3, "symmetric")
    by_heart = right + 4 * torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))
    asked: list[tuple[str, int]] = []
    decision = trust.decide(answers(right, by_heart, labels, asked))
    assert asked == [("mild", 1), ("strong", 1)]
    assert (decision.name, decision.method, decision.cost) == ("strong", "labo", 2.0)
    assert decision.evidence is not None
    assert decision.evidence.z < -trust.CLEAR
    asked.clear()
    decision = trust.decide(answers(by_heart, right, labels, asked))
    assert (decision.name, decision.method, decision.cost, len(asked)) == ("mild", "labo", 2.0, 2)
    assert decision.options["alpha"] == 0.3
    assert "trained with a mild memory" in decision.sentence
    assert decision.evidence is not None
    assert decision.evidence.memorized == pytest.approx(1 - decision.evidence.accuracy["mild"], abs=1e-6)
    # A network that agrees with no more of the labels it was trained on than of others does not memorize them.
    agreement = decision.evidence.accuracy["mild"] + trust.MEMORIZED - 0.01
    decision = trust.decide(answers(by_heart, right, labels, [], agreement))
    assert (decision.name, decision.method, decision.options) == ("plain", "label_smoothing", {"epsilon": 0.1})
    assert "trained with label smoothing" in decision.sentence
    assert "memorized: 14.0% of the labels, mild from 15%" in decision.sentence


def test_the_decision_tells_how_many_labels_are_wrong():
    logits, labels = noisy(0.3, "symmetric", sure=6.0)
    decision = trust.decide(answers(logits, logits, labels, []))
    assert decision.channel is not None
    assert decision.channel["wrong"] == pytest.approx(0.3, abs=0.04)
    assert "of the labels are wrong" in decision.sentence
    logits, labels = noisy(0.0, "symmetric", sure=6.0)
    assert "No label noise found" in trust.decide(answers(logits, logits, labels, [])).sentence


def test_what_is_not_clear_asks_the_other_half():
    logits, labels = noisy(0.3, "symmetric")
    asked: list[tuple[str, int]] = []
    decision = trust.decide(answers(logits, logits, labels, asked))
    assert asked == [("mild", 1), ("strong", 1), ("mild", 2), ("strong", 2)]
    assert decision.cost == 3.0
    assert decision.evidence is not None
    accuracy = decision.evidence.accuracy
    assert decision.evidence == Evidence(2, 0.0, 0.0, accuracy, round(1.0 - accuracy["mild"], 6))
    assert decision.name == "strong"  # 0 is below the limit
    assert Decision.from_json(json.loads(json.dumps(decision.as_json()))) == decision


def test_networks_that_fail_decide_for_label_smoothing():
    decision = trust.decide(lambda candidate, half: None)
    assert (decision.name, decision.evidence) == ("plain", None)
    assert "networks with a memory failed" in decision.sentence


# In a trial.

NOISE = {"train_size": 300, "label_noise": "0.3"}


def auto_trial(**options: Any) -> trials.Trial:
    return trial("labo_auto", task_options=NOISE, epochs=options.pop("epochs", 12), **options)


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto") / "run"
    run_trial.run(auto_trial(), folder)
    return folder


def test_a_trial_is_that_of_the_method_it_chose(decided, tmp_path):
    record = trials.read_record(decided)
    assert record is not None
    decision = record["decision"]
    by_hand = trial(decision["method"], task_options=NOISE, epochs=12, set=decision["options"])
    assert run_trial.run(by_hand, tmp_path / "run")["metrics"] == record["metrics"]
    assert not (decided / trials.AUTO).exists()
    assert record["seconds"] > decision["seconds"] > 0
    assert decision["cost"] in (2.0, 3.0)
    assert len(decision["curves"]["mild"]) == len(decision["curves"]["strong"]) == 12
    assert set(decision["curves"]["mild"][0]) == {"nll", "accuracy"}


def test_a_killed_decision_goes_on(decided, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    shares: list[float] = []

    def stop(share: float) -> None:
        shares.append(share)
        if share > 0.25:  # in the second training of a half
            raise StoppedError

    with pytest.raises(StoppedError):
        run_trial.run(auto_trial(save_seconds=0.0), tmp_path / "cut", stop)
    assert (tmp_path / "cut" / trials.AUTO / "mild" / "1" / trials.RECORD).exists()
    assert not (tmp_path / "cut" / trials.AUTO / "strong" / "1" / trials.RECORD).exists()
    resumed = run_trial.run(auto_trial(), tmp_path / "cut", shares.append)
    whole = trials.read_record(decided)
    assert whole is not None
    for key in ("metrics", "step"):
        assert resumed[key] == whole[key]
    same = ("name", "method", "options", "evidence", "cost", "curves")
    assert all(resumed["decision"][key] == whole["decision"][key] for key in same)
    assert max(shares) <= 1


def test_a_finished_run_knows_its_method(decided, capsys):
    run = saved_run.load(decided)
    decision = run.record["decision"]
    assert run.regularizer.chosen.name == decision["method"]
    if decision["name"] == "strong":
        assert run.memory is not None
        assert run.memory.shape == (300, 10)
    assert main(["labels", str(decided), "--folds", "2"]) == 2
    assert "has decided by networks of its own folds: leave --folds out" in capsys.readouterr().err
    assert main(["labels", str(decided)]) == 0


def test_the_decision_is_told(tmp_path, capsys):
    command = ["train", "digits", "--method", "labo_auto", "--epochs", "3", "--output", str(tmp_path / "run")]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "labo_auto trained with" in told
    assert "plain runs" in told


def test_a_comparison_runs_it_untuned(tmp_path, capsys):
    command = ["compare", "digits", "--methods", "label_smoothing,labo_auto", "--seeds", "2", "--tuning-seeds", "1"]
    command += ["--settings-per-method", "2", "--epochs", "2", "--jobs", "1", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    told = capsys.readouterr()
    tuned = [json.loads(line)["method"] for line in (tmp_path / "out" / "tuning.jsonl").read_text().splitlines()]
    assert tuned == ["label_smoothing"] * 2
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [("decision" in record) for record in records] == [False, True, False, True]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "labo_auto decided by itself" in page
    assert "labo_auto decided by itself" in (tmp_path / "out" / "report.html").read_text()
    assert told.err.count("labo_auto") or told.out.count("labo_auto")


def test_sentences_and_mixtures_are_refused(tmp_path):
    with pytest.raises(UserError, match="needs decision: it follows single images, and mixup"):
        run_trial._check(auto_trial(), {"mixup": 0.2}, regularizers.create("labo_auto"), FakeSplits(sequences=False))
    with pytest.raises(UserError, match="needs decision: it is for one label per example"):
        run_trial._check(auto_trial(), {}, regularizers.create("labo_auto"), FakeSplits(sequences=True))


class FakeSplits:
    size, train = 10, None

    def __init__(self, *, sequences: bool) -> None:
        self.sequences = sequences


def test_it_refuses_to_work_undecided():
    with pytest.raises(UserError, match="'labo_auto' needs decision: call regularizer"):
        labo.LabelRegularizedLoss(regularizers.create("labo_auto"))(torch.zeros(2, 3), torch.tensor([0, 1]))


# What looks wrong with a memory.


def test_a_memory_that_is_well_has_no_signs():
    labels = torch.arange(100) % 4
    m = 0.7 * nn.functional.one_hot(labels, 4) + 0.075
    curve = [{"validation_accuracy": accuracy} for accuracy in (0.5, 0.6, 0.7, 0.75, 0.8, 0.81, 0.80)]
    assert health.signs(m, labels, "abcd", curve) == []
    assert health.signs(m, labels, "abcd", []) == []


def test_signs_of_a_memory_that_goes_wrong():
    labels = torch.arange(100) % 4
    one = torch.full((100, 4), 0.1)
    one[:, 2] = 0.7
    (told,) = health.signs(one, labels, "abcd", [])
    assert told.startswith("The memory has moved to class 'c': 70.0% of its mass, but 25.0% of the labels; use")
    turned = nn.functional.one_hot((labels + 1) % 4, 4).float()
    assert health.signs(turned, labels, "abcd", [])[0].startswith("The memory agrees with only 0.0% of the labels")
    curve = [{"validation_accuracy": accuracy} for accuracy in (0.1, 0.2, 0.3, 0.4, 0.5, 0.45)]
    m = nn.functional.one_hot(labels, 4).float()
    (told,) = health.signs(m, labels, "abcd", curve)
    assert told.startswith("Validation accuracy ended at 45.0%, below the 50.0% of epoch 5")


def test_a_run_says_that_its_memory_went_wrong(tmp_path, capsys):
    # From the first prediction on, and sharpened: what is said first becomes true.
    command = ["train", "digits", "--method", "labo[prior=memory]", "--set", "decay=0", "--set", "sharpness=8"]
    command += ["--set", "alpha=1", "--epochs", "12", "--output", str(tmp_path / "run")]
    assert main(command) == 0
    assert "The memory" in capsys.readouterr().out
    record = trials.read_record(tmp_path / "run")
    assert record is not None
    assert record["notes"]


# For a training function of one's own.


def training(features: torch.Tensor, labels: torch.Tensor, epochs: int = 30) -> Any:
    def train(criterion, indices, held_out):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(features.shape[1], 64), nn.ReLU(), nn.Linear(64, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(epochs):
            for batch in indices[torch.randperm(len(indices))].split(50):
                loss = criterion(model(features[batch]), labels[batch], indices=batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            yield model(features[held_out])
        return model

    return train


def test_labels_are_learnt_by_ones_own_training_function():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(400, 20, generator=draw)
    right = (features[:, 0] > 0).long()
    labels = torch.where(torch.rand(400, generator=draw) < 0.3, 1 - right, right)
    said: list[str] = []
    learnt = labo.learn_labels(training(features, labels), labels, say=said.append)
    assert learnt.decision.name == "strong"
    assert said == [learnt.decision.sentence]
    assert learnt.memory is not None
    assert learnt.memory.shape == (400, 2)
    assert (learnt.memory.argmax(-1) == right).double().mean() > (labels == right).double().mean()
    plain = labo.LabelRegularizedLoss(regularizers.create("label_smoothing"))
    end = returned(training(features, labels)(plain, torch.arange(400), torch.arange(0)))
    fresh = torch.randn(2000, 20, generator=draw)
    mine, theirs = ((model(fresh).argmax(-1) == (fresh[:, 0] > 0)).double().mean() for model in (learnt.model, end))
    assert mine > theirs + 0.03


def returned(training: Any) -> Any:
    """What a generator returns, after all that it yields."""
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value


def test_training_functions_that_do_not_fit():
    labels = torch.arange(40) % 2
    with pytest.raises(UserError, match="to yield logits of the held-out examples after each epoch"):
        labo.learn_labels(lambda criterion, indices, held_out: None, labels)  # pyright: ignore[reportArgumentType]

    def nothing(criterion, indices, held_out):
        return
        yield torch.zeros(0)

    def short(criterion, indices, held_out):
        yield torch.zeros(3, 2)

    def untrained(criterion, indices, held_out):
        yield torch.zeros(len(held_out), 2)

    with pytest.raises(UserError, match="to call `criterion`, but it did not"):
        labo.learn_labels(untrained, labels)
    with pytest.raises(UserError, match="but it yields none"):
        labo.learn_labels(nothing, labels)
    with pytest.raises(UserError, match=r"to yield logits \(20, C\) of the held-out examples, but got shape \(3, 2\)"):
        labo.learn_labels(short, labels)
    with pytest.raises(UserError, match=r"to be \(N,\) class indices"):
        labo.learn_labels(short, torch.rand(4, 2))
    with pytest.raises(UserError, match="at least 4 training examples, but got 3"):
        labo.learn_labels(short, torch.tensor([0, 1, 0]))
