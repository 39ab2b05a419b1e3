"""Text that leaves the command line: any locale, names that are not UTF-8, pipes that close, narrow terminals."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments import trial
from image_files import noise
from labo import cli
from labo.cli import scores, streams
from labo.experiment import run_trial
from labo.experiment.progress import Pace
from labo.records import storage
from labo.wording import unicode_name
from launch import run_labo, start_labo

DEMO = Path(__file__).parents[1] / "results" / "demo"
# Not UTF-8: a name of the days of Latin-1.
CAFE = os.fsdecode(b"caf\xe9")

pipes = pytest.mark.skipif(sys.platform == "win32", reason="broken pipes and their descriptors are those of POSIX")
odd_names = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits; not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "r"
    run_trial.run(trial(epochs=1, task_options={"train_size": 100}), folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows to predict."""
    path = tmp_path_factory.mktemp("rows") / "in.csv"
    rows = np.random.default_rng(0).integers(0, 17, (3, 64)).tolist()
    path.write_text("\n".join(",".join(map(str, row)) for row in [[f"pixel_{i}" for i in range(64)], *rows]))
    return path


def stream(encoding: str, *, terminal: bool = False) -> Any:
    written = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    if terminal:
        written.isatty = lambda: True  # pyright: ignore[reportAttributeAccessIssue]
    return written


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_every_command_writes_in_any_locale(trained, table, tmp_path, monkeypatch, encoding):
    for name in ("results.jsonl", "tuning.jsonl", "compare.json"):
        shutil.copy(DEMO / name, tmp_path)
    for arguments in (["report", tmp_path], ["tasks"], ["methods"], ["predict", trained, table]):
        out = stream(encoding)
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(list(map(str, arguments))) == 0
        out.flush()
        text = out.buffer.getvalue().decode("utf-8")
        assert "?" not in text
    for arguments, told in ((["report", tmp_path], "−0.86"), (["tasks"], "--option joint=…")):
        done = run_labo(*arguments, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert done.stderr == ""
        assert told in done.stdout


def test_a_terminal_without_a_minus_sign_shows_a_hyphen(tmp_path, monkeypatch):
    for name in ("results.jsonl", "tuning.jsonl", "compare.json"):
        shutil.copy(DEMO / name, tmp_path)
    out = stream("ascii", terminal=True)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "dumb")
    assert cli.main(["report", str(tmp_path)]) == 0
    out.flush()
    text = out.buffer.getvalue().decode("ascii")
    assert "-0.86" in text
    assert "~2.16" in text
    assert "p <= 0.031" in text
    out = stream("latin-1", terminal=True)
    monkeypatch.setattr(sys, "stdout", out)
    streams.prepare()
    print("±1 − 猫")
    out.flush()
    assert out.buffer.getvalue().decode("latin-1") == "±1 - ?\n"


@pipes
@pytest.mark.parametrize("arguments", [["tasks"], ["methods"], ["--help"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    with start_labo(*arguments, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.stderr
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pipes
def test_a_pipe_that_breaks_elsewhere_is_an_error(monkeypatch, capfd):
    def broken() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("labo.tasks.registry.available", broken)
    assert cli.main(["tasks"]) == 2
    assert capfd.readouterr().err == "labo: Operating-system error: Broken pipe.\n"


@pipes
def test_a_closed_output_is_no_error(trained, table, monkeypatch):
    done = subprocess.run(
        ["sh", "-c", '"$0" -m labo tasks >&-', sys.executable], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    for closed in ("stdout", "stdin"):
        with monkeypatch.context() as patched:
            patched.setattr(sys, closed, None)
            assert cli.main(["predict", str(trained), str(table)]) == 0
            getattr(sys, closed).close()


@odd_names
def test_names_that_are_not_utf_8(tmp_path, monkeypatch, capsys):
    for shade, name in enumerate(("cat", CAFE)):
        (tmp_path / "img" / name).mkdir(parents=True)
        for place in range(15):
            pixels = noise(place, 8, 8, 3) // 2 + 120 * shade
            with open(tmp_path / "img" / name / f"{CAFE}{place}.png", "wb") as file:
                Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    monkeypatch.chdir(tmp_path)
    asked = [
        "compare",
        "image",
        "--data",
        "img",
        "--methods",
        "none,labo",
        "--seeds",
        "1",
        "--settings-per-method",
        "1",
    ]
    asked += ["--epochs", "1", "--set", "width=4", "--option", "validation_size=4", "--jobs", "1", "--output", "out"]
    assert cli.main(asked) == 0
    shown = "caf\\udce9"
    run = Path("out/image/labo/0")
    assert json.loads((run / "run.json").read_text())["classes"] == [shown, "cat"]
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for command in (
        ["predict", run, "img", "--output", f"{CAFE}.csv"],
        ["evaluate", run, "--data", "img", "--per-class"],
        ["labels", run, "--output", "labels.csv"],
    ):
        assert cli.main(list(map(str, command))) == 0, capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / f"{CAFE}.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 30
    assert rows[0]["file"] == f"img/{shown}/{shown}0.png"
    assert set(rows[0]) == {"file", "row", "prediction", "confidence", f"p_{shown}", "p_cat"}
    assert cli.main([*asked[:-1], CAFE]) == 2
    assert "a folder whose name is UTF-8" in capsys.readouterr().err


def test_what_json_keeps_of_a_name_is_what_was_written(tmp_path):
    storage.write_object(tmp_path / "a.json", {CAFE: "fünf"})
    storage.append_line(tmp_path / "a.jsonl", {CAFE: "fünf"})
    assert storage.read_object(tmp_path / "a.json") == {CAFE: "fünf"}
    assert storage.read_lines(tmp_path / "a.jsonl") == [{CAFE: "fünf"}]
    assert unicode_name("fünf") == "fünf"


def test_predictions_are_whole_or_absent(trained, table, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.csv"
    output.write_text("old")

    def cut(file: Any, *arguments: object) -> None:
        file.write("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("labo.cli.predict._write", cut)
        assert cli.main(["predict", str(trained), str(table), "--output", str(output)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert output.read_text() == "old"
    assert cli.main(["predict", str(trained), str(table), "--output", str(output)]) == 0
    assert "3 predictions: " in capsys.readouterr().out
    assert len(output.read_text().splitlines()) == 4


def test_a_narrow_terminal_gets_measures_below_each_other(monkeypatch):
    rows = {"labo": {"accuracy": 0.5, "nll": 1.0, "nll_scaled": 1.0, "brier": 0.5, "ece": 0.1}}
    wide = scores.table(rows)
    monkeypatch.setenv("COLUMNS", "40")
    assert scores.table(rows) == wide  # a pipe has no width
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = scores.table(rows).splitlines()
    assert [line.split()[-1] for line in lines] == ["labo", "50.00%", "1.0000", "1.0000", "0.5000", "0.1000"]
    assert max(map(len, lines)) <= 40


def test_the_time_left_waits_until_something_is_known():
    pace = Pace(10, 0)
    # 9.9 seconds go into starting the workers, then 0.8 trials are done in a second: 24 seconds in all.
    assert pace.seconds_left(9.9, 0.0) is None
    assert pace.seconds_left(10.0, 0.03) is None
    assert pace.seconds_left(11.0, 0.83) is None
    assert pace.seconds_left(14.0, 3.23) == pytest.approx(6.77 / 0.8)
    # What is recorded already, and the part of a resumed trial that was done before, were not done now.
    pace = Pace(10, 4)
    assert pace.seconds_left(0.0, 4.0) is None
    assert pace.seconds_left(5.0, 4.5) is None
    assert pace.seconds_left(15.0, 5.5) == pytest.approx(45.0)
    # A run of hours: a minute is enough.
    pace = Pace(1, 0)
    assert pace.seconds_left(0.0, 0.0001) is None
    assert pace.seconds_left(30.0, 0.0011) is None
    assert pace.seconds_left(100.0, 0.0101) == pytest.approx(0.9899 / 0.01 * 100)
