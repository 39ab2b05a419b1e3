"""Settings searched by Optuna: the ranges, the budget, what a kill leaves, and the printed command."""

from __future__ import annotations

import itertools
import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from labo import regularizers, report, tasks
from labo.cli import main
from labo.cli import tune as cli
from labo.errors import UserError
from labo.experiment import compare, search, tuning
from labo.experiment import settings as flat
from labo.experiment.compare import ComparisonConfig
from labo.experiment.progress import ConsoleProgress
from labo.records.trial import PRUNED
from labo.regularizers.search_space import Range
from launch import start_labo, wait_until

NOISY = {"train_size": 100, "label_noise": "0.2,symmetric"}


def config(output: Path, **options: Any) -> ComparisonConfig:
    known: dict[str, Any] = {"methods": ["label_smoothing"], "tune": 2, "tuning_seeds": 1, "jobs": 1}
    known["set"] = {"hidden": 16}
    return ComparisonConfig(output=output, task_options=NOISY, **{**known, "seeds": 1, **options})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "tuning.jsonl").read_text().splitlines()]


def cost(folder: Path) -> float:
    return sum(line["cost"] for line in lines(folder))


def test_ranges_are_what_the_candidates_span():
    assert regularizers.ranges("label_smoothing") == {"epsilon": Range(0.1, 0.8)}
    assert regularizers.ranges("labo") == {"alpha": Range(0.1, 0.8), "beta": Range(1, 100, log=True)}
    assert regularizers.ranges("labo", {"beta": 2.0}) == {"alpha": Range(0.1, 0.8)}
    memory = regularizers.ranges("labo[prior=memory,decay=0.9]")
    assert memory == {"alpha": Range(0.0, 0.85), "sharpness": Range(1.0, 2.0), "epsilon": Range(0.0, 0.8)}
    # The default temperature, 4, is that of the candidates without one.
    assert regularizers.ranges("distillation")["temperature"] == Range(2.0, 4.0)
    assert regularizers.ranges("bootstrapping")["kind"] == Range(choices=("soft", "hard"))
    assert regularizers.ranges("zipf_smoothing") == {"strength": Range(0.03, 3.0, log=True)}
    assert regularizers.ranges("none") == {}


def test_every_method_has_a_space_whose_start_lies_in_it():
    task = tasks.create("digits")
    defaults, optimizer = task.default_settings(), task.optimizer_candidates()
    for method in regularizers.available():
        if not regularizers.is_tuned(method):
            continue
        start = tuning.candidates(method, 1, defaults, optimizer, {})[0]
        found = search.space(method, defaults, optimizer, {})
        assert found["epochs"] == Range(10, 60, log=True, whole=True)
        assert found["learning_rate"] == Range(1e-3, 4e-3)
        for name, each in found.items():
            assert start[name] in each.choices if each.choices else each.low <= start[name] <= each.high, (method, name)
        assert "epochs" not in search.space(method, defaults, optimizer, {"epochs": 3})


@pytest.mark.parametrize("text", ["12", "optuna", "optuna:", "optuna:x", "optuna:0", "optuna:inf", "grid:3"])
def test_other_searches_are_refused(text):
    with pytest.raises(UserError, match="Expected --tune optuna:N"):
        search.parse(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched") / "out"
    with ConsoleProgress() as progress:
        compare.tune(config(folder), progress)
    return folder


def test_the_budget_is_kept_and_the_defaults_come_first(whole):
    tried = lines(whole)
    assert {line["seed"] for line in tried} == {tuning.FIRST_SEED}
    assert (tried[0]["settings"]["epsilon"], tried[0]["settings"]["epochs"]) == (0.1, 60)
    assert 2 - 1 / 6 < cost(whole) <= 2
    for line in tried:
        share = line["settings"]["epochs"] / 60
        assert line["cost"] == pytest.approx(share, abs=1e-4) or line["failed"]["reason"] == PRUNED
        assert 10 <= line["settings"]["epochs"] <= 60
        assert line["settings"]["epsilon"] == float(f"{line['settings']['epsilon']:.3g}")


def test_a_comparison_goes_on_from_the_search_and_its_report_says_so(whole, capsys):
    with ConsoleProgress() as progress:
        assert compare.run(config(whole), progress) == 0
    assert cost(whole) <= 2  # nothing is searched again
    best = max(lines(whole), key=lambda line: line.get("validation", {}).get("accuracy", 0))
    record = json.loads((whole / "results.jsonl").read_text())
    assert record["settings"] == best["settings"]
    report.build(whole)
    assert "Settings were searched by Optuna" in (whole / "report.html").read_text()
    other = ["compare", "digits", "--methods", "label_smoothing", "--output", str(whole), "--seeds", "1"]
    noisy = ["--train-size", "100", "--label-noise", "0.2,symmetric"]
    assert main([*other, *noisy, "--set", "hidden=16", "--tune", "optuna:4", "--tuning-seeds", "1"]) == 2
    assert "another tune (optuna:2, now optuna:4)" in capsys.readouterr().err


def test_a_killed_search_ends_as_one_that_was_not(whole, tmp_path):
    words = ["tune", "digits", "--method", "label_smoothing", "--budget", "2", "--jobs", "1", "--train-size", "100"]
    words += ["--label-noise", "0.2,symmetric", "--output", str(tmp_path / "out"), "--save-every", "0"]
    words += ["--set", "hidden=16"]
    child = start_labo(*words)
    log = tmp_path / "out" / "tuning.jsonl"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= 2, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = len(lines(tmp_path / "out"))
    assert main(words) == 0
    found, expected = lines(tmp_path / "out"), lines(whole)
    assert len(found) > before

    def stable(line: dict[str, Any]) -> Any:
        return line["settings"], line.get("validation"), line["cost"]

    assert list(map(stable, found)) == list(map(stable, expected))


def test_the_printed_command_trains_what_was_found(tmp_path, capsys):
    out = str(tmp_path / "out")
    noisy = ["--train-size", "100", "--label-noise", "0.2,symmetric", "--set", "hidden=32"]
    assert main(["tune", "digits", "--method", "labo", "--budget", "1", "--jobs", "1", "--output", out, *noisy]) == 0
    (words,) = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("labo train")]
    assert words[:5] == ["labo", "train", "digits", "--method", "labo"]
    defaults = tasks.create("digits", **NOISY).default_settings()
    given = flat.parse([word for option, word in itertools.pairwise(words) if option == "--set"])
    epochs = int(words[words.index("--epochs") + 1])
    settings = flat.resolve(defaults, "labo", {**given, "epochs": epochs})
    assert settings in [line["settings"] for line in lines(tmp_path / "out")]
    assert settings["hidden"] == 32
    assert words[words.index("--label-noise") + 1] == "0.2,symmetric"


def test_options_of_tasks_in_the_command():
    options = {"data": "a b.csv", "leave_out": ["x", "y"], "skip_unreadable": True, "image_size": 32, "fetch": True}
    words = cli.train_command("image", "labo", options, {"prior": None, "augment": "none", "flag": True}, "best")
    assert shlex.join(words) == (
        "labo train image --method labo --data 'a b.csv' --leave-out x --leave-out y --skip-unreadable "
        "--option image_size=32 --option fetch=true --set prior=null --set augment=none --set flag=true "
        "--checkpoint best"
    )


def test_settings_behind_the_median_are_pruned_and_cost_what_they_ran(tmp_path):
    fixed = {"hidden": 16, "epochs": 12}  # one length, so only learning rate and decay vary
    with ConsoleProgress() as progress:
        compare.tune(config(tmp_path, methods=["none"], baseline="none", tune=10, set=fixed), progress)
    pruned = [line for line in lines(tmp_path) if line.get("failed")]
    assert pruned
    for line in pruned:
        assert line["failed"]["reason"] == PRUNED
        assert 3 / 12 <= line["cost"] < 1
    finished = [line for line in lines(tmp_path) if not line.get("failed")]
    assert len(finished) + len(pruned) > 10
    assert not [path for path in tmp_path.glob("digits/.tuning/*") if path.is_dir()]


@pytest.mark.slow
def test_several_seeds_and_processes(tmp_path):
    options = {"tuning_seeds": 2, "tune": 6, "jobs": 2, "set": {"epochs": 3, "hidden": 16}}
    with ConsoleProgress() as progress:
        settings, searched = compare.tune(config(tmp_path, **options), progress)
    assert searched == ["epsilon", "learning_rate", "weight_decay"]
    assert cost(tmp_path) <= 6
    tried = lines(tmp_path)
    whole = [line for line in tried if sum(other["settings"] == line["settings"] for other in tried) == 2]
    means: dict[str, list[float]] = {}
    for line in whole:
        if not line.get("failed"):
            means.setdefault(json.dumps(line["settings"]), []).append(line["validation"]["accuracy"])
    best = max(means, key=lambda key: sum(means[key]) if len(means[key]) == 2 else 0)
    assert sum(means[json.dumps(settings)]) == pytest.approx(sum(means[best]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["labo_auto"], "baseline": "labo_auto"}, "chooses its settings by itself"),
        ({"methods": ["distillation"], "baseline": "distillation"}, "needs a teacher on each seed"),
        ({"tune": 1, "tuning_seeds": 2}, "a budget of at least 2 plain trainings, one for each tuning seed, but got 1"),
    ],
)
def test_what_cannot_be_searched(tmp_path, options, message):
    with ConsoleProgress() as progress, pytest.raises(UserError, match=message):
        compare.tune(config(tmp_path, **options), progress)


def test_all_settings_that_diverge_are_told(tmp_path):
    with ConsoleProgress() as progress, pytest.raises(UserError, match="All settings of method 'none' failed"):
        compare.tune(
            config(tmp_path, methods=["none"], baseline="none", tune=1, set={"learning_rate": 1e30, "epochs": 2}),
            progress,
        )
