"""One trial: it trains as a plain loop would, is the same again, and goes on exactly where a kill left it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import labo
from experiments import trial
from labo import regularizers, tasks
from labo.errors import UserError
from labo.experiment import executor, run_trial, saved_run
from labo.experiment.evaluators import classification
from labo.records.trial import CHECKPOINTS, RECORD, RUN, WEIGHTS, Job
from labo.training import checkpoints as kept
from labo.training import loop
from labo.training.loop import TrainingLoop
from launch import SECONDS, TESTS_IMPORTABLE, run_python, start_python, wait_until


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_it_trains_as_a_loop_in_ten_lines_does(tmp_path):
    options = {"alpha": 0.4, "beta": 4.0}
    run_trial.run(trial("labo", 3, epochs=3, set=options), tmp_path / "run")

    splits = tasks.create("digits").splits(3)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    decayed = [p for name, p in model.named_parameters() if name.endswith("weight")]
    others = [p for name, p in model.named_parameters() if name.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    criterion = labo.LabelRegularizedLoss(regularizers.create("labo", **options))
    for epoch in range(3):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(3 * 1_000_003 + epoch))
        for rows in order.split(64):
            optimizer.zero_grad()
            criterion(model(splits.train.features[rows]), splits.train.target[rows]).backward()
            optimizer.step()
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_a_record_has_what_the_pages_promise(tmp_path):
    record = run_trial.run(trial("labo", epochs=2, curves=True), tmp_path)
    assert record == json.loads((tmp_path / RECORD).read_text())
    assert {"task", "method", "seed", "settings", "metrics", "seconds", "versions"} <= record.keys()
    measured = {"accuracy", "nll", "nll_scaled", "ece", "ece_scaled", "brier", "temperature"}
    assert measured <= record["metrics"].keys()
    assert 0.5 < record["metrics"]["accuracy"] <= 1
    assert {path.name for path in tmp_path.iterdir()} == {RUN, RECORD, WEIGHTS, "curve.jsonl", "figures.json"}
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in curve] == [1, 2]
    assert [line["step"] for line in curve] == [7, 14]
    assert curve[1]["loss"] < curve[0]["loss"]
    assert {"learning_rate", "validation_nll", "validation_accuracy"} <= curve[0].keys()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert torch.tensor(figures["labels"]).shape == (10, 10)
    torch.testing.assert_close(torch.tensor(figures["labels"]).sum(1), torch.ones(10))
    assert sum(entry["count"] for entry in figures["reliability"]["raw"]) == 1000


def test_the_same_trial_is_the_same_again_and_another_seed_is_not(tmp_path):
    first, again, other = (
        run_trial.run(trial("label_smoothing", seed, epochs=1), tmp_path / name)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert first["metrics"] == again["metrics"]
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert first["metrics"] != other["metrics"]


def test_every_method_starts_from_the_same_weights_and_order(tmp_path):
    task = tasks.create("digits")
    splits = task.splits(5)
    built = [run_trial.build(trial(method, 5), task, splits)[0].state_dict() for method in regularizers.available()]
    assert all(same(state, built[0]) for state in built)


def test_steps_in_place_of_epochs(tmp_path):
    record = run_trial.run(trial("none", epochs=1, set={"steps": 3}), tmp_path)
    assert record["step"] == 3
    assert "epochs" not in record["settings"]


def test_a_tuning_trial_looks_at_validation_alone(tmp_path, monkeypatch):
    seen = []
    predict = classification.predict
    monkeypatch.setattr(
        classification, "predict", lambda model, features: seen.append(len(features)) or predict(model, features)
    )
    record = run_trial.run(trial("none", epochs=1, tuning=True), tmp_path / "t")
    assert set(seen) == {397}
    assert "metrics" not in record
    assert 0 < record["validation"]["accuracy"] <= 1
    assert not (tmp_path / "t" / WEIGHTS).exists()


def test_the_test_split_is_read_once_and_at_the_end(tmp_path, monkeypatch):
    seen = []
    predict = classification.predict
    monkeypatch.setattr(
        classification, "predict", lambda model, features: seen.append(len(features)) or predict(model, features)
    )
    run_trial.run(trial("labo", epochs=2, curves=True, checkpoint="best"), tmp_path)
    assert seen.count(1000) == 1
    assert 1000 not in seen[:3]


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    record = run_trial.run(trial("none", epochs=1), tmp_path)
    monkeypatch.setattr(TrainingLoop, "run", None)
    assert run_trial.run(trial("none", epochs=1), tmp_path) == record


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (trial("none", epochs=2), "epochs was 1, now 2"),
        (trial("none", 1, epochs=1), "seed was 0, now 1"),
        (trial("none", epochs=1, checkpoint="best"), "checkpoint was last, now best"),
        (trial("none", epochs=1, task_options={"train_size": 100}), "train_size was None, now 100"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, other, told):
    run_trial.run(trial("none", epochs=1), tmp_path)
    with pytest.raises(UserError, match=told):
        run_trial.run(other, tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        run_trial.run(trial("none", epochs=1), tmp_path)


@pytest.mark.parametrize("method", ["experiments:Diverging", "none"])
def test_a_loss_that_is_no_number_ends_the_trial_and_is_recorded(tmp_path, method):
    record = run_trial.run(trial(method, epochs=3, set={} if "Div" in method else {"learning_rate": 1e30}), tmp_path)
    assert record["metrics"] == {}
    assert 1 < record["failed"]["step"] <= 21
    assert "nan" in record["failed"]["reason"] or "inf" in record["failed"]["reason"]
    assert json.loads((tmp_path / RECORD).read_text())["failed"] == record["failed"]
    with pytest.raises(UserError, match=f"failed at step {record['failed']['step']}"):
        saved_run.load(tmp_path)


def test_the_best_epoch_is_the_one_with_the_lowest_scaled_nll(tmp_path):
    # A learning rate at which later epochs are worse than some earlier one.
    chosen = {"learning_rate": 0.03}
    record = run_trial.run(trial("none", epochs=12, set=chosen, checkpoint="best", curves=True), tmp_path / "best")
    curve = [json.loads(line) for line in (tmp_path / "best" / "curve.jsonl").read_text().splitlines()]
    lowest = min(curve, key=lambda line: line["validation_nll_scaled"])
    assert record["step"] == lowest["step"] < 84
    again = run_trial.run(trial("none", epochs=lowest["epoch"], set=chosen), tmp_path / "as-long")
    assert same(weights(tmp_path / "best"), weights(tmp_path / "as-long"))
    assert again["metrics"] == record["metrics"]


CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from experiments import trial
from labo.experiment import run_trial
run_trial.run(trial("unigram_smoothing", epochs=30, set={"dropout": 0.2}, checkpoint=sys.argv[2], save_seconds=0.0),
           Path(sys.argv[1]))
"""


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_run_killed_in_the_middle_ends_as_if_it_was_not(tmp_path, checkpoint):
    options: dict[str, Any] = {"epochs": 30, "set": {"dropout": 0.2}, "checkpoint": checkpoint}
    whole = run_trial.run(trial("unigram_smoothing", **options), tmp_path / "whole")
    child = start_python("-c", CHILD, tmp_path / "cut", checkpoint, environment=TESTS_IMPORTABLE)
    saved = tmp_path / "cut" / CHECKPOINTS
    wait_until(lambda: any(int(p.name.partition("-")[2]) >= 10 for p in saved.glob("checkpoint-*")), child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "cut" / RECORD).exists()
    assert list(saved.glob("checkpoint-*"))
    resumed = run_trial.run(trial("unigram_smoothing", **options), tmp_path / "cut")
    assert resumed["metrics"] == whole["metrics"]
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert (tmp_path / "cut" / "curve.jsonl").read_text() == (tmp_path / "whole" / "curve.jsonl").read_text()


@pytest.mark.parametrize("step", [6, 7, 8, 14, 20])
def test_a_run_stopped_at_any_step_goes_on_exactly(tmp_path, step):
    class StoppedError(Exception):
        pass

    def stop(share: float) -> None:
        if share >= step / 21:
            raise StoppedError

    options: dict[str, Any] = {"epochs": 3, "set": {"dropout": 0.2}, "checkpoint": "best"}
    whole = run_trial.run(trial("labo", **options), tmp_path / "whole")
    with pytest.raises(StoppedError):
        run_trial.run(trial("labo", save_seconds=0.0, **options), tmp_path / "cut", stop)
    with open(tmp_path / "cut" / "curve.jsonl", "a") as file:
        file.write('{"epoch": 2.0, "st')  # what a kill may leave
    resumed = run_trial.run(trial("labo", **options), tmp_path / "cut")
    assert resumed["metrics"] == whole["metrics"]
    assert (tmp_path / "cut" / "curve.jsonl").read_text() == (tmp_path / "whole" / "curve.jsonl").read_text()
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def interrupted(folder: Path) -> Path:
    """A run stopped after its second epoch, with a checkpoint."""

    def stop(share: float) -> None:
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial.run(trial("none", epochs=4, save_seconds=0.0), folder, stop)
    (found,) = (folder / CHECKPOINTS).glob("checkpoint-*")
    return found


def test_the_same_trial_in_fresh_processes_has_the_same_bits(tmp_path):
    """Four of `labo train` and one of `labo compare`, with as many threads as torch takes by itself."""
    options = ["digits", "--train-size", 100, "--set", "epochs=3"]
    commands = {f"train-{number}": ["train", *options, "--method", "labo"] for number in range(4)}
    commands["compare"] = ["compare", *options, "--methods", "labo", "--seeds", 1, "--settings-per-method", 1]
    environment = {**os.environ, "PYTHONPATH": TESTS_IMPORTABLE["PYTHONPATH"]}
    environment.pop("OMP_NUM_THREADS", None)
    streams: dict[str, Any] = {"stdout": PIPE, "stderr": STDOUT, "text": True, "env": environment}
    children = [
        Popen([sys.executable, "-m", "labo", *map(str, command), "--output", str(tmp_path / name)], **streams)
        for name, command in commands.items()
    ]
    for child in children:
        out, _ = child.communicate(timeout=SECONDS)
        assert child.returncode == 0, out
    folders = [tmp_path / name for name in commands if name != "compare"] + [tmp_path / "compare" / "digits/labo/0"]
    records = [json.loads((folder / RECORD).read_text()) for folder in folders]
    assert len({record["files"][WEIGHTS]["sha256"] for record in records}) == 1
    assert all(record["metrics"] == records[0]["metrics"] for record in records)


def test_a_trial_has_one_thread_unless_it_says_otherwise(tmp_path, monkeypatch):
    counts = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    asked = trial("none", epochs=1)
    executor.run_job(Job(asked, tmp_path / "one"), lambda done: None)
    two = dataclasses.replace(asked, threads=2)
    executor.run_job(Job(two, tmp_path / "two"), lambda done: None)
    assert counts == [1, 2]
    assert "threads" not in json.loads((tmp_path / "one" / RUN).read_text())
    assert json.loads((tmp_path / "two" / RUN).read_text())["threads"] == 2
    for given, folder, told in ((two, "one", "threads was 1, now 2"), (asked, "two", "threads was 2, now 1")):
        with pytest.raises(UserError, match=told):
            run_trial.run(given, tmp_path / folder)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "random.pt", "state.json"])
def test_a_damaged_checkpoint_gets_one_sentence(tmp_path, name):
    checkpoint = interrupted(tmp_path / "run")
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"is damaged \\({name}: .*delete it") as caught:
        run_trial.run(trial("none", epochs=4), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_the_loop_before_gets_one_sentence(tmp_path):
    checkpoint = interrupted(tmp_path / "run")
    (checkpoint / "state.json").rename(checkpoint / "trainer_state.json")  # of Transformers' Trainer
    with pytest.raises(kept.OutdatedCheckpointError, match=r"of an earlier version of labo.*: delete it to start"):
        run_trial.run(trial("none", epochs=4), tmp_path / "run")


@pytest.mark.parametrize("every", [2, 5, 100])
def test_losses_that_are_read_later_are_the_same_and_the_first_bad_step_is_named(tmp_path, monkeypatch, every):
    options: dict[str, Any] = {"epochs": 3, "curves": True, "set": {"accumulation": 2}}
    expected = run_trial.run(trial("labo", **options), tmp_path / "each")
    failed = run_trial.run(trial("experiments:Diverging", epochs=2), tmp_path / "bad")["failed"]
    monkeypatch.setattr(loop, "steps_between_reads", lambda device: every)
    assert (
        run_trial.run(trial("labo", save_seconds=0.0, **options), tmp_path / "later")["metrics"] == expected["metrics"]
    )
    assert (tmp_path / "later" / "curve.jsonl").read_text() == (tmp_path / "each" / "curve.jsonl").read_text()
    assert failed["step"] == 3
    assert run_trial.run(trial("experiments:Diverging", epochs=2), tmp_path / "bad later")["failed"] == failed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_on_a_gpu_wait_for_nothing(tmp_path, monkeypatch):
    for name in ("read_losses", "end_epoch"):  # where the loop waits
        method = getattr(TrainingLoop, name)

        def waiting(self: TrainingLoop, method: Any = method) -> Any:
            torch.cuda.set_sync_debug_mode("default")
            try:
                return method(self)
            finally:
                torch.cuda.set_sync_debug_mode("error" if self.step >= 7 else "default")  # after the first epoch

        monkeypatch.setattr(TrainingLoop, name, waiting)
    try:
        record = run_trial.run(trial("labo", epochs=3, set={"ema": 0.9}), tmp_path)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert record["step"] == 21


def test_a_run_without_text_imports_no_transformers(tmp_path):
    code = "import sys; from labo.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    arguments = ["train", "digits", "--epochs", "1", "--output", tmp_path / "run"]
    imported = run_python("-c", code, *arguments).stdout.split()
    assert "labo.training.loop" in imported
    assert not {"transformers", "accelerate"} & set(imported)


def test_evaluate_says_what_the_record_says(tmp_path):
    record = run_trial.run(trial("labo", epochs=3), tmp_path)
    loaded = saved_run.load(tmp_path)
    assert loaded.evaluate("test") == pytest.approx(record["metrics"])
    assert loaded.evaluate("train")["accuracy"] > record["metrics"]["accuracy"] - 0.05
    with pytest.raises(UserError, match="Unknown split 'tset'; the nearest is 'test'"):
        loaded.evaluate("tset")


@pytest.mark.parametrize(
    "spoil", ["no run", "half weights", "no weights", "half run.json", "unfinished", "other network"]
)
def test_damaged_runs_get_one_sentence(tmp_path, spoil):
    folder = tmp_path / "run"
    if spoil != "no run":
        run_trial.run(trial("none", epochs=1), folder)
    if spoil == "half weights":
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    elif spoil == "no weights":
        (folder / WEIGHTS).unlink()
    elif spoil == "half run.json":
        (folder / RUN).write_text((folder / RUN).read_text()[:100])
    elif spoil == "unfinished":
        (folder / RECORD).unlink()
    elif spoil == "other network":
        about = json.loads((folder / RUN).read_text())
        about["settings"]["hidden"] = 8
        (folder / RUN).write_text(json.dumps(about))
    with pytest.raises(UserError, match="run") as caught:
        saved_run.load(folder).evaluate("test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [".run.json.123", "error.txt", ".lock"])
def test_what_a_kill_leaves_before_a_run_is_written_down_is_no_obstacle(tmp_path, left):
    (tmp_path / left).write_text("")
    assert run_trial.run(trial("none", epochs=1), tmp_path)["metrics"]
    assert not (tmp_path / "error.txt").exists()


def test_data_that_changed_are_not_evaluated_as_if_they_had_not(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "".join(f"{i % 7},{'ab'[i % 2]}\n" for i in range(60)))
    options = {"data": str(path), "target": "y"}
    made = tasks.create("table", **options)
    asked = trial("none", epochs=1, task="table", task_options=made.options, data=made.fingerprint())
    run_trial.run(asked, tmp_path / "run")
    assert saved_run.load(tmp_path / "run").evaluate("test")["accuracy"] >= 0
    path.write_text(path.read_text() + "3,a\n")
    with pytest.raises(UserError, match="have changed since it was trained"):
        saved_run.load(tmp_path / "run").evaluate("test")
    changed = dataclasses.replace(asked, data=made.fingerprint())
    with pytest.raises(UserError, match="the data have changed"):
        run_trial.run(changed, tmp_path / "run")
