"""Finished runs on images: scores by class, corrupted images, predictions drawn with their soft labels."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_files import class_folders, noise, save
from labo import digests
from labo.cli import main
from labo.experiment import post_hoc, saved_run
from labo.experiment.evaluators import classification
from labo.metrics.scores import scores_at
from labo.records import storage
from labo.records import trial as trials
from labo.tasks.images.corruptions import corrupt

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def labo(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in an empty folder: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight images of three classes, by the brightness of a corner."""
    draw = np.random.default_rng(0)
    target = np.arange(48) % 3
    images = draw.integers(0, 80, (48, 8, 8, 3), dtype=np.uint8)
    images[:, :4, :4] += (target * 80).astype(np.uint8)[:, None, None, None]
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=images, labels=np.array(["ant", "bee", "cow"])[target])
    return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A comparison of labo and label_smoothing on two seeds, not measured on shifts; not to be changed."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    asked = ["compare", "image", "--data", data, "--methods", "label_smoothing,labo", "--seeds", 2, "--jobs", 1]
    asked += ["--settings-per-method", 1, "--epochs", 2, "--set", "width=4", "--option", "validation_size=9"]
    assert main([str(word) for word in [*asked, "--output", folder]]) == 0
    return folder


@pytest.fixture
def copied(compared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "out"))


@pytest.fixture(scope="module")
def run(compared: Path) -> Path:
    return compared / "image" / "labo" / "0"


def test_evaluate_tells_every_class_the_worst_first(labo: Run, run: Path):
    status, out, _ = labo("evaluate", run, "--per-class")
    assert status == 0
    assert "Top-5" not in out  # three classes
    lines = [line.split() for line in out.splitlines()]
    begin = next(place for place, line in enumerate(lines) if line[:1] == ["class"])
    assert lines[begin][1:] == ["examples", "accuracy", "precision", "confidence", "NLL"]
    rows = lines[begin + 1 : begin + 4]
    assert {row[0] for row in rows} == {"ant", "bee", "cow"}
    recalls = [float(row[2].rstrip("%")) for row in rows]
    assert recalls == sorted(recalls)
    found = json.loads(labo("evaluate", run, "--json")[1])
    assert [entry["class"] for entry in found["classes"]] == ["ant", "bee", "cow"]
    weights = [entry["examples"] for entry in found["classes"]]
    mean = sum(entry["recall"] * count for entry, count in zip(found["classes"], weights, strict=True)) / sum(weights)
    assert mean == pytest.approx(found["metrics"]["accuracy"])
    assert "shifted" not in found
    assert "class " not in labo("evaluate", run)[1]


def test_evaluate_on_shifted_pictures_by_hand(labo: Run, run: Path):
    found = json.loads(labo("evaluate", run, "--shift", "blur, noise", "--json")[1])["shifted"]
    loaded = saved_run.load(run)
    test = loaded.examples("test")
    by_hand = {}
    for kind in ("blur", "noise"):
        for severity in range(1, 6):
            worse = corrupt(test.features.to(loaded.device), kind, severity, 0)
            logits = classification.predict(loaded.model.to(loaded.device), worse)
            by_hand[kind, severity] = scores_at(loaded.temperature, logits, test.target)
            for key, value in found["scores"][kind][str(severity)].items():
                assert value == pytest.approx(by_hand[kind, severity][key])
    nlls = {kind: [by_hand[kind, severity]["nll_scaled"] for severity in range(1, 6)] for kind in ("blur", "noise")}
    assert found["means"]["blur"]["nll_scaled"] == pytest.approx(np.mean(nlls["blur"]))
    assert found["means"]["mean"]["nll_scaled"] == pytest.approx(np.mean([*nlls["blur"], *nlls["noise"]]))
    status, out, err = labo("evaluate", run, "--shift", "noise", "--severity", 3)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["labo,", "noise", "mean"]
    assert "severity 3" in out
    assert f"{by_hand['noise', 3]['nll']:.4f}" in out.splitlines()[2]
    assert "measuring shifted inputs" in err


def test_evaluate_on_labelled_pictures_of_ones_own(labo: Run, run: Path, tmp_path: Path):
    class_folders(tmp_path / "mine", {"ant": 2, "cow": 3})
    found = json.loads(labo("evaluate", run, "--data", "mine", "--shift", "noise", "--severity", 1, "--json")[1])
    assert [entry["examples"] for entry in found["classes"]] == [2, 0, 3]
    assert found["classes"][1]["recall"] is None
    out = labo("evaluate", run, "--data", "mine", "--per-class")[1]
    assert out.splitlines()[-5].split()[:3] == ["bee", "0", "–"]  # without examples, so last
    class_folders(tmp_path / "mine", {"dog": 1})
    status, out, err = labo("evaluate", run, "--data", "mine")
    assert (status, out) == (2, "")
    assert err == "labo: The class 'dog' in 'mine' is none of the 3 classes trained on.\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("evaluate RUN --shift fog", "Unknown shift 'fog'. Known shifts: blur, contrast, noise."),
        ("evaluate RUN --shift blr", "Unknown shift 'blr'; the nearest is 'blur'."),
        ("evaluate RUN --shift ,", "Expected --shift to name some of noise, blur, contrast, separated by commas"),
        ("evaluate RUN --shift noise --severity 6", "--severity to be a whole number from 1 to 5, but got 6."),
        ("evaluate RUN --shift noise --severity 0", "--severity to be a whole number from 1 to 5, but got 0."),
        ("evaluate RUN --severity 2", "Option --severity requires --shift"),
        ("report DIR --shift fog", "Unknown shift 'fog'"),
        ("report DIR --severity 3", "Option --severity requires --shift"),
        ("compare digits --shift noise", "Task 'digits' has no shifts: only image tasks have."),
        ("compare --data none.csv --target kind --shift noise", "Task 'table' has no shifts"),
        ("compare cifar10 --shift nois", "Unknown shift 'nois'; the nearest is 'noise'."),
        ("predict RUN nowhere.png", "No such file or folder: 'nowhere.png'"),
        ("predict RUN a.png nowhere.png", "No such file or folder: 'nowhere.png'"),
        ("predict RUN empty", "holds no image"),
        ("predict RUN torn.png", "Cannot read the image 'torn.png'"),
        ("predict RUN a.csv b.png --output a.csv", "a .csv file other than the input"),
    ],
)
def test_bad_input_gets_one_sentence(labo: Run, compared: Path, tmp_path: Path, arguments: str, told: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.png").write_bytes(b"torn")
    save(noise(0, 8, 8, 3), tmp_path / "a.png")
    named = arguments.replace("RUN", str(compared / "image" / "labo" / "0")).replace("DIR", str(compared))
    status, out, err = labo(*named.split())
    assert (status, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1
    assert not (compared / "shift.jsonl").exists()


def test_another_task_refuses_in_evaluate_and_report(labo: Run, tmp_path: Path):
    assert labo("train", "digits", "--epochs", 1, "--output", "run")[0] == 0
    assert labo("evaluate", "run", "--shift", "noise")[2].endswith("only image tasks have.\n")
    (tmp_path / "old").mkdir()
    record = {"task": "digits", "method": "none", "seed": 0, "metrics": {"accuracy": 0.5}}
    (tmp_path / "old" / "results.jsonl").write_text(json.dumps(record) + "\n")
    assert labo("report", "old", "--shift", "noise") == (
        2, "", "labo: Task 'digits' has no shifts: only image tasks have.\n"
    )  # fmt: skip


def test_a_report_measures_every_run_once(labo: Run, copied: Path):
    status, out, err = labo("report", copied, "--shift", "contrast", "--severity", 5)
    assert status == 0, err
    assert "shifted" in out
    lines = storage.read_lines(copied / "shift.jsonl")
    assert [(line["method"], line["seed"]) for line in lines] == [
        ("label_smoothing", 0), ("labo", 0), ("label_smoothing", 1), ("labo", 1)
    ]  # fmt: skip
    loaded = saved_run.load(copied / "image" / "labo" / "1")
    by_hand = post_hoc.shift_scores(loaded, loaded.examples("test"), [("contrast", 5)])
    assert lines[3]["scores"] == by_hand
    before = (copied / "shift.jsonl").read_bytes()
    assert "4 of 4 trials are recorded already" in labo("report", copied, "--shift", "contrast", "--severity", 5)[2]
    assert (copied / "shift.jsonl").read_bytes() == before
    # Without asking, the column stays; a wider question measures only what is not there.
    assert "shifted" in labo("report", copied)[1]
    assert "| Clean | Contrast | Shifted |" in (copied / "report.md").read_text()
    assert labo("report", copied, "--shift", "contrast,blur")[0] == 0
    added = storage.read_lines(copied / "shift.jsonl")[4:]
    assert [list(line["scores"]) for line in added] == [["contrast", "blur"]] * 4
    assert list(added[0]["scores"]["contrast"]) == ["1", "2", "3", "4"]
    page = (copied / "report.html").read_text()
    assert "Accuracy on corrupted images" in page
    assert "contrast, blur, at severities 1, 2, 3, 4, 5 of 5" in page


def test_measuring_goes_on_where_it_was_stopped(labo: Run, copied: Path, monkeypatch: pytest.MonkeyPatch):
    measure, seen = post_hoc.shift_scores, []

    def stopping(run: Any, *arguments: Any) -> Any:
        seen.append((run.description["method"], run.description["seed"]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(run, *arguments)

    monkeypatch.setattr(post_hoc, "shift_scores", stopping)
    status, _, err = labo("report", copied, "--shift", "blur", "--severity", 1)
    assert status == 130
    assert "run the same command again to resume" in err
    first = (copied / "shift.jsonl").read_bytes()
    assert len(first.splitlines()) == 2
    with open(copied / "shift.jsonl", "ab") as file:  # as a kill would leave it
        file.write(b'{"task": "image", "method": "label')
    status, _, err = labo("report", copied, "--shift", "blur", "--severity", 1)
    assert status == 0
    assert "was cut short and is dropped; its run is measured again" in err
    assert "2 of 4 trials are recorded already" in err
    assert seen[3:] == [("label_smoothing", 1), ("labo", 1)]
    assert (copied / "shift.jsonl").read_bytes().startswith(first)
    assert len(storage.read_lines(copied / "shift.jsonl")) == 4


def test_runs_without_weights_are_told_of(labo: Run, copied: Path):
    (copied / "image" / "labo" / "1" / trials.WEIGHTS).unlink()
    status, out, err = labo("report", copied, "--shift", "blur", "--severity", 1)
    assert status == 0
    assert "1 finished runs are not here with their weights, and are not measured." in err
    assert len(storage.read_lines(copied / "shift.jsonl")) == 3
    (copied / "shift.jsonl").unlink()
    for path in copied.rglob(trials.WEIGHTS):
        path.unlink()
    status, out, err = labo("report", copied, "--shift", "blur")
    assert (status, out) == (2, "")
    assert "has kept its weights" in err.splitlines()[-1]


def test_a_run_that_was_trained_anew_is_measured_anew(labo: Run, copied: Path):
    asked = ("report", copied, "--shift", "contrast", "--severity", 5)
    assert labo(*asked)[0] == 0
    lines = storage.read_lines(copied / "shift.jsonl")
    home = copied / "image" / "labo"
    shutil.copy(home / "0" / trials.WEIGHTS, home / "1" / trials.WEIGHTS)
    record = json.loads((home / "1" / trials.RECORD).read_text())
    record["files"] |= digests.manifest([home / "1" / trials.WEIGHTS])
    (home / "1" / trials.RECORD).write_text(json.dumps(record))
    assert "3 of 4 trials are recorded already" in labo(*asked)[2]
    again = storage.read_lines(copied / "shift.jsonl")
    assert again[:4] == lines
    assert [(line["method"], line["seed"]) for line in again[4:]] == [("labo", 1)]
    assert again[4]["weights"] == lines[1]["weights"] != lines[3]["weights"]
    # Lines of a version that did not write down the weights count.
    older = [{key: value for key, value in line.items() if key != "weights"} for line in lines]
    (copied / "shift.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
    assert "4 of 4 trials are recorded already" in labo(*asked)[2]


def test_compare_measures_after_its_trials(labo: Run, copied: Path, data: Path):
    asked = ["compare", "image", "--data", data, "--methods", "label_smoothing,labo", "--seeds", 2, "--jobs", 1]
    asked += ["--settings-per-method", 1, "--epochs", 2, "--set", "width=4", "--option", "validation_size=9"]
    status, out, err = labo(*asked, "--output", copied, "--shift", "noise", "--severity", 1)
    assert status == 0, err
    assert "shifted" in out
    assert len(storage.read_lines(copied / "shift.jsonl")) == 4


def test_predict_takes_pictures_folders_and_arrays_at_once(labo: Run, run: Path, tmp_path: Path):
    image = save(noise(0, 8, 8, 3), tmp_path / "one.png")
    class_folders(tmp_path / "more", {"x": 2})
    np.savez(tmp_path / "two.npz", images=np.stack([image, noise(9, 8, 8, 3)]))
    status, out, err = labo("predict", run, "one.png", "more", "two.npz")
    assert status == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    assert [(row["file"], row["row"]) for row in rows] == [
        ("one.png", "1"), ("more/x/0.png", "1"), ("more/x/1.png", "2"), ("two.npz", "1"), ("two.npz", "2")
    ]  # fmt: skip
    assert rows[0]["p_ant"] == rows[3]["p_ant"]
    assert list(rows[0]) == ["file", "row", "prediction", "confidence", "p_ant", "p_bee", "p_cow"]
    alone = list(csv.DictReader(labo("predict", run, "two.npz")[1].splitlines()))
    assert "file" not in alone[0]
    assert alone[0]["p_ant"] == rows[0]["p_ant"]


def test_predict_leaves_out_what_cannot_be_read(labo: Run, run: Path, tmp_path: Path):
    class_folders(tmp_path / "few", {"x": 3})
    (tmp_path / "few" / "x" / "1.png").write_bytes(b"torn")
    status, out, err = labo("predict", run, "few")
    assert (status, out) == (2, "")
    assert err.startswith("labo: Cannot read the image 'few/x/1.png': ")
    assert err.endswith("; --skip-unreadable leaves such images out.\n")
    status, out, err = labo("predict", run, "few", "--skip-unreadable")
    assert status == 0
    assert err == "1 unreadable image is left out of 'few', 'few/x/1.png' the first.\n"
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["file"] for row in rows] == ["few/x/0.png", "few/x/2.png"]
    alone = next(csv.DictReader(labo("predict", run, "few/x/2.png")[1].splitlines()))
    assert rows[1]["p_ant"] == alone["p_ant"]


def test_predict_writes_the_label_of_labo_by_hand(labo: Run, run: Path, tmp_path: Path):
    save(noise(0, 8, 8, 3), tmp_path / "one.png")
    row = next(csv.DictReader(labo("predict", run, "one.png", "--label")[1].splitlines()))
    raw = next(csv.DictReader(labo("predict", run, "one.png", "--raw")[1].splitlines()))
    beta = json.loads((run / "run.json").read_text())["settings"]["beta"]
    powers = np.array([float(raw[f"p_{name}"]) for name in ("ant", "bee", "cow")]) ** (1 / beta)
    expected = powers / powers.sum()  # softmax(logits / beta)
    assert [float(row[f"q_{name}"]) for name in ("ant", "bee", "cow")] == pytest.approx(list(expected), abs=1e-5)


def test_a_terminal_sees_bars_with_their_numbers(labo: Run, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class_folders(tmp_path / "few", {"x": 2})
    written = list(csv.DictReader(labo("predict", run, "few", "--label")[1].splitlines()))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns in (40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        status, out, _ = labo("predict", run, "few")
        assert status == 0
        lines = out.splitlines()
        assert lines[0] == f"few/x/0.png: {written[0]['prediction']}"
        for line in lines[1:4]:
            name = line.split()[0]
            assert f"p {float(written[0][f'p_{name}']):6.1%} " in line
            assert f"q* {float(written[0][f'q_{name}']):6.1%} " in line
            assert len(line) <= max(48, min(columns, 100))
        assert "█" in lines[1]
        assert "p is the probability, at temperature" in out
        assert "q* is the label that labo would train towards" in out
    class_folders(tmp_path / "many", {"x": 9})
    out = labo("predict", run, "many")[1]
    assert len(out.splitlines()) == 9
    assert "many/x/8.png  " in out
    assert "█" not in out


def test_asking_for_a_label_that_there_is_not_is_refused(labo: Run, data: Path, tmp_path: Path):
    asked = ["train", "image", "--data", data, "--method", "none", "--epochs", 1, "--set", "width=4"]
    assert labo(*asked, "--option", "validation_size=9", "--output", "run")[0] == 0
    counts = json.loads((tmp_path / "run" / "run.json").read_text())["class_counts"]
    assert sum(counts) == len(saved_run.load(tmp_path / "run").examples("train"))
    save(noise(0, 8, 8, 3), tmp_path / "one.png")
    status, out, err = labo("predict", "run", "one.png", "--label")
    assert (status, out, err) == (2, "", "labo: No q*: method 'none' has no soft label.\n")
