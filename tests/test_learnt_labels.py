"""Folds side by side, the budget of labo_auto, and the page of what was learnt of the labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import labo
from browser import width_on_a_phone
from experiments import forget_digests, trial
from labo import regularizers, tasks
from labo.cli import main
from labo.errors import UserError
from labo.experiment import folds, run_trial
from labo.experiment.executor import TrialExecutor
from labo.outer import channel as channels
from labo.outer import em, trust
from labo.records import trial as trials
from labo.report import channel_map, learnt
from labo.report.model import Figures, Table

NOISE = {"train_size": 120, "label_noise": "0.3"}
CHANNEL = "labo[prior=channel]"


def small(method: str, **options: Any) -> trials.Trial:
    return trial(method, task_options=NOISE, epochs=options.pop("epochs", 4), **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run of labo[prior=channel], and the phases that it told."""
    folder, phases = tmp_path_factory.mktemp("learnt") / "run", []
    run_trial.run(small(CHANNEL), folder, phase=phases.append)
    return folder, phases


# Folds.


def test_phases_say_which_folds_train(run):
    _, phases = run
    record = trials.read_record(run[0])
    assert record is not None
    chosen = record["channel"]["networks"]
    assert phases == [
        "training without fold 1 of 3 (smoothing, strong)",
        f"training without folds 2 and 3 of 3 ({chosen})",
        "training the final network",
    ]


@pytest.mark.slow  # starts processes, which takes a while
def test_folds_side_by_side_are_the_same_run(run, tmp_path):
    with TrialExecutor(2) as executor:
        record = run_trial.run(small(CHANNEL), tmp_path / "run", run_folds=executor.run)
    whole = trials.read_record(run[0])
    assert whole is not None
    assert record["metrics"] == whole["metrics"]
    timeless = {key: value for key, value in whole["channel"].items() if key != "seconds"}
    assert {key: record["channel"][key] for key in timeless} == timeless


def test_folds_run_together_in_each_step_of_the_decision(tmp_path):
    batches: list[list[str]] = []

    def run_folds(jobs: Any, update: Any) -> Any:
        batches.append([str(job.folder.relative_to(tmp_path / "run" / trials.AUTO)) for job in jobs])
        yield from run_trial._in_turn(jobs, update)

    record = run_trial.run(small("labo_auto[budget=6]", epochs=1), tmp_path / "run", run_folds=run_folds)
    names = ("mild", "strong", "firm", "steady")
    assert batches == [[f"{name}/{half}" for name in names] for half in (1, 2)]
    assert record["decision"]["cost"] == 5.0
    assert set(record["decision"]["variants"]) == {"firm", "steady"}


def test_a_worker_that_dies_is_told(tmp_path):
    class Died:
        reason = "the worker process died"

    with pytest.raises(UserError, match=r"without fold 1/2 did not finish \(the worker process died\); the same comm"):
        run_trial.run(small("labo_auto"), tmp_path / "run", run_folds=lambda jobs, update: iter([(jobs[0], Died())]))


def test_a_fold_that_diverges_is_trained_again_with_half_the_learning_rate(tmp_path):
    rates: dict[str, float] = {}

    def run_folds(jobs: Any, update: Any) -> Any:
        for job in jobs:
            rates[f"{job.folder.parent.name}/{job.folder.name}"] = job.trial.settings["learning_rate"]
            broken = replace(job.trial, settings={**job.trial.settings, "learning_rate": 1e30})
            yield job, run_trial.run(broken if job.folder.name == "2" else job.trial, job.folder)

    record = run_trial.run(small(CHANNEL), tmp_path / "run", run_folds=run_folds)
    chosen = record["channel"]["networks"]
    assert rates[f"{chosen}/2-again"] == rates[f"{chosen}/2"] / 2
    assert record["channel"]["repeated"] == [f"fold 2 of 3 ({chosen})"]
    told = " ".join(learnt.sentences(record, None))
    assert f"Diverged, and trained again with half the learning rate: fold 2 of 3 ({chosen})." in told


def test_a_fold_alone_is_the_complement():
    splits = tasks.create("digits", **NOISE).splits(0)
    without, left_out = folds.leave_out(splits, "2/4", 0)
    alone, others = folds.leave_out(splits, "only 2/4", 0)
    assert len(alone.train) == len(left_out) == 30
    assert torch.as_tensor(alone.train.features).equal(torch.as_tensor(left_out.features))
    assert torch.as_tensor(without.train.features).equal(torch.as_tensor(others.features))


def test_too_few_examples_for_the_folds(tmp_path):
    with pytest.raises(UserError, match="at least 2 training examples of every class"):
        run_trial.run(trial(CHANNEL, task_options={"train_size": 10}), tmp_path / "run")


def test_jobs_and_budget_that_do_not_fit(capsys):
    for options, message in [
        (["--jobs", "0"], "Expected --jobs of at least 1"),
        (["--method", "labo", "--budget", "3"], "Method 'labo' has no budget: --budget is for labo_auto"),
        (["--method", "labo_auto", "--budget", "2"], "`budget` to be 1.5, 3 or 6 (plain training runs), but got 2.0"),
    ]:
        assert main(["train", "digits", *options]) == 2
        assert message in capsys.readouterr().err


# The budget.


def answers(logits: dict[str, Tensor], labels: Tensor, asked: list[tuple[str, int]]) -> Any:
    count = len(labels)
    parts = {0: slice(count // 4, count), 1: slice(0, count // 2), 2: slice(count // 2, count)}

    def train_half(candidate: trust.Candidate, half: int) -> trust.HeldOut:
        asked.append((candidate.name, half))
        rows = logits.get(candidate.name, logits["strong"])
        return trust.HeldOut(rows[parts[half]], labels[parts[half]], 1.0)

    return train_half


@pytest.fixture(scope="module")
def noisy() -> tuple[dict[str, Tensor], Tensor]:
    """Logits of candidates, the strong ones better, and labels of which a third is wrong."""
    draw = torch.Generator().manual_seed(0)
    true = torch.randint(4, (400,), generator=draw)
    labels = torch.where(torch.rand(400, generator=draw) < 0.3, (true + 1) % 4, true)
    right = 6.0 * F.one_hot(true, 4).double()
    noise = {name: torch.randn(400, 4, generator=draw).double() for name in ("mild", "strong")}
    return {"mild": right + 6 * noise["mild"], "strong": right + 2.5 * noise["strong"]}, labels


def test_a_small_budget_asks_a_quarter(noisy):
    logits, labels = noisy
    asked: list[tuple[str, int]] = []
    decision = trust.decide(answers(logits, labels, asked), 1.5)
    assert asked == [("mild", 0), ("strong", 0)]
    assert (decision.name, decision.cost, decision.budget) == ("strong", 1.5, 1.5)


def test_a_large_budget_takes_a_variant_only_if_it_is_clearly_better(noisy):
    logits, labels = noisy
    asked: list[tuple[str, int]] = []
    decision = trust.decide(answers(logits, labels, asked), 6.0)
    assert asked == [(name, half) for half in (1, 2) for name in ("mild", "strong", "firm", "steady")]
    assert (decision.name, decision.cost, decision.variants) == ("strong", 5.0, {"firm": 0.0, "steady": 0.0})
    better = {**logits, "firm": logits["strong"] + 3 * F.one_hot(labels, 4)}
    decision = trust.decide(answers(better, labels, []), 6.0)
    assert decision.name == "firm"
    assert decision.options["epsilon"] == 0.8
    assert "against the strong one: firm -" in decision.sentence
    assert trust.Decision.from_json(json.loads(json.dumps(decision.as_json()))) == decision


def test_the_budget_is_an_option_that_old_records_lack():
    assert regularizers.describe("labo_auto").defaults == {}
    assert regularizers.describe("labo_auto[budget=6]").defaults == {"budget": 6}
    with pytest.raises(UserError, match=r"`budget` to be 1\.5, 3 or 6"):
        regularizers.create("labo_auto", budget=4)
    with pytest.raises(UserError, match=r"`budget` to be 1\.5, 3 or 6"):
        labo.learn_labels(lambda *given: iter(()), torch.arange(8) % 2, budget=2.0)  # pyright: ignore[reportArgumentType]


# What an example is trained towards.


@pytest.mark.parametrize("prior", ["memory", "channel"])
def test_training_targets_are_those_of_the_gradient(prior):
    member = regularizers.create(f"labo[prior={prior}]", alpha=0.7, epsilon=0.2)
    draw = torch.Generator().manual_seed(0)
    q, labels = torch.rand(5, 4, generator=draw).softmax(-1), torch.tensor([0, 1, 2, 3, 0])
    member.provide(**({"examples": 5} if prior == "memory" else {"posterior": q}))
    logits = torch.randn(5, 4, generator=draw, requires_grad=True)
    indices = torch.arange(5)
    loss = labo.LabelRegularizedLoss(member)
    loss(logits, labels, indices=indices)  # a memory takes the predictions
    loss.eval()
    loss(logits, labels, indices=indices).backward()
    assert logits.grad is not None
    targets = member.training_targets(labels, 4)
    assert targets is not None
    # The gradient of cross-entropy to a target is p - target.
    torch.testing.assert_close(targets, (logits.softmax(-1) - 5 * logits.grad).detach(), atol=2e-3, rtol=0)


def test_methods_that_learn_no_labels_have_no_targets():
    assert regularizers.create("label_smoothing").training_targets(torch.arange(3), 3) is None
    assert regularizers.create("labo_auto").training_targets(torch.arange(3), 3) is None


# The page.


def test_replaced_examples_are_those_whose_posterior_prefers_another_class(run):
    record, content = trials.read_record(run[0]), learnt.read(run[0])
    assert record is not None
    assert content is not None
    assert content["replaced"] == record["channel"]["changed"] >= content["replaced_injected"]
    assert content["examples"] == 120
    for line in content["top"]:
        assert line["q_other"] > line["q_given"]
        assert line["picture"].startswith("data:image/png")
    assert content["epoch"] == 4


def test_the_page_and_the_report_show_what_was_learnt(run, tmp_path):
    record = trials.read_record(run[0])
    assert record is not None
    page = learnt.write_page(run[0], record)
    assert page is not None
    html = page.read_text()
    for text in ("The noise channel", "<svg", record["channel"]["sentence"].split(" (")[0], "They stopped at epoch"):
        assert text in html
    content = learnt.read(run[0])
    assert content is not None
    assert html.count("<img") == len(content["top"])
    folder = tmp_path / "digits" / CHANNEL / "0"
    folder.mkdir(parents=True)
    (folder / trials.LEARNT).write_bytes((run[0] / trials.LEARNT).read_bytes())
    lines = [record, {**record, "seed": 1}]  # of which the second has no folder
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = labo_report(tmp_path)
    assert "What was learnt of the labels" in html
    assert html.count("Heat map of the noise channel") == 1
    assert f"<summary>{CHANNEL}, seed 1</summary>" in html
    assert html.count("<img") == min(learnt.MAX_IN_REPORT, len(content["top"]))
    (folder / trials.LEARNT).write_text('{"top": [1]}')
    assert "<img" not in labo_report(tmp_path)


def labo_report(folder: Path) -> str:
    from labo import report

    return report.build(folder).read_text()


@pytest.mark.slow
def test_the_page_fits_a_phone(run, tmp_path):
    record = trials.read_record(run[0])
    assert record is not None
    page = learnt.write_page(run[0], record)
    assert page is not None
    assert width_on_a_phone(page.read_text(), tmp_path) <= 375


def test_a_run_that_found_nothing_says_so():
    clean = {"sentence": "No label noise found: at most 1.0% …", "interval": [0.0, 0.01], "clean": True}
    nothing = {"replaced": 0, "examples": 10, "top": []}
    record = {"method": CHANNEL, "channel": clean}
    assert learnt.sentences(record, nothing)[-1] == "No label noise found: trained as label smoothing."
    record = {"method": CHANNEL, "channel": {**clean, "interval": [0.01, 0.02], "clean": False}}
    assert learnt.sentences(record, nothing)[-1] == "No label was replaced: trained as label smoothing."
    record = {"method": "labo_auto", "decision": {"name": "strong", "sentence": "…", "channel": clean}}
    assert "trained with the memory, which outweighs no label" in learnt.sentences(record, nothing)[-1]
    assert learnt.sentences({"method": "none"}, None) == []


def test_up_to_thirty_classes_are_a_map_and_more_a_table():
    def channel(size: int) -> dict[str, Any]:
        matrix = torch.full((size, size), 0.001).fill_diagonal_(0.9)
        matrix[3, 7] = 0.06
        return {"matrix": matrix.tolist(), "kind": "class", "wrong": 0.1, "temperature": 1.0}

    (figures,) = channel_map.blocks(channel(30), None, "x-")
    assert isinstance(figures, Figures)
    assert figures.figures[0].svg.startswith("<svg")
    _, table = channel_map.blocks(channel(31), [f"class <{index}>" for index in range(31)], "x-")
    assert isinstance(table, Table)
    assert [cell.text for cell in table.rows[0]] == ["class <3>", "class <7>", "6.0%"]
    assert len(table.rows) == channel_map.MAX_ENTRIES
    for damaged in (None, [[1.0]], [[1.0, 0.0]], [[1.0, "x"], [0.0, 1.0]]):
        assert channel_map.blocks({"matrix": damaged}, None, "x-") == ()


def test_a_channel_of_the_largest_logits_says_so(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(400, 40, generator=draw)
    labels = torch.where(torch.rand(400, generator=draw) < 0.3, 0, logits.argmax(-1))
    assert "largest logits" not in channels.fit_channel(logits, labels, kind="symmetric").sentence
    monkeypatch.setattr(em, "MAX_ENTRIES", 400 * 12)
    channel = channels.fit_channel(logits, labels, kind="symmetric")
    assert channel.sentence.endswith("Only the 12 largest logits of an example were used.")
    assert channel.as_json()["kept"] == 12


def test_labels_with_folds_of_a_run_whose_classes_changed(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text("x,kind\n" + "".join(f"{index},{'abc'[index % 3]}\n" for index in range(60)))
    folder = tmp_path / "run"
    assert main(["train", "--data", str(path), "--target", "kind", "--epochs", "1", "--output", str(folder)]) == 0
    assert main(["labels", str(folder), "--folds", "2", "--jobs", "1"]) == 0
    assert "The noise channel" in (folder / trials.LABEL_ISSUES_PAGE).read_text()
    description = json.loads((folder / trials.RUN).read_text())
    description["classes"] = ["a", "b", "c", "d"]  # as an earlier version read them
    (folder / trials.RUN).write_text(json.dumps(description))
    forget_digests(folder)
    capsys.readouterr()
    assert main(["labels", str(folder), "--folds", "2", "--jobs", "1"]) == 2
    told = capsys.readouterr().err
    assert "has 4 classes (a, b, c, d), but this version of labo reads 3 from its data (a, b, c)" in told
    assert "leave --folds out, or train the run anew" in told
