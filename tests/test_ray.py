"""Trials on a Ray cluster have the records of trials here; what goes wrong there is one sentence."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import experiments
import labo
from experiments import KILL
from labo import machine
from labo.cli import main
from labo.errors import UserError
from labo.experiment import ray_executor
from labo.experiment.executor import TrialExecutor, WorkerDied
from labo.experiment.ray_executor import RayCluster, RayExecutor
from labo.records.trial import Job, read_record
from launch import TESTS_IMPORTABLE, run_labo

ray = pytest.importorskip("ray")


def run(executor: Any, *jobs: Job) -> list[tuple[Job, Any]]:
    return list(executor.run(jobs, lambda job, fraction: None))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def digits(method: str, **options: Any) -> Any:
    from labo import tasks

    return experiments.trial(method, data=tasks.create("digits").fingerprint(), **{"epochs": 1, **options})


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayExecutor]:
    """A cluster with one worker; starting it and what a trial imports takes most of this file's time."""
    before = os.environ.get("PYTHONPATH")
    os.environ |= TESTS_IMPORTABLE
    with RayExecutor(RayCluster(), 1) as executor:
        yield executor
    if before is not None:
        os.environ["PYTHONPATH"] = before


def test_a_trial_on_ray_is_the_trial_here(tmp_path, cluster):
    """A teacher travels, the folder comes home whole, and what the trial refuses is said with the folder's own name."""
    teacher = Job(digits("none"), tmp_path / "teacher")
    run(TrialExecutor(1), teacher)
    student = digits("distillation", teacher="a network", teacher_folder=str(teacher.folder))
    ((_, there),) = run(cluster, Job(student, tmp_path / "there"))
    ((_, here),) = run(TrialExecutor(1), Job(student, tmp_path / "here"))
    ignored = {"seconds": 0, "files": 0, "peak_memory": 0}
    assert {**there, **ignored} == {**here, **ignored}
    assert read_record(tmp_path / "there") == there
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("here", "there")]
    assert names[0] == names[1]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("here", "there")]
    assert weights[0] == weights[1]

    other = Job(digits("labo"), tmp_path / "there")
    with pytest.raises(UserError, match=f"'{tmp_path / 'there'}' holds another run"):
        run(cluster, other)


def test_other_data_on_a_worker_are_refused(tmp_path, cluster):
    from dataclasses import replace

    with pytest.raises(UserError, match=r"The Ray worker on .* has other data for 'digits': put the same files"):
        run(cluster, Job(replace(digits("none"), data="of another machine"), tmp_path / "run"))


def test_a_worker_with_another_version_is_refused(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(labo, "__version__", "9.9.9")
    with (
        RayExecutor(RayCluster()) as newer,  # the same cluster, which is running
        pytest.raises(UserError, match=r"The Ray worker on .* has labo .*, but this command is labo 9\.9\.9 .*: inst"),
    ):
        run(newer, Job(digits("none"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_more_gpus_than_there_are(cluster):
    with (
        pytest.raises(UserError, match=r"--gpus-per-trial asks for 0.25, but the Ray cluster has 0 GPUs"),
        RayExecutor(RayCluster(gpus_per_trial=0.25)),
    ):
        pass
    for wrong in (-1, 1.5):
        with pytest.raises(UserError, match=r"Expected --gpus-per-trial from 0 to 1 or a whole number"):
            RayCluster(gpus_per_trial=wrong)


def test_an_address_where_nothing_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(UserError, match=f"No Ray cluster answers at 127.0.0.1:{port}: .*refused"):
        ray_executor.check_address(f"127.0.0.1:{port}")
    assert time.monotonic() - begin < 15
    for wrong in ("ray://head:10001", "head", "head:"):
        with pytest.raises(UserError, match="Expected --address HOST:PORT or auto"):
            ray_executor.check_address(wrong)


def test_an_address_that_does_not_answer(monkeypatch):
    """The whole wait is under 15 seconds; the test shortens the second part of it."""
    assert ray_executor.SECONDS_TO_CONNECT + ray_executor.SECONDS_TO_JOIN < 15
    monkeypatch.setattr(ray_executor, "SECONDS_TO_JOIN", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"No Ray cluster answers at {address}: no reply in 1 seconds"):
            ray_executor.check_address(address)


def test_a_cluster_that_refuses_the_token_is_not_called_silent(monkeypatch):
    def refused(command: Any, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 1, stderr=b"Unauthenticated: RPC error: InvalidAuthToken: ...")

    monkeypatch.setattr(ray_executor.subprocess, "run", refused)
    with pytest.raises(UserError, match="does not accept this machine's token: set RAY_AUTH_TOKEN to that of the clu"):
        ray_executor.check_address("auto")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--launcher", "slurm"], "Unknown launcher 'slurm'. Known launchers: local, ray."),
        (["--gpus-per-trial", "1"], "Option --gpus-per-trial requires --launcher ray."),
        (["--address", "auto"], "Option --address requires --launcher ray."),
    ],
)
def test_options_of_the_launcher(options, sentence, capsys):
    assert main(["compare", *options]) == 2
    assert capsys.readouterr().err == f"labo: {sentence}\n"


def test_without_ray_the_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.setattr(machine, "extras", lambda: {"ray": ["ray"]})  # those of an older editable install lack it
    assert main(["compare", "--launcher", "ray", "--output", str(tmp_path)]) == 2
    told = "labo: This command needs ray, which the extra 'ray' installs: pip install -e '.[ray]'.\n"
    assert capsys.readouterr().err == told


def compare_with(killed: Path, output: Path, *options: object) -> Any:
    arguments = ["--methods", "none,experiments:Killer", "--baseline", "none", "--seeds", "2", "--epochs", "1"]
    arguments += ["--settings-per-method", "1", "--output", str(output)]
    return run_labo("compare", *arguments, *options, check=False, **TESTS_IMPORTABLE, **{KILL: str(killed)})


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_runs_again(tmp_path):
    """Nothing is lost or doubled, and the records are those of processes on this machine."""
    (tmp_path / "kill").write_text("1")
    done = compare_with(tmp_path / "kill", tmp_path / "ray", "--launcher", "ray", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kill").read_text() == "0"
    assert compare_with(tmp_path / "kill", tmp_path / "local", "--jobs", 1).returncode == 0
    found = [lines(tmp_path / name / "results.jsonl") for name in ("ray", "local")]
    ordered = [{(line["method"], line["seed"]): line["metrics"] for line in records} for records in found]
    assert [len(records) for records in found] == [4, 4]
    assert ordered[0] == ordered[1]


@pytest.mark.slow
def test_a_trial_that_kills_every_worker_is_not_finished_and_costs_no_other(tmp_path):
    (tmp_path / "kill").write_text("1000")
    done = compare_with(tmp_path / "kill", tmp_path / "out", "--launcher", "ray", "--jobs", 2)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("Not finished: digits, experiments:Killer") == 2
    assert WorkerDied().reason in done.stderr
    assert [line["method"] for line in lines(tmp_path / "out" / "results.jsonl")] == ["none", "none"]
