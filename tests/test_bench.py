"""The bench runs, on shapes small enough that its times mean nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from labo import regularizers
from labo.bench import measure, methods
from labo.bench.implementations import BASELINE, ProblemShape, implementations
from labo.cli import main


def test_every_implementation_trains_on_the_same_batch():
    for shape in (ProblemShape(6, 7), ProblemShape(6, 7, 3), ProblemShape(6, 7, 0, torch.bfloat16)):
        found = implementations(shape)
        assert next(iter(found)) == BASELINE
        for step in found.values():
            step()


def test_memory_is_told_in_multiples_of_the_logits():
    shape = ProblemShape(1024, 16_384)  # 64 MiB
    steps = implementations(shape)
    steps["labo"]()  # compiled, if it is the first
    ours, theirs = (measure._memory(steps[name], shape) for name in ("labo", "torch"))
    if ours is None or theirs is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 0.9 < ours < 1.2  # the gradient, and blocks in the cache
    assert theirs > 1.8


def test_the_command_writes_a_line_a_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["bench", "--classes", "10", "--elements", "100", "--dtypes", "float32", "--rounds", "2"]
    path = tmp_path / "deep" / "bench.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MIN_SECONDS", 0.0)
        patch.setattr("labo.cli.bench._shapes", lambda *_: [ProblemShape(10, 10), ProblemShape(10, 10, 4)])
        assert main([*arguments, "--allocator", "stock", "--output", str(path)]) == 0
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert {"labo", "torch", BASELINE} <= {line["contender"] for line in lines}
    assert all(float(line["ratio"]) > 0 and line["processor"] for line in lines)
    assert "ratio" in capsys.readouterr().out


def test_what_every_method_costs_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    setting = methods.Setting("tiny", (3, 4), 2, 8)
    monkeypatch.setattr(methods, "SETTINGS", (setting,))
    monkeypatch.setattr(methods, "MIN_SECONDS", 0.0)
    path = tmp_path / "costs.csv"
    assert main(["methods", "--measure", "--output", str(path)]) == 0
    lines = {line["method"]: line for line in csv.DictReader(path.read_text().splitlines())}
    assert set(lines) == set(regularizers.available()) == set(regularizers.costs())
    assert all(float(line["compute"]) > 0 for line in lines.values())
    assert lines["none"]["state_bytes"] == lines["labo"]["state_bytes"] == "0"
    assert int(lines["ps_kd"]["state_bytes"]) >= 8 * 4 * 2  # a prediction for every example
    assert main(["methods", "--output", str(path)]) == 2
    assert "Option --output requires --measure" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_says_so(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--device", "cuda"]) == 2
    assert "PyTorch finds none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--classes", "ten"], "--classes to be comma-separated whole numbers"),
        (["--dtypes", "float31", "--allocator", "stock"], "nearest is 'float32'"),
        (["--allocator", "jemalloc"], "Unknown allocator"),
        (["--device", "cud"], "nearest is 'cuda'"),
        (["--device", "cuda", "--allocator", "stock"], "--allocator does not apply to --device cuda"),
    ],
)
def test_bad_options_get_one_sentence(options: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--elements", "100", *options]) == 2
    assert told in capsys.readouterr().err
