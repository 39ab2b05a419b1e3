"""Several processes, and several parts of a batch, train as one would; what fails in one ends all with a sentence."""

from __future__ import annotations

import json
import os
import platform
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labo import cli, distributed, machine, tasks
from labo.errors import UserError
from labo.experiment import run_trial
from labo.records import trial as trials
from labo.training import data_loading
from launch import TESTS_IMPORTABLE, run_python
from processes import COUNT, EXAMPLES, TWENTY, plain_trial, run_command, together, train_several


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, images=draw.integers(0, 255, (60, 8, 8, 3), dtype=np.uint8), labels=np.arange(60) % 3)
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: str) -> tuple[Path, list[dict[str, Any]]]:
    """(the folder of the runs, what each process found)."""
    folder = tmp_path_factory.mktemp("ranks")
    found = together(train_several, folder, pictures)
    for each in found:
        assert isinstance(each, dict), each
    return folder, found


def close(mine: Path, theirs: Path, tolerance: float = 1e-6) -> None:
    first, second = (load_file(folder / trials.WEIGHTS) for folder in (mine, theirs))
    for name, value in second.items():
        torch.testing.assert_close(first[name], value, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["labo", "ls_plus", "cs_kd", "parts"])
def test_two_processes_learn_what_one_does(tmp_path, trained, name):
    folder, found = trained
    alone = run_trial.run(plain_trial("labo" if name == "parts" else name), tmp_path / "alone")
    close(folder / name, tmp_path / "alone")
    for each in found:
        assert each[name]["metrics"] == pytest.approx(alone["metrics"], abs=1e-4)
    curves = [(at / "curve.jsonl").read_text().splitlines() for at in (folder / name, tmp_path / "alone")]
    for mine, theirs in zip(*curves, strict=True):
        assert json.loads(mine) == pytest.approx(json.loads(theirs), abs=1e-5)


@pytest.mark.parametrize("name", TWENTY)
def test_twenty_steps_of_two_processes_are_those_of_one(tmp_path, trained, name):
    """Whether each holds the network (DistributedDataParallel), or a part of it (FSDP2)."""
    folder, found = trained
    alone = run_trial.run(plain_trial("labo", set=TWENTY[name]), tmp_path / "alone")
    assert alone["step"] == 20
    for at in (name, f"{name} fsdp"):
        close(folder / at, tmp_path / "alone", 1e-5)
        for each in found:
            assert each[at]["step"] == 20
            assert each[at]["metrics"] == pytest.approx(alone["metrics"], abs=1e-4)
    assert '"fsdp": true' in (folder / f"{name} fsdp" / "run.json").read_text()
    assert "fsdp" not in (folder / name / "run.json").read_text()


def test_processes_hold_a_part_of_a_network(trained):
    _, (first, second) = trained
    assert [sum(elements) for elements in zip(first["elements"], second["elements"], strict=True)] == [24, 12, 2]
    assert first["elements"] == [12, 6, 1]


def test_what_reads_whole_weights_at_every_step_is_refused_with_fsdp(trained):
    _, found = trained
    for each in found:
        assert "Method 'cs_kd' calls the network itself" in each["refused cs_kd"]
        assert "Setting `ema` averages whole weights" in each["refused labo"]


@pytest.mark.parametrize("parts", [2, 4, 16])
@pytest.mark.parametrize("method", ["labo", "label_smoothing"])
def test_parts_of_a_batch_teach_what_the_batch_does(tmp_path, method, parts):
    for accumulation in (1, parts):
        asked = plain_trial(method, set={"accumulation": accumulation})
        record = run_trial.run(asked, tmp_path / str(accumulation))
        assert record["step"] == 9
    close(tmp_path / str(parts), tmp_path / "1")


def test_processes_have_the_same_record_and_one_of_them_writes(trained):
    folder, (first, second) = trained
    for name in ("labo", "whole", "cut", "fsdp cut", "diverging"):
        assert first[name] == second[name]
    assert first["diverging"]["failed"]["step"] > 1
    kept = {"run.json", "record.json", "model.safetensors", "curve.jsonl", "figures.json"}
    assert {path.name for path in (folder / "labo").iterdir()} == kept
    assert '"processes": 2' in (folder / "labo" / "run.json").read_text()


@pytest.mark.parametrize("kind", ["", "fsdp "])
def test_a_stopped_run_of_two_processes_goes_on_exactly(trained, kind):
    """With what each process draws for itself: crops, flips and dropout; with the state of a split optimizer."""
    folder, (first, _) = trained
    cut, whole = f"{kind}cut", f"{kind}whole"
    assert first[f"{kind}left"] == ["checkpoint-5"]
    mine, theirs = (load_file(folder / name / trials.WEIGHTS) for name in (cut, whole))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    assert first[cut]["metrics"] == first[whole]["metrics"]
    assert (folder / cut / "curve.jsonl").read_text() == (folder / whole / "curve.jsonl").read_text()


@pytest.mark.parametrize("guilty", ["0", "1", "0 1"])
def test_a_failure_is_told_once_whoever_meets_it(tmp_path, guilty):
    asked = ["train", "digits", "--method", "processes:Stopping", "--epochs", "2", "--output", str(tmp_path / "run")]
    found = together(run_command, tmp_path, {"LABO_TEST_STOP": guilty}, *asked)
    assert [each[0] for each in found] == [2, 2], found
    assert [each[1] for each in found] == ["", ""]
    told = [line for each in found for line in each[2].splitlines() if line.strip()]
    # A slow machine tells after ten seconds how far it is.
    told = [line for line in told if not line.startswith("training: ")]
    assert told[0].startswith("400 training, 397 validation")  # said by the main process when its training begins
    assert told[1:] == ["labo: Stopped at step 5."]


def test_other_commands_are_refused(tmp_path):
    found = together(run_command, tmp_path, {}, "compare", "digits")
    assert [each[0] for each in found] == [2, 2], found
    assert "".join(each[2] for each in found).count("\n") == 1
    assert "Run labo compare without torchrun" in found[0][2]


def test_a_checkpoint_of_two_processes_is_not_for_one(tmp_path):
    together(stop_a_run, tmp_path)
    with pytest.raises(
        UserError, match=r"was written by 2 processes, but 1 would go on .* torchrun --nproc-per-node 2"
    ):
        run_trial.run(plain_trial("processes:Stopping"), tmp_path / "run")


def stop_a_run(folder: Path) -> None:
    os.environ["LABO_TEST_STOP"] = "0 1"
    with distributed.process_group():
        run_trial.run(plain_trial("processes:Stopping", save_seconds=0.0), folder / "run")


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("size", [72, 74, 79, 143, 144])
def test_every_example_is_in_one_part_of_its_batch(size, processes, accumulation):
    if 0 < size % 72 < processes:
        with pytest.raises(UserError, match=f"for each of {processes} processes, but of {size} examples"):
            data_loading.check_divisible(size, 72, accumulation, processes)
        return
    found = []
    for rank in range(processes):
        batches = data_loading.ExampleBatches(size, 72, seed=3)
        part_size = 72 // processes // accumulation
        divided = {"part_size": part_size, "accumulation": accumulation, "processes": processes, "rank": rank}
        parts = list(data_loading.DividedBatches(batches, **divided))
        assert all(parts)
        assert max(map(len, parts)) <= part_size
        found.append(parts)
    assert len({len(parts) for parts in found}) == 1
    for index in range(len(found[0])):  # the loop takes so many parts for a step
        of_this_step = [example for parts in found for example in parts[index]]
        assert set(of_this_step) <= set(list(batches)[index // accumulation])
    assert sorted(example for parts in found for part in parts for example in part) == list(range(size))


def test_a_batch_that_cannot_be_divided_is_refused():
    asked = plain_trial("none", set={"accumulation": 3, "batch_size": 64})
    task = tasks.create(asked.task, **asked.task_options)
    splits = task.splits(0)
    with pytest.raises(UserError, match="`batch_size` to be divisible among 3 parts, but got 64"):
        run_trial.build(asked, task, splits)
    with pytest.raises(UserError, match="divisible among 2 processes of 3 parts, but got 64"):
        data_loading.check_divisible(EXAMPLES, 64, 3, COUNT)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"one process per GPU \(1 on this machine\)"), distributed.process_group():
        pass


@pytest.mark.slow
@pytest.mark.parametrize("guilty", ["", "1"])
def test_torchrun(tmp_path, guilty):
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", 2]
    command = ["-m", "labo", "train", "digits", "--method", "processes:Stopping", "--epochs", 2]
    environment = {**TESTS_IMPORTABLE, "LABO_TEST_STOP": guilty}
    done = run_python(*torchrun, *command, "--output", tmp_path / "run", check=False, **environment)
    assert done.returncode == (1 if guilty else 0)
    assert done.stdout.count("Accuracy") == (0 if guilty else 1)
    assert done.stderr.count("labo: Stopped at step 5.") == (1 if guilty else 0)


@pytest.mark.slow
@pytest.mark.parametrize("split", [[], ["--use_fsdp", "--fsdp_version", "2"]], ids=["ddp", "fsdp"])
def test_accelerate_launch(tmp_path, split):
    pytest.importorskip("accelerate")
    launch = ["-m", "accelerate.commands.launch", "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", 0, *(split or ["--multi_gpu"]), "-m"]
    command = ["labo", "train", "digits", "--method", "labo", "--epochs", 1]
    done = run_python(*launch, *command, "--output", tmp_path / "run", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Accuracy") == 1
    description = json.loads((tmp_path / "run" / trials.RUN).read_text())
    assert description["processes"] == 2
    assert description.get("fsdp", False) == bool(split)


def test_fsdp_needs_processes_and_its_second_version(monkeypatch, capsys):
    assert cli.main(["train", "digits", "--fsdp"]) == 2
    assert "--fsdp splits a network over several processes, but this is one: use torchrun" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert cli.main(["train", "digits"]) == 2
    assert "accelerate launch --fsdp_version 2" in capsys.readouterr().err


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_freed_memory_is_kept_for_the_next_buffers():
    code = (
        "import json, resource, torch\n"
        "from labo import machine\n"
        "def faults_of_the_last(count):\n"
        "    for _ in range(count):\n"
        "        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "        torch.ones(10 << 20)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(json.dumps([faults_of_the_last(3), machine.keep_freed_memory(), faults_of_the_last(20)]))\n"
    )
    given = [name for name in os.environ if name.startswith("MALLOC_")]
    usual, kept, now = json.loads(run_python("-c", code, **{name: None for name in given}).stdout)  # pyright: ignore[reportArgumentType]
    pages = (40 << 20) // resource.getpagesize()
    assert kept
    assert now < pages / 10
    assert usual >= pages * 0.9  # above 32 MiB glibc always maps a buffer anew


def test_an_allocator_that_the_user_has_set_up_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert machine.keep_freed_memory.__wrapped__() is False
