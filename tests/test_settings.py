"""Settings: what overrides what, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from labo import cli
from labo.errors import UserError
from labo.experiment import settings as flat
from labo.experiment import tuning

DEFAULTS: dict[str, Any] = {
    "epochs": 60, "batch_size": 64, "learning_rate": 2e-3, "weight_decay": 0.01, "schedule": "constant", "model": "mlp"
}  # fmt: skip
OPTIMIZER = ({}, {"learning_rate": 1e-3}, {"weight_decay": 0.1})


def test_values_are_read_as_people_write_them():
    found = flat.parse(["alpha=.5", "beta=inf", "steps=3", "learning_rate=1e-3", "prior=[0.5, 0.5]", "model=linear"])
    assert found == {
        "alpha": 0.5, "beta": math.inf, "steps": 3, "learning_rate": 1e-3, "prior": [0.5, 0.5], "model": "linear"
    }  # fmt: skip
    assert isinstance(found["steps"], int)
    assert flat.parse(["padding_index=none"]) == {"padding_index": "none"}
    assert flat.parse(["padding_index=null"]) == {"padding_index": None}


def test_a_config_is_yaml_or_the_run_json_of_a_run(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("# labo train --config a.yaml\nalpha: 0.3\nlearning_rate: 1e-3\nbeta: .inf\n")
    assert flat.read_config(path) == {"alpha": 0.3, "learning_rate": 1e-3, "beta": math.inf}
    (tmp_path / "run.json").write_text('{"method": "labo", "settings": {"alpha": 0.3, "beta": Infinity}}')
    assert flat.read_config(tmp_path / "run.json") == {"alpha": 0.3, "beta": math.inf}


@pytest.mark.parametrize(
    ("content", "told"),
    [("- a\n- b\n", "lines of KEY: VALUE"), ("a: [", "not YAML"), (None, "Cannot read"), ("1: 2", "KEY")],
)
def test_other_configs_get_one_sentence(tmp_path: Path, content: str | None, told: str):
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=told) as caught:
        flat.read_config(path)
    assert "\n" not in str(caught.value)


def test_later_layers_override_and_lengths_exclude_each_other():
    found = flat.resolve(DEFAULTS, "labo", {"alpha": 0.4, "epochs": 3}, {"alpha": 0.5, "epsilon": 0.3})
    assert found["alpha"] == 0.5
    assert found["beta"] == 2.0
    assert "epsilon" not in found  # an option of another method
    by_steps = flat.resolve(DEFAULTS, "labo", {"steps": 10})
    assert by_steps["steps"] == 10
    assert "epochs" not in by_steps
    assert flat.resolve(DEFAULTS, "none", {"batch_size": 32.0})["batch_size"] == 32
    training, options = flat.split(found, "labo")
    assert set(options) == {"alpha", "beta", "prior", "value"}
    assert training.keys() | options.keys() == found.keys()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epochs": 0}, "`epochs` to be a finite number above 0, but got 0"),
        ({"epochs": math.nan}, "`epochs`"),
        ({"steps": 2.5}, "`steps` to be a whole number above 0, but got 2.5"),
        ({"batch_size": 2.5}, "`batch_size` to be a whole number"),
        ({"batch_size": "many"}, "`batch_size` to be a number"),
        ({"learning_rate": -1}, "`learning_rate`"),
        ({"learning_rate": math.inf}, "`learning_rate`"),
        ({"weight_decay": -0.1}, "`weight_decay` to be a finite number of at least 0"),
        ({"model": 3}, "`model` to be a string"),
        ({"schedule": "cosin"}, "nearest is 'cosine'"),
    ],
)
def test_values_out_of_range_are_named(given: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        flat.resolve(DEFAULTS, "labo", given)


def test_what_no_method_has_is_refused():
    flat.check_known({"epsilon": 0.2, "alpha": 0.3, "steps": 3}, DEFAULTS, ["labo", "label_smoothing"])
    with pytest.raises(UserError, match="Unknown setting 'epsilon'"):
        flat.check_known({"epsilon": 0.2}, DEFAULTS, ["labo", "none"])
    with pytest.raises(UserError, match="either epochs or steps"):
        flat.check_known({"epochs": 1, "steps": 1}, DEFAULTS, ["labo"])
    with pytest.raises(UserError, match="KEY=VALUE"):
        flat.parse(["alpha"])
    with pytest.raises(UserError, match="twice"):
        flat.parse(["alpha=1", "alpha=2"])


@pytest.mark.parametrize("method", ["none", "label_smoothing", "confidence_penalty", "labo", "unigram_smoothing"])
@pytest.mark.parametrize("count", [1, 3])
def test_every_method_has_the_same_number_of_different_candidates(method: str, count: int):
    found = tuning.candidates(method, count, DEFAULTS, OPTIMIZER, {})
    assert len(found) == count
    assert all(found.count(settings) == 1 for settings in found)
    assert found[0] == flat.resolve(DEFAULTS, method)  # the first one is the default


def test_candidates_of_a_method_without_options_are_the_optimizers():
    found = tuning.candidates("none", 3, DEFAULTS, OPTIMIZER, {})
    assert [settings["learning_rate"] for settings in found] == [2e-3, 1e-3, 2e-3]
    assert [settings["weight_decay"] for settings in found] == [0.01, 0.01, 0.1]


def test_what_the_user_fixed_is_not_varied_and_the_number_stays():
    found = tuning.candidates("label_smoothing", 3, DEFAULTS, OPTIMIZER, {"epsilon": 0.25})
    assert {settings["epsilon"] for settings in found} == {0.25}
    assert len(found) == 3
    with pytest.raises(UserError, match="'none' has 3 different settings"):
        tuning.candidates("none", 4, DEFAULTS, OPTIMIZER, {})


def tried(settings: dict[str, Any], seed: int, accuracy: float | None, nll: float = 1.0) -> dict[str, Any]:
    validation = {} if accuracy is None else {"validation": {"accuracy": accuracy, "nll_scaled": nll}}
    return {"settings": settings, "seed": seed, **validation}


def test_the_best_mean_over_tuning_seeds_is_chosen():
    a, b, c = ({"epsilon": value} for value in (0.1, 0.2, 0.4))
    records = [
        tried(a, 0, 0.9),
        tried(a, 1, 0.8),
        tried(b, 0, 0.7),
        tried(b, 1, 0.99),
        tried(c, 0, 1.0),
        tried(c, 1, None),
    ]
    assert tuning.choose(records, [a, b, c], "accuracy") == a  # .85 against .845; c failed once
    assert tuning.choose(records[:-1], [a, b, c], "accuracy") == c
    assert tuning.choose([tried(a, 0, None), tried(b, 0, None)], [a, b], "accuracy") == a


def test_ties_go_to_the_lower_nll_then_to_the_earlier():
    a, b = {"epsilon": 0.1}, {"epsilon": 0.2}
    assert tuning.choose([tried(a, 0, 0.9, 0.3), tried(b, 0, 0.9, 0.2)], [a, b], "accuracy") == b
    assert tuning.choose([tried(a, 0, 0.9, 0.2), tried(b, 0, 0.9, 0.2)], [a, b], "accuracy") == a
    assert tuning.choose([tried(a, 0, 0.9, 0.3), tried(b, 0, 0.8, 0.2)], [a, b], "nll_scaled") == b


def test_plain_values_are_numbers_or_strings_and_never_dates_or_sexagesimals(tmp_path: Path):
    texts = {"a": "2024-01-31", "b": "1:30", "c": "012", "d": "1_000", "e": "[0.5, 1e-3, .inf, 1:30]", "f": "0x1F"}
    expected = {"a": "2024-01-31", "b": "1:30", "c": 12, "d": 1000, "e": [0.5, 1e-3, math.inf, "1:30"], "f": "0x1F"}
    assert flat.parse([f"{key}={text}" for key, text in texts.items()]) == expected
    path = tmp_path / "a.yaml"
    path.write_text("".join(f"{key}: {text}\n" for key, text in texts.items()))
    assert flat.read_config(path) == expected


@pytest.mark.parametrize("text", ["2024-99-99", "2024-01-31", "1:30", "1e18", "-3", "0", ".inf", ".nan", "true", "[3]"])
@pytest.mark.parametrize("setting", ["epochs", "steps", "batch_size", "accumulation"])
def test_what_is_no_count_is_refused(setting: str, text: str):
    with pytest.raises(UserError) as caught:
        flat.resolve(DEFAULTS, "labo", flat.parse([f"{setting}={text}"]))
    assert f"setting `{setting}` to be" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 3000, "--set x: the value is nested too deeply."),
        ("1" * 400, "is too large."),
        ("1" * 5000, "is too large."),
        ("[1e400]", "--set x: The number 1e400 is too large."),
        ("!!int x", "--set x: invalid literal"),
        ("!!timestamp 2024-99-99", "--set x: month must be in 1..12"),
    ],
)
def test_values_that_cannot_be_read_get_one_short_sentence(tmp_path: Path, text: str, told: str):
    with pytest.raises(UserError) as caught:
        flat.parse([f"x={text}"])
    assert told in str(caught.value)
    assert len(str(caught.value)) < 200
    (tmp_path / "a.yaml").write_text(f"x: {text}")
    with pytest.raises(UserError) as caught:
        flat.read_config(tmp_path / "a.yaml")
    assert told.partition(": ")[2] in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 200


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epochs": 1e18}, "`epochs` to be at most 1,000,000, but got 1e+18"),
        ({"steps": 10**400}, "`steps` to be at most 2,147,483,647, but got 1000"),
        ({"learning_rate": 1e300}, "`learning_rate` to be at most 1e+30, but got 1e+300"),
        ({"weight_decay": 1e300}, "`weight_decay` to be at most 1,000,000, but got 1e+300"),
        ({"schedule": "x" * 5000}, "Unknown schedule 'xxxx"),
        ({"model": ["x" * 5000]}, "`model` to be a string"),
    ],
)
def test_values_beyond_every_use_are_named_in_a_short_sentence(given: dict[str, Any], told: str):
    with pytest.raises(UserError) as caught:
        flat.resolve(DEFAULTS, "labo", given)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("hidden=1e18", "`hidden` to be at most 65,536"),
        ("hidden=0", "`hidden` to be a whole number of at least 1, but got 0"),
        ("layers=1e9", "`layers` to be at most 1,000"),
        ("layers=-1", "`layers` to be a whole number of at least 0, but got -1"),
        ("dropout=1", r"`dropout` to be in [0, 1), but got 1.0"),
        ("dropout=2024-01-01", "`dropout` to be a number (default 0.0), but got '2024-01-01'"),
        ("epochs=2024-99-99", "`epochs` to be a finite number above 0, but got '2024-99-99'"),
        ("epochs=1:30", "`epochs` to be a finite number above 0, but got '1:30'"),
        ("epochs=" + "[" * 3000, "--set epochs: the value is nested too deeply."),
        ("learning_rate=" + "1" * 5000, "is too large."),
    ],
)
def test_the_command_line_answers_each_with_one_sentence(tmp_path: Path, capsys: Any, setting: str, told: str):
    assert cli.main(["train", "digits", "--set", setting, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "run.json").exists()
