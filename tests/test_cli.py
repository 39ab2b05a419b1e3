"""The command line as a user meets it: what it prints, what it refuses, how fast it answers."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from labo import regularizers, tasks
from labo.cli import main
from launch import run_labo, run_python

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def labo(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in this process, in an empty folder: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run of `labo train`; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "digits", "--epochs", "10", "--output", str(folder)]) == 0
    return folder


def write_table(path: Path, rows: int = 120) -> Path:
    draw = np.random.default_rng(0)
    size = draw.normal(size=rows)
    colour = draw.choice(["red", "green"], rows)
    kind = np.where(size + (colour == "red") + 0.3 * draw.normal(size=rows) > 0.5, "big", "small")
    pd.DataFrame({"size": size, "colour": colour, "kind": kind}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("arguments", [[], ["compare"], ["train"]])
def test_help_answers_within_a_second(arguments: list[str]):
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = run_labo(*arguments, "--help")
        times.append(time.perf_counter() - began)
        assert "Usage: labo" in done.stdout
    assert min(times) < 1.0


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from labo.cli import main; main(['--help']); main(['train', '--help']); main(['tasks']);"
        "main(['labels', '--help']);"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'matplotlib', 'pandas', 'rich') if m in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"


def test_lists(labo: Run):
    for command, names in (("tasks", tasks.available()), ("methods", regularizers.available())):
        status, out, _ = labo(command)
        assert status == 0
        assert all(name in out for name in names)
    assert "--label-noise" in labo("tasks")[1]
    assert "alpha=0.1, beta=2.0" in labo("methods")[1]


def test_doctor_and_version(labo: Run):
    status, out, _ = labo("doctor")
    assert status == 0
    assert torch.__version__ in out
    assert "reference" in out
    assert "extra train      complete" in out
    assert labo("--version")[1].startswith("labo 0.")
    assert labo()[1].startswith("Usage: labo")


def test_train_evaluate_predict(labo: Run, trained: Path, tmp_path: Path):
    record = json.loads((trained / "record.json").read_text())
    status, out, _ = labo("evaluate", trained)
    assert status == 0
    assert f"{record['metrics']['accuracy']:.2%}" in out
    found = json.loads(labo("evaluate", trained, "--split", "validation", "--json")[1])
    assert found["data"] == "validation"

    examples = tasks.create("digits").splits(0).test
    about = json.loads((trained / "run.json").read_text())
    mean = torch.tensor([column["mean"] for column in about["preprocessing"]["columns"]])
    np.savez(tmp_path / "images.npz", pixel=(examples.features * 16 + mean).round().numpy().reshape(-1, 8, 8))
    status, out, _ = labo("predict", trained, "images.npz")
    rows = list(csv.DictReader(out.splitlines()))
    assert len(rows) == 1000
    right = sum(int(row["prediction"]) == target for row, target in zip(rows, examples.target.tolist(), strict=True))
    assert right / 1000 == pytest.approx(record["metrics"]["accuracy"], abs=0.002)
    assert sum(float(rows[0][f"p_{digit}"]) for digit in range(10)) == pytest.approx(1, abs=1e-4)

    assert labo("predict", trained, "images.npz", "--output", "all.csv")[1] == "1000 predictions: all.csv\n"
    assert (tmp_path / "all.csv").read_text() == out
    raw = list(csv.DictReader(labo("predict", trained, "images.npz", "--raw")[1].splitlines()))
    assert raw[0]["prediction"] == rows[0]["prediction"]
    assert raw[0]["confidence"] != rows[0]["confidence"]


def test_train_again_says_so_and_changes_nothing(labo: Run, trained: Path):
    before = (trained / "record.json").read_bytes()
    status, out, err = labo("train", "digits", "--epochs", "10", "--output", trained)
    assert status == 0
    assert "is already finished" in err
    assert "Accuracy" in out
    assert (trained / "record.json").read_bytes() == before
    status, _, err = labo("train", "digits", "--config", trained / "run.json", "--output", trained)
    assert status == 0


def test_a_failed_run_exits_with_1(labo: Run):
    status, _, err = labo("train", "--method", "none", "--set", "learning_rate=1e30", "--epochs", "3")
    assert status == 1
    assert "Failed: digits, none, seed 0: " in err


def test_compare_on_a_table_of_ones_own(labo: Run, tmp_path: Path):
    write_table(tmp_path / "things.csv")
    status, out, err = labo(
        "compare", "--data", "things.csv", "--target", "kind", "--methods", "label_smoothing,labo", "--seeds", 2,
        "--settings-per-method", 1, "--epochs", 3, "--jobs", 1,
    )  # fmt: skip
    assert status == 0, err
    assert "Undecided between labo and label_smoothing" in " ".join(out.split())
    assert "no difference can be significant" in err
    assert (tmp_path / "runs" / "things" / "report.html").exists()
    assert len((tmp_path / "runs" / "things" / "results.jsonl").read_text().splitlines()) == 4
    asked = json.loads((tmp_path / "runs" / "things" / "compare.json").read_text())
    assert asked["task"] == "table"
    status, out, _ = labo("report", "runs/things", "--baseline", "labo")
    assert status == 0
    assert "labo is the baseline" in out


def test_train_on_a_table_and_predict_new_rows(labo: Run, tmp_path: Path):
    write_table(tmp_path / "things.csv")
    status, out, err = labo("train", "--data", "things.csv", "--target", "kind", "--epochs", 20)
    assert status == 0, err
    run = tmp_path / "runs" / "train" / "things-labo-0"
    assert "labo predict runs/train/things-labo-0" in out
    pd.DataFrame({"size": [3.0, -3.0], "colour": ["red", "green"]}).to_csv(tmp_path / "new.csv", index=False)
    rows = list(csv.DictReader(labo("predict", run, "new.csv")[1].splitlines()))
    assert [row["prediction"] for row in rows] == ["big", "small"]
    labelled = pd.DataFrame({"size": [3.0, -3.0], "colour": ["red", "green"], "what": ["big", "big"]})
    labelled.to_csv(tmp_path / "labelled.csv", index=False)
    found = json.loads(labo("evaluate", run, "--data", "labelled.csv", "--target", "what", "--json")[1])
    assert found["metrics"]["accuracy"] == 0.5
    status, _, err = labo("evaluate", run, "--data", "labelled.csv")
    assert status == 2
    assert "Unknown column 'kind'" in err
    labelled.assign(what=["big", "bigger"]).to_csv(tmp_path / "labelled.csv", index=False)
    assert (
        "(big, small) in row 2 of column 'what', but got 'bigger'"
        in labo("evaluate", run, "--data", "labelled.csv", "--target", "what")[2]
    )


def test_a_method_of_ones_own_from_where_it_lies(labo: Run, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from labo import regularizers\n"
        "class Half(regularizers.SoftLabelRegularizer):\n"
        "    name = 'half'\n"
        "    def __init__(self, *, strength=0.5):\n"
        "        super().__init__(strength=strength)\n"
        "    def labels(self, rows):\n"
        "        return rows.logits.softmax(-1)\n"
    )
    status, out, err = labo("train", "--method", "mine:Half", "--epochs", "1")
    assert status == 0, err
    assert "mine:Half" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("compar", "No such command 'compar'. Did you mean 'compare'?"),
        ("compare --epoch 3", "No such option: --epoch (Possible options: --epochs)."),
        ("compare --seeds few", "'--seeds'"),
        ("compare --seeds 0", "--seeds of at least 1"),
        ("compare --methods labo,lab", "Unknown method 'lab'; the nearest is 'labo'."),
        ("compare --methods labo,none --baseline label_smoothing", "Unknown baseline 'label_smoothing'"),
        ("compare --checkpoint bets", "nearest is 'best'"),
        ("compare digit", "Unknown task 'digit'; the nearest is 'digits'."),
        ("compare --set alpa=1", "Unknown setting 'alpa'; the nearest is 'alpha'."),
        ("compare --set alpha", "--set KEY=VALUE"),
        ("compare --set alpha=1.5", "`alpha` to be in [0, 1], but got 1.5"),
        ("compare --set alpha=nan", "`alpha` to be in [0, 1], but got nan"),
        ("compare --set beta=0", "`beta` to be above 0"),
        ("compare --set beta=nan", "`beta` to be above 0"),
        ("compare --set prior=[0.5,0.5]", "10 classes"),
        ("compare --set prior=bigram", "Unknown prior 'bigram'"),
        ("compare --epochs 3 --steps 3", "either epochs or steps"),
        ("compare --set batch_size=inf", "`batch_size` to be a whole number"),
        ("compare --set batch_size=nan", "`batch_size` to be a whole number"),
        ("compare --set hidden=[1,2]", "`hidden` to be a number"),
        ("compare --set hidden=null", "`hidden` to be a number"),
        ("train --seed -1", "--seed to be from 0 to"),
        ("compare --epochs 0", "`epochs` to be a finite number above 0"),
        ("compare --config none.yaml", "Cannot read the config 'none.yaml'"),
        ("compare --label-noise 2", "SHARE,KIND"),
        ("compare --train-size 5", "train size"),
        ("compare --data things.csv", "--target COLUMN"),
        ("compare --data none.csv --target kind", "No such file"),
        ("compare --data things.csv --target kin", "Unknown column 'kin'; the nearest is 'kind'."),
        ("compare digits --data things.csv", "takes no `data`"),
        ("compare --output things.csv", "Cannot write into 'things.csv'"),
        ("train --method lab", "Unknown method 'lab'"),
        ("train --model mpl", "Unknown model 'mpl'; the nearest is 'mlp'."),
        ("train --set epsilon=0.3", "Unknown setting 'epsilon'"),
        ("train --output things.csv/x", "Cannot write into 'things.csv/x'"),
        ("evaluate nowhere", "No run in 'nowhere'"),
        ("predict nowhere new.csv", "No run in 'nowhere'"),
        ("predict nowhere", "Missing argument"),
        ("report nowhere", "No results.jsonl in 'nowhere'"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(labo: Run, tmp_path: Path, arguments: str, told: str):
    write_table(tmp_path / "things.csv")
    status, out, err = labo(*arguments.split())
    assert status == 2
    assert out == ""
    assert told in err
    sentence = err.splitlines()[-1]
    assert sentence.startswith("labo: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        ("size,kind\n", "holds no rows"),
        ("size,kind\n1,a\n2,a\n", "one class only, 'a'"),
        ("size,kind\n1,a\n2,a\n3,b\n", "single example (row 3)"),
        ("size,kind\n" + "1,a\n2,b\n" * 20 + "three,a\n", "row 41 of column 'size', but got 'three'"),
    ],
)
def test_data_that_will_not_do_get_one_sentence_and_status_2(labo: Run, tmp_path: Path, content: str, told: str):
    (tmp_path / "bad.csv").write_text(content)
    status, _, err = labo("compare", "--data", "bad.csv", "--target", "kind")
    assert status == 2
    assert told in err
    assert err.splitlines()[-1].startswith("labo: ")


def test_a_missing_extra_is_named(labo: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "yaml", None)
    status, _, err = labo("train", "--set", "model=linear")
    assert status == 2
    assert err == "labo: This command needs yaml, which the extra 'train' installs: pip install -e '.[train]'.\n"


def test_every_trial_failed_is_status_1(labo: Run):
    status, out, err = labo(
        "compare", "--methods", "none,label_smoothing", "--seeds", 1, "--settings-per-method", 1, "--jobs", 1,
        "--epochs", 2, "--set", "learning_rate=1e30",
    )  # fmt: skip
    assert status == 1
    assert "Failed: digits, none, seed 0" in err
    assert "has no finished trial" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("train --set prior=[1,2]", "10 classes"),
        ("train --set prior=[0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.3]", "`prior` to sum to 1"),
        ("train --method :", "Cannot load the method ':'"),
        ("train --method broken:Half", "Cannot load the method 'broken:Half'"),
        ("train --method plain:Half", "option `strength` of 'plain:Half' to be keyword-only, with a default"),
        ("train --method raising:Half --epochs 1", "broke: ZeroDivisionError: division by zero; the traceback is in"),
        ("predict RUN in.csv --output in.csv", "a .csv file other than the input"),
        ("predict RUN in.csv --output out.xlsx", "a .csv file other than the input"),
        ("compare --output RUN", "holds a single run: name another --output"),
    ],
)
def test_mistakes_of_ones_own_get_one_sentence(labo: Run, trained: Path, tmp_path: Path, arguments: str, told: str):
    start = "from labo import regularizers\nclass Half(regularizers.SoftLabelRegularizer):\n    name = 'half'\n"
    (tmp_path / "broken.py").write_text("class Half(")
    (tmp_path / "plain.py").write_text(start + "    def __init__(self, strength):\n        pass\n")
    (tmp_path / "raising.py").write_text(
        start + "    def __init__(self, *, strength=0.1):\n        super().__init__(strength=strength)\n"
        "    def labels(self, rows):\n        1 / 0\n"
    )
    status, _, err = labo(*arguments.replace("RUN", str(trained)).split())
    assert status == 2
    assert told in err
    assert "Traceback" not in err


def test_booleans_are_the_same_in_parquet_and_csv(labo: Run, tmp_path: Path):
    frame = pd.DataFrame({"big": [True, False] * 30, "x": range(60), "kind": ["a", "b"] * 30})
    frame.to_parquet(tmp_path / "things.parquet")
    frame.drop(columns="kind").to_csv(tmp_path / "new.csv", index=False)
    assert labo("train", "--data", "things.parquet", "--target", "kind", "--epochs", 1, "--output", "run")[0] == 0
    status, out, err = labo("predict", "run", "new.csv")
    assert status == 0, err
    assert len(out.splitlines()) == 61
