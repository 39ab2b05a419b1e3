"""The comparison: fair, resumable, told apart from another one, and not stopped by a trial that fails."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import psutil
import pytest

from experiments import KILL
from labo import report
from labo.errors import UserError
from labo.experiment import compare, executor, outlook
from labo.experiment.compare import ComparisonConfig
from labo.experiment.executor import WorkerDied
from labo.records import lock
from labo.records.trial import Job, read_record
from launch import start_labo, wait_until

METHODS = ("none", "label_smoothing", "labo")


class Watcher:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.ran: list[Job] = []
        self.total = self.done = 0

    def message(self, sentence: str) -> None:
        self.said.append(sentence)

    def begin(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def phase(self, name: str) -> None:
        pass

    def update(self, job: Job, fraction: float) -> None:
        assert 0 <= fraction <= 1

    def finished(self, job: Job, record: Mapping[str, Any] | WorkerDied) -> None:
        self.ran.append(job)


def asked(output: Path, **options: Any) -> ComparisonConfig:
    known: dict[str, Any] = {"methods": METHODS, "seeds": 2, "settings_per_method": 2, "tuning_seeds": 2, "jobs": 1}
    return ComparisonConfig(output=output, **{**known, "set": {"epochs": 1}, **options})


def run(output: Path, **options: Any) -> Watcher:
    watcher = Watcher()
    assert compare.run(asked(output, **options), watcher) == 0
    return watcher


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stable(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what a clock or the operating system says, in a fixed order."""
    volatile = ("seconds", "peak_memory", "versions")
    kept = [{key: value for key, value in line.items() if key not in volatile} for line in found]
    return sorted(kept, key=lambda line: json.dumps(line, sort_keys=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished comparison; not to be changed."""
    output = tmp_path_factory.mktemp("finished")
    run(output)
    return output


def test_every_method_gets_the_same(finished):
    tried, results = lines(finished / "tuning.jsonl"), lines(finished / "results.jsonl")
    for method in METHODS:
        of_method = [line for line in tried if line["method"] == method]
        assert len(of_method) == 4
        assert len({json.dumps(line["settings"]) for line in of_method}) == 2
        assert {line["seed"] for line in of_method} == {10_000, 10_001}
        assert [line["seed"] for line in results if line["method"] == method] == [0, 1]


def test_the_chosen_settings_are_those_with_the_best_validation_mean(finished):
    tried, results = lines(finished / "tuning.jsonl"), lines(finished / "results.jsonl")
    for method in METHODS:
        means: dict[str, list[tuple[float, float]]] = {}
        for line in tried:
            if line["method"] == method:
                key = json.dumps(line["settings"])
                means.setdefault(key, []).append((line["validation"]["accuracy"], -line["validation"]["nll_scaled"]))
        best = max(means, key=lambda key: tuple(sum(values) / 2 for values in zip(*means[key], strict=True)))
        assert all(json.dumps(line["settings"]) == best for line in results if line["method"] == method)


def test_tuning_never_sees_the_test_split(finished):
    assert all("metrics" not in line for line in lines(finished / "tuning.jsonl"))
    assert not list((finished / "digits" / ".tuning").iterdir())


def test_run_folders_and_the_report(finished):
    for method in METHODS:
        for seed in (0, 1):
            folder = finished / "digits" / method / str(seed)
            assert {"run.json", "record.json", "curve.jsonl", "model.safetensors"} <= {p.name for p in folder.iterdir()}
    summary = report.summarize(finished)
    assert summary.baseline == "label_smoothing"
    assert {found.method for found in summary.tasks[0].methods} == set(METHODS)
    page = report.build(finished).read_text()
    assert "2 tuning seeds" in page
    assert "the same number of candidate settings, 2" in page


def test_the_same_command_repeats_nothing(finished):
    before = (finished / "results.jsonl").read_bytes()
    watcher = run(finished)
    assert watcher.ran == []
    assert watcher.total == watcher.done == 18
    assert (finished / "results.jsonl").read_bytes() == before


def test_more_seeds_and_methods_are_added_to_what_is_there(tmp_path):
    run(tmp_path, methods=("none", "label_smoothing"), seeds=1, settings_per_method=1)
    watcher = run(tmp_path, seeds=2, settings_per_method=1)
    ran = {(job.trial.method, job.trial.seed) for job in watcher.ran}
    assert ran == {("none", 1), ("label_smoothing", 1), ("labo", 0), ("labo", 1)}
    assert len(lines(tmp_path / "results.jsonl")) == 6


def test_the_first_seed_can_be_another(tmp_path):
    watcher = run(tmp_path / "out", methods=("none",), baseline="none", first_seed=40, settings_per_method=1)
    assert [record["seed"] for record in lines(tmp_path / "out" / "results.jsonl")] == [40, 41]
    assert [job.trial.seed for job in watcher.ran] == [40, 41]
    with pytest.raises(UserError, match="Expected --first-seed and the seeds after it from 0 to 9999"):
        compare.run(asked(tmp_path / "out", first_seed=9_999), Watcher())


def test_records_copied_without_their_runs_go_on(finished, tmp_path):
    for name in ("results.jsonl", "tuning.jsonl", "compare.json"):
        shutil.copy(finished / name, tmp_path)
    with pytest.raises(UserError, match="another checkpoint"):
        run(tmp_path, checkpoint="best")
    assert {(job.trial.method, job.trial.seed) for job in run(tmp_path, seeds=3).ran} == {(m, 2) for m in METHODS}
    shutil.rmtree(tmp_path / "digits")
    (tmp_path / "compare.json").unlink()
    with pytest.raises(UserError, match="no plan"):
        run(tmp_path, seeds=3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"set": {"epochs": 2}}, "another set"),
        ({"settings_per_method": 1}, "another settings_per_method"),
        ({"checkpoint": "best"}, "another checkpoint"),
        ({"task_options": {"label_noise": "0.2,symmetric"}}, "another task_options"),
    ],
)
def test_another_comparison_in_the_same_folder_is_refused(finished, options, told):
    with pytest.raises(UserError, match=told):
        run(finished, **options)


def test_other_candidates_of_a_method_are_not_mixed_in(tmp_path, monkeypatch):
    from experiments import Killer

    monkeypatch.setenv(KILL, str(tmp_path / "left"))
    (tmp_path / "left").write_text("0")
    options: dict[str, Any] = {"methods": ("experiments:Killer", "none"), "baseline": "none", "settings_per_method": 1}
    run(tmp_path / "out", seeds=1, **options)
    monkeypatch.setattr(Killer, "candidates", ({"strength": 0.7},))
    with pytest.raises(UserError, match="ran experiments:Killer with other candidate settings"):
        run(tmp_path / "out", seeds=2, **options)


def test_one_setting_needs_no_tuning(tmp_path):
    watcher = run(tmp_path, settings_per_method=1, seeds=1)
    assert watcher.total == 3
    assert not (tmp_path / "tuning.jsonl").exists()
    assert lines(tmp_path / "results.jsonl")[2]["settings"]["alpha"] == 0.1


def test_what_can_be_reached_is_told_before_it_starts(tmp_path):
    said = run(tmp_path, settings_per_method=1, seeds=2).said
    assert any("smallest p that the sign-flip test can reach is 0.5" in text for text in said)
    assert any("no difference can be significant" in text for text in said)


def test_a_trial_that_diverges_is_recorded_and_the_others_go_on(tmp_path):
    watcher = run(tmp_path, methods=("experiments:Diverging", "label_smoothing"), settings_per_method=1)
    results = lines(tmp_path / "results.jsonl")
    assert len(results) == len(watcher.ran) == 4
    failed = [line for line in results if "failed" in line]
    assert [line["method"] for line in failed] == ["experiments:Diverging"] * 2
    assert failed[0]["failed"] == {"step": 3, "reason": "the loss became nan"}
    assert run(tmp_path, methods=("experiments:Diverging", "label_smoothing"), settings_per_method=1).ran == []
    report.build(tmp_path)


def test_a_mistake_in_a_method_of_ones_own_is_one_sentence(tmp_path):
    with pytest.raises(
        UserError, match=r"seed 0 broke: ZeroDivisionError: what a mistake.*traceback is in .*error\.txt"
    ) as caught:
        run(tmp_path, methods=("experiments:Broken", "label_smoothing"), settings_per_method=1)
    assert "\n" not in str(caught.value)
    (place,) = tmp_path.rglob("error.txt")
    assert "Traceback" in place.read_text()


def test_a_last_line_cut_by_a_kill_is_dropped_and_its_trial_runs_again(tmp_path):
    run(tmp_path, settings_per_method=1)
    path = tmp_path / "results.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-30])
    watcher = run(tmp_path, settings_per_method=1)
    assert any("results.jsonl' was cut short and is dropped" in text for text in watcher.said)
    assert [(job.trial.method, job.trial.seed) for job in watcher.ran] == [("labo", 1)]
    assert path.read_text() == whole  # taken from the run's own record, not trained again


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
    run(tmp_path, settings_per_method=1, seeds=1)
    path = tmp_path / "results.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-1])
    watcher = run(tmp_path, settings_per_method=1, seeds=1)
    assert watcher.ran == []
    assert not any("cut short" in text for text in watcher.said)
    assert path.read_text() == whole


def test_the_second_process_is_told_who_holds_the_folder(tmp_path):
    with lock.hold(tmp_path), pytest.raises(UserError, match=f"in use by process {os.getpid()} on .*, since 2"):
        run(tmp_path)
    run(tmp_path, seeds=1, settings_per_method=1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"methods": ()}, "at least one method"),
        ({"methods": ("labo", "labo")}, "named twice"),
        ({"methods": ("label_smoothing", "lab")}, "nearest is 'labo'"),
        ({"baseline": "labo_"}, "Unknown baseline"),
        ({"seeds": 0}, "--seeds of at least 1"),
        ({"jobs": -2}, "--jobs of at least 0"),
        ({"settings_per_method": 0}, "--settings-per-method of at least 1"),
        ({"settings_per_method": 50}, "asks for 50"),
        ({"set": {"alpha": 1.5}}, r"`alpha` to be in \[0, 1\], but got 1.5"),
        ({"set": {"beta": 0}}, "`beta` to be above 0"),
        ({"set": {"beta": "much"}}, "`beta` to be a float"),
        ({"set": {"prior": [0.5, 0.5]}}, "10 classes"),
        ({"set": {"hidden": 0}}, "`hidden` to be a whole number of at least 1, but got 0"),
        ({"set": {"gama": 1}}, "Unknown setting 'gama'"),
        ({"task": "digit"}, "nearest is 'digits'"),
    ],
)
def test_what_will_not_do_is_told_before_anything_runs(tmp_path, options, told):
    with pytest.raises(UserError, match=told) as caught:
        run(tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results.jsonl").exists()


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write into"):
        run(tmp_path / "file" / "below")


# Many processes.


def test_processes_give_what_one_process_gives(finished, tmp_path):
    run(tmp_path, jobs=2)
    for name in ("tuning.jsonl", "results.jsonl"):
        assert stable(lines(tmp_path / name)) == stable(lines(finished / name))


@pytest.mark.parametrize(("deaths", "lost"), [(1, 0), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_a_process_that_dies_costs_no_other_trial(tmp_path, monkeypatch, deaths, lost):
    (tmp_path / "left").write_text(str(deaths))
    monkeypatch.setenv(KILL, str(tmp_path / "left"))
    options: dict[str, Any] = {"methods": ("experiments:Killer", "none"), "baseline": "none", "settings_per_method": 1}
    watcher = Watcher()
    given = asked(tmp_path / "out", jobs=2, **options)
    assert compare.run(given, watcher) == lost
    done = {(line["method"], line["seed"]) for line in lines(tmp_path / "out" / "results.jsonl")}
    assert len(done) == 4 - lost
    assert {("none", 0), ("none", 1)} <= done
    assert compare.run(given, Watcher()) == 0
    assert len(lines(tmp_path / "out" / "results.jsonl")) == 4


def test_a_comparison_killed_in_the_middle_goes_on_as_if_it_was_not(finished, tmp_path):
    child = start_labo(
        "compare", "--methods", ",".join(METHODS), "--seeds", 2, "--settings-per-method", 2, "--tuning-seeds", 2,
        "--jobs", 2, "--epochs", 1, "--output", tmp_path, stdout=DEVNULL, stderr=DEVNULL,
    )  # fmt: skip
    tuning = tmp_path / "tuning.jsonl"
    wait_until(lambda: tuning.exists() and len(tuning.read_text().splitlines()) >= 5, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = lines(tmp_path / "tuning.jsonl")
    assert len(kept) >= 5
    time.sleep(1.0)  # the workers notice that the parent is gone
    watcher = run(tmp_path)
    assert len(watcher.ran) == 18 - watcher.done
    assert watcher.done >= len(kept)
    assert lines(tmp_path / "tuning.jsonl")[: len(kept)] == kept
    for name in ("tuning.jsonl", "results.jsonl"):
        assert stable(lines(tmp_path / name)) == stable(lines(finished / name))


def members(group: int) -> list[str]:
    """The living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def test_ctrl_c_ends_it_at_once_and_leaves_no_process(tmp_path):
    output = tmp_path / "out"
    child = start_labo(
        "compare", "--jobs", 2, "--output", output, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True
    )
    wait_until((output / "tuning.jsonl").exists, child)
    os.killpg(child.pid, signal.SIGINT)
    _, told = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Interrupted. Finished work is recorded" in told
    assert "Traceback" not in told
    assert "semaphore" not in told  # of which the system has a limited number
    deadline = time.monotonic() + 10
    while (left := members(child.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_a_finished_run_whose_line_was_lost_is_not_trained_again(tmp_path, monkeypatch):
    run(tmp_path, settings_per_method=1, seeds=1)
    (tmp_path / "results.jsonl").write_text("")
    from labo.training.loop import TrainingLoop

    monkeypatch.setattr(outlook, "trial_seconds", lambda *_: None)  # it times a few steps
    monkeypatch.setattr(TrainingLoop, "run", None)
    assert len(run(tmp_path, settings_per_method=1, seeds=1).ran) == 3


def test_runners_give_records_of_jobs(tmp_path):
    from experiments import trial as make

    job = Job(make("none", epochs=1), tmp_path / "run")
    with executor.TrialExecutor(1) as one:
        ((given, record),) = one.run([job], lambda job, share: None)
    assert given is job
    assert record == read_record(tmp_path / "run")


@pytest.mark.slow
def test_regularization_beats_plain_cross_entropy_on_digits_by_more_than_luck(tmp_path):
    """The figures of the README, made again."""
    methods = ("none", "label_smoothing", "confidence_penalty", "labo")
    run(tmp_path, methods=methods, seeds=8, settings_per_method=3, tuning_seeds=3, jobs=2, set={})
    (task,) = report.summarize(tmp_path, "none").tasks
    verdicts = {found.method: found.verdict for found in task.methods}
    assert verdicts == {"none": "baseline", **dict.fromkeys(methods[1:], "better")}


def test_one_class_that_holds_nearly_all_is_told(tmp_path):
    rows = "".join(f"{index % 7},{'b' if index % 20 == 0 else 'a'}\n" for index in range(200))
    (tmp_path / "a.csv").write_text("x,y\n" + rows)
    options = {"data": str(tmp_path / "a.csv"), "target": "y"}
    said = run(tmp_path / "out", task="table", task_options=options, seeds=1, settings_per_method=1).said
    assert "The class 'a' alone is 95.0% of the test split: always predicting it has this accuracy." in said
