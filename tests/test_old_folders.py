"""Comparisons that an earlier version began: they are read, reported and finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from labo import cli, report
from labo.experiment import compare
from labo.experiment.compare import ComparisonConfig
from labo.records import comparison, trial
from test_compare import Watcher, lines

DEMO = Path(__file__).parents[1] / "results" / "demo"
FILES = (comparison.RESULTS, comparison.TUNING, comparison.COMPARISON)


def copied(folder: Path) -> Path:
    """The records of the demo, which an earlier version made, without its runs."""
    for name in FILES:
        shutil.copy(DEMO / name, folder)
    return folder


def demo_config(folder: Path) -> ComparisonConfig:
    """The configuration of the demo, as its compare.json has it."""
    plan = json.loads((DEMO / comparison.COMPARISON).read_text())
    options: dict[str, Any] = {key: plan[key] for key in ("task", "task_options", "methods", "baseline", "seeds")}
    options |= {key: plan[key] for key in ("settings_per_method", "tuning_seeds", "set", "checkpoint")}
    return ComparisonConfig(output=folder, jobs=1, **options)


@pytest.mark.parametrize("name", ["demo", "cifar10-9k", "multi30k-de-en"])
def test_records_are_read_as_they_were(name: str):
    folder = DEMO.parent / name
    recorded = comparison.read(folder)
    written = lines(folder / comparison.RESULTS)
    assert recorded.records == comparison.latest(written)
    assert recorded.comparison["methods"]
    task = report.summarize(recorded).tasks[0]
    for method in task.methods:
        values = {
            line["seed"]: line["metrics"][task.main.key]
            for line in written
            if line["method"] == method.method and line["task"] == task.task
        }
        assert method.estimates[task.main.key].values == values


def test_an_old_comparison_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["report", str(copied(tmp_path))]) == 0
    shown = capsys.readouterr().out
    assert "label_smoothing" in shown
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    before = (DEMO / "report.md").read_text(encoding="utf-8")
    rows = [line for line in before.splitlines() if line.startswith("| labo ") and "%" in line]
    assert rows
    assert all(row in written for row in rows)


def test_an_old_comparison_is_finished(tmp_path: Path):
    """Two of its trials were not recorded: one had not begun, one had and left its folder."""
    copied(tmp_path)
    written = lines(tmp_path / comparison.RESULTS)
    missing = [line for line in written if (line["method"], line["seed"]) in {("none", 2), ("label_smoothing", 5)}]
    kept = [line for line in written if line not in missing]
    (tmp_path / comparison.RESULTS).write_text("".join(json.dumps(line) + "\n" for line in kept))
    config = demo_config(tmp_path)
    begun = comparison.trial_folder(tmp_path, "digits", "none", 2)
    begun.mkdir(parents=True)
    settings = next(line["settings"] for line in missing if line["method"] == "none")
    description = {
        "task": "digits", "task_options": config.task_options, "data": "", "method": "none", "seed": 2,
        "settings": settings, "checkpoint": "last", "classes": [str(digit) for digit in range(10)],
        "preprocessing": {}, "versions": {"labo": "0.1.0"}, "class_counts": [40] * 10,
    }  # fmt: skip
    (begun / trial.RUN).write_text(json.dumps(description))
    (begun / trial.CURVE).write_text('{"epoch": 1.0, "step": 7, "loss": 2.0, "learning_rate": 0.001}\n')
    checkpoint = begun / trial.CHECKPOINTS / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 7}')  # of the training loop before
    watcher = Watcher()
    assert compare.run(config, watcher) == 0
    assert "1 trial that an earlier version interrupted start again." in watcher.said
    assert {(job.trial.method, job.trial.seed) for job in watcher.ran} == {("none", 2), ("label_smoothing", 5)}
    finished = lines(tmp_path / comparison.RESULTS)
    assert finished[: len(kept)] == kept
    old = {(line["method"], line["seed"]): line for line in missing}
    for line in finished[len(kept) :]:
        before = old[line["method"], line["seed"]]
        assert line.keys() >= before.keys()
        assert line["settings"] == before["settings"]
        assert line["metrics"].keys() >= before["metrics"].keys()
        assert line["metrics"]["accuracy"] == pytest.approx(before["metrics"]["accuracy"], abs=0.03)
    assert [line["epoch"] for line in lines(begun / trial.CURVE)] == list(range(1, 61))
    watcher = Watcher()
    assert compare.run(config, watcher) == 0
    assert watcher.ran == []
    assert report.build(tmp_path).is_file()
