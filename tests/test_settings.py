"""Settings: what overrides what, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

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
