"""Suspicious labels: the ranking by hand, planted labels found, folds that go on, and what the command writes."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from experiments import trial
from image_files import class_folders
from labo import report, tasks
from labo.cli import main
from labo.errors import UserError
from labo.experiment import folds, label_issues, run_trial, saved_run
from labo.experiment.progress import ConsoleProgress
from labo.records import trial as trials
from labo.records.comparison import read
from labo.report import label_issues as reported
from labo.splitting import equal_parts
from labo.training import checkpoints

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def labo(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def digits_run(folder: Path, method: str = "labo", **options: Any) -> Path:
    given = {"train_size": 200, "label_noise": "0.1"}
    run_trial.run(trial(method, task_options=given, data="", epochs=15, **options), folder)
    return folder


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on digits of which a tenth is labelled wrong; its labels/, .json and .html may be written again."""
    return digits_run(tmp_path_factory.mktemp("noisy") / "run")


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_ranking_by_hand():
    logits = torch.tensor([[0.0, 2 * math.log(3), 0.0], [2.0, 0.0, 1.0], [5.0, 5.0, 0.0]])
    found = label_issues.rank(logits, torch.tensor([0, 0, 1]), beta=2.0)
    # q* of the first row is (1, 3, 1) / 5; its score is log 3, of the second (1 - 2) / 2, of the third 0.
    assert found.scores.tolist() == pytest.approx([math.log(3), -0.5, 0.0], abs=1e-6)
    assert found.order.tolist() == [0, 2, 1]
    assert found.other.tolist() == [1, 2, 0]
    assert found.q_given[0].item() == pytest.approx(0.2, abs=1e-7)
    assert found.q_other[0].item() == pytest.approx(0.6, abs=1e-7)
    assert found.scores.dtype == found.q_given.dtype == torch.float64


def test_sure_networks_are_still_told_apart():
    logits = torch.tensor([[900.0, 0.0], [3000.0, 0.0], [800.0, 0.0]])
    assert label_issues.rank(logits, torch.tensor([1, 1, 0]), beta=0.5).order.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("logits", "target", "beta"),
    [
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), 2.0),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 2.0),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), math.inf),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 0.0),
    ],
)
def test_what_cannot_be_ranked_is_refused(logits, target, beta):
    with pytest.raises(ValueError, match="beta"):
        label_issues.rank(logits, target, beta=beta)


def test_the_beta_of_a_run():
    assert label_issues.default_beta("labo", {"beta": 4.0}) == 4.0
    assert label_issues.default_beta("labo", {"beta": math.inf}) == 2.0
    assert label_issues.default_beta("beta_smoothing", {"beta": 0.9}) == 2.0  # another beta by the same name


def test_precision_at_the_planted_number():
    planted = torch.tensor([True, False, False, True, False])
    assert label_issues.precision(torch.tensor([3, 1, 0, 2, 4]), planted) == 0.5


def test_files_are_shown_without_the_folder_of_all():
    assert label_issues.short_names(["/a/b/c/1.png", "/a/b/d/2.png"], [1, 0]) == ["d/2.png", "c/1.png"]
    assert label_issues.short_names(["row 1", "row 2"], [1]) == ["row 2"]


def test_planted_labels_are_found_far_above_chance(labo: Run, noisy: Path, tmp_path: Path):
    status, out, _ = labo(
        "labels", noisy, "--folds", "3", "--jobs", "1", "--top", "5", "--output", tmp_path / "all.csv"
    )
    assert status == 0
    found = lines(tmp_path / "all.csv")
    assert [int(line["rank"]) for line in found] == list(range(1, 201))
    hits = sum(line["given"] != line["before"] for line in found[:20])
    assert hits >= 12  # chance finds 2
    scores = [float(line["score"]) for line in found]
    assert scores == sorted(scores, reverse=True)
    disagree = sum(score > 0 for score in scores)
    assert f"{disagree} of 200 training examples" in out
    assert f"{hits / 20:.1%} of the first 20 are among them, where chance would find 10.0%" in out
    assert out.splitlines()[1].split()[:3] == ["1", "image", found[0]["example"].split()[1]]
    kept = json.loads((noisy / "labels.json").read_text())
    assert len(kept["top"]) == 5
    assert kept["planted"].items() >= {"count": 20, "precision": hits / 20, "chance": 0.1}.items()
    flagged = [line for line in found if float(line["score"]) > 0]
    right = sum(line["given"] != line["before"] for line in flagged)
    assert kept["planted"]["flagged_precision"] == right / len(flagged)
    assert kept["planted"]["flagged_recall"] == right / 20
    assert f"{right / 20:.1%} of the injected are among them (recall)" in out
    channel = kept["channel"]
    assert channel["interval"][0] <= 0.1 <= channel["interval"][1]
    assert channel["sentence"] in out
    assert channel["sentence"] in (noisy / "labels.html").read_text()


def test_the_own_network_is_asked_without_folds(labo: Run, noisy: Path):
    status, out, _ = labo("labels", noisy)
    assert status == 0
    assert "Judged by the run's own network" in out
    run = saved_run.load(noisy)
    train = run.splits.train
    with torch.no_grad():
        belief = (run.model(train.features).double() / 2.0).softmax(-1)
    first = json.loads((noisy / "labels.json").read_text())["top"][0]
    assert train.origin is not None
    index = train.origin.names().index(first["example"])
    given = int(train.target[index])
    others = belief.clone()
    others[torch.arange(200), train.target] = 0
    ratios = others.amax(1) / belief[torch.arange(200), train.target]
    assert index == int(ratios.argmax())
    assert first["q_given"] == pytest.approx(belief[index, given].item(), rel=1e-4)
    assert first["other"] == run.classes[int(others[index].argmax())]


@pytest.mark.parametrize("method", ["labo[prior=memory]", "elr"])
def test_a_memory_is_asked_and_no_network(labo: Run, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch):
    folder = digits_run(tmp_path / "run", method, set={"decay": 0.7})
    monkeypatch.setattr(saved_run.SavedRun, "logits", None)
    monkeypatch.setattr(run_trial, "run", None)
    status, out, _ = labo("labels", folder, "--output", tmp_path / "all.csv")
    assert status == 0
    assert "Judged by what the network said of them during training (the run's memory)" in out
    found = lines(tmp_path / "all.csv")
    assert sum(line["given"] != line["before"] for line in found[:20]) >= 12  # chance finds 2
    run = saved_run.load(folder)
    first = run.splits.train.origin.names().index(found[0]["example"])
    given, other = (run.classes.index(found[0][name]) for name in ("given", "other"))
    assert float(found[0]["q_given"]) == pytest.approx(
        (run.memory[first, given] / run.memory[first].sum()).item(), rel=1e-3
    )
    assert run.memory[first].argmax() == other
    assert "memory" in (folder / "labels.html").read_text()


def test_a_run_on_weights_alone_is_asked_for_its_network(labo: Run, tmp_path: Path):
    folder = digits_run(tmp_path / "run", "elr")
    (folder / trials.MEMORY).unlink()
    assert "Judged by the run's own network" in labo("labels", folder)[1]


def test_the_page_shows_pictures_or_none(labo: Run, noisy: Path):
    assert labo("labels", noisy, "--top", "3")[0] == 0
    html = (noisy / "labels.html").read_text()
    assert html.count("<img src=") == 3
    assert "Content-Security-Policy" in html
    picture = json.loads((noisy / "labels.json").read_text())["top"][0]["picture"]
    image = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2])))
    assert image.size == (8, 8)
    assert labo("labels", noisy, "--top", "3", "--no-samples")[0] == 0
    html, kept = (noisy / "labels.html").read_text(), (noisy / "labels.json").read_text()
    assert "<img" not in html
    assert "data:image" not in html + kept
    assert "Made without samples" in html
    assert json.loads(kept)["top"][0]["example"] in html


def test_a_table_shows_its_values_and_escapes_them(labo: Run, tmp_path: Path):
    draw = np.random.default_rng(0)
    size = draw.normal(size=90)
    kind = np.where(size > 0, "<b>big</b>", "small & slim")
    frame = pd.DataFrame({"<i>size</i>": size, "word": draw.choice(["<script>", "plain"], 90), "kind": kind})
    frame.to_csv(tmp_path / "t.csv", index=False)
    asked = ["train", "--data", tmp_path / "t.csv", "--target", "kind", "--epochs", "2", "--output", tmp_path / "run"]
    assert labo(*asked)[0] == 0
    status, out, _ = labo("labels", tmp_path / "run")
    assert status == 0
    assert "planted" not in out
    html = (tmp_path / "run" / "labels.html").read_text()
    for raw in ("<script", "<b>big", "<i>size"):
        assert raw not in html
    assert "&lt;b&gt;big&lt;/b&gt;" in html
    assert "&lt;i&gt;size&lt;/i&gt;" in html
    first = json.loads((tmp_path / "run" / "labels.json").read_text())["top"][0]
    assert first["row"]["<i>size</i>"] == str(pd.read_csv(tmp_path / "t.csv", dtype=str)["<i>size</i>"][first["place"]])
    assert labo("labels", tmp_path / "run", "--no-samples")[0] == 0
    assert "&lt;i&gt;size" not in (tmp_path / "run" / "labels.html").read_text()


def test_a_folder_of_pictures_names_its_files(labo: Run, tmp_path: Path):
    root = class_folders(tmp_path / "data", {"cat": 12, "<em>dog</em>": 12})
    asked = ["train", "image", "--data", root, "--epochs", "1", "--set", "width=4", "--output", tmp_path / "run"]
    assert labo(*asked)[0] == 0
    status, _, err = labo("labels", tmp_path / "run", "--output", tmp_path / "all.csv", "--folds", "2", "--jobs", "1")
    assert status == 0, err
    assert all(Path(line["example"]).is_file() for line in lines(tmp_path / "all.csv"))
    html = (tmp_path / "run" / "labels.html").read_text()
    assert "cat/" in html
    assert str(tmp_path) not in html
    assert "<em>" not in html
    assert html.count("<img src=") == min(20, len(lines(tmp_path / "all.csv")))


def test_no_fold_trains_on_what_it_judges():
    splits = tasks.create("digits", label_noise="0.1").splits(0)
    assert splits.train.origin is not None
    everyone = set(splits.train.origin.source_indices.tolist())
    judged: list[int] = []
    for number in (1, 2, 3):
        without, held_out = folds.leave_out(splits, f"{number}/3", seed=0)
        assert without.train.origin is not None
        assert held_out.origin is not None
        trained, left = set(without.train.origin.source_indices.tolist()), set(held_out.origin.source_indices.tolist())
        assert trained | left == everyone
        assert not trained & left
        judged += left
    assert sorted(judged) == sorted(everyone)


def test_folds_go_on_and_each_example_gets_the_logits_of_its_own(tmp_path: Path):
    run = saved_run.load(digits_run(tmp_path / "run", set={"hidden": 16}))
    with ConsoleProgress() as progress:
        whole = label_issues.cross_validated_logits(run, 3, progress)
    home = tmp_path / "run" / "labels" / "3"
    for number, part in enumerate(equal_parts(run.splits.train.target, 3, 0), 1):
        kept = checkpoints.read_weights(home / str(number) / trials.HELD_OUT)["logits"]
        assert torch.equal(whole[part], kept)
    first = (home / "1" / trials.RECORD).stat().st_mtime_ns
    (home / "2" / trials.RECORD).unlink()  # as if it had been killed before its end
    (home / "2" / trials.HELD_OUT).unlink()
    with ConsoleProgress() as progress:
        again = label_issues.cross_validated_logits(run, 3, progress)
    assert torch.equal(again, whole)
    assert (home / "1" / trials.RECORD).stat().st_mtime_ns == first
    (home / "1" / trials.HELD_OUT).write_bytes(b"damaged")
    with ConsoleProgress() as progress, pytest.raises(UserError, match="damaged"):
        label_issues.cross_validated_logits(run, 3, progress)


def test_teachers_have_seen_what_a_fold_leaves_out(tmp_path: Path):
    teacher = digits_run(tmp_path / "teacher", "none")
    student = digits_run(tmp_path / "run", "distillation", teacher=str(teacher), teacher_folder=str(teacher))
    with pytest.raises(UserError, match="learns from a teacher"):
        label_issues.fold_jobs(saved_run.load(student), 3)


@pytest.mark.parametrize(("count", "cure"), [(3, "give at most 3 folds"), (1, "leave --folds out")])
def test_a_class_with_fewer_examples_than_folds_is_named(tmp_path: Path, count: int, cure: str):
    run = saved_run.load(digits_run(tmp_path / "run", "none"))
    train = run.splits.train
    rare = (train.target == 7).nonzero().flatten()[count:]
    kept = torch.ones(len(train), dtype=torch.bool).index_fill(0, rare, False).nonzero().flatten()
    run.__dict__["splits"] = replace(run.splits, train=train.subset(kept))
    with pytest.raises(
        UserError, match=f"^Class '7' has only {count} of the training examples, .* --folds 5: {cure}.$"
    ):
        label_issues.fold_jobs(run, 5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--folds", "1"], "Expected --folds from 2 to 200"),
        (["--folds", "201"], "Expected --folds from 2 to 200"),
        (["--folds", "-1"], "Expected --folds of at least 0, but got -1"),
        (["--top", "0"], "Expected --top of at least 1, but got 0"),
        (["--output", "all.txt"], "Expected --output to be a .csv file"),
        (["--output", "no/such/folder/all.csv"], "Cannot write 'no/such/folder/all.csv'"),
        (["--beta", "0"], "beta"),
        (["--beta", "inf"], "beta"),
    ],
)
def test_bad_input_gets_one_sentence(labo: Run, noisy: Path, arguments: list[str], told: str):
    status, _, err = labo("labels", noisy, *arguments)
    assert status == 2
    assert told in err
    assert err.count("\n") == 1


def test_data_that_have_changed_are_refused(labo: Run, tmp_path: Path):
    path = tmp_path / "t.csv"
    frame = pd.DataFrame({"size": np.arange(60.0), "kind": ["x", "y"] * 30})
    frame.to_csv(path, index=False)
    asked = ["train", "--data", path, "--target", "kind", "--epochs", "1", "--output", tmp_path / "run"]
    assert labo(*asked)[0] == 0
    frame.assign(size=1.0 + frame["size"]).to_csv(path, index=False)
    status, _, err = labo("labels", tmp_path / "run")
    assert status == 2
    assert "have changed since" in err


@pytest.fixture
def comparison(tmp_path: Path, noisy: Path, labo: Run) -> Path:
    """A comparison of one run, as its folders lie, that `labo labels` has looked at."""
    assert labo("labels", noisy, "--top", "4")[0] == 0
    folder = tmp_path / "digits" / "labo" / "0"
    folder.mkdir(parents=True)
    for name in (trials.RUN, "labels.json"):
        (folder / name).write_bytes((noisy / name).read_bytes())
    (tmp_path / "results.jsonl").write_text(json.dumps(json.loads((noisy / trials.RECORD).read_text())) + "\n")
    return tmp_path


def test_the_report_of_a_comparison_shows_them(comparison: Path):
    html = report.build(comparison).read_text()
    assert "Suspicious labels" in html
    assert html.count("<img src=") == 4
    html = report.build(comparison, samples=False).read_text()
    assert "Suspicious labels" in html
    assert "<img" not in html
    (comparison / "digits" / "labo" / "0" / "labels.json").unlink()
    assert "Suspicious labels" not in report.build(comparison).read_text()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found.pop("top"),
        lambda found: found.update(top=[1]),
        lambda found: found.update(examples="many"),
        lambda found: found.update(planted={"count": None}),
        lambda found: found["top"][0].pop("q_given"),
    ],
)
def test_a_damaged_file_is_left_out_of_the_report(comparison: Path, spoil):
    path = comparison / "digits" / "labo" / "0" / "labels.json"
    found = json.loads(path.read_text())
    spoil(found)
    path.write_text(json.dumps(found))
    assert "Suspicious labels" not in report.build(comparison).read_text()


def test_text_and_pictures_from_outside_cannot_break_out(comparison: Path):
    found = reported.valid(read(comparison).label_issues("digits", "labo", 0))
    assert found is not None
    for key in ("example", "given", "other", "before"):
        found["top"][0][key] = '"><script>alert(1)</script>'
    found["method"] = "<img src=x>"
    assert "<script" not in reported.page(found)
    assert "<img src=x" not in reported.page(found)
    found["top"][1]["picture"] = 'data:image/png;base64,AAAA" onerror="alert(1)'
    assert "onerror" not in reported.page(found)
