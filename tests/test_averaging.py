"""The average of the weights: by hand, measured and kept in place of the weights, in the best epoch too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments import trial
from labo.errors import UserError
from labo.experiment import run_trial, saved_run
from labo.records import trial as trials
from labo.training import checkpoints
from labo.training.weight_averaging import MovingAverage


def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights of every step of the runs that follow."""
    steps: list[dict[str, Tensor]] = []
    update = MovingAverage.update

    def noted(self: MovingAverage, model: nn.Module) -> None:
        steps.append({name: value.clone() for name, value in model.state_dict().items()})
        update(self, model)

    monkeypatch.setattr(MovingAverage, "update", noted)
    return steps


def average(steps: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """What the documentation says, in float64."""
    found = {name: value.double() for name, value in steps[0].items()}
    for before, weights in enumerate(steps[1:], start=1):
        keep = min(decay, (1 + before) / (10 + before))
        found = {name: keep * value + (1 - keep) * weights[name].double() for name, value in found.items()}
    return found


def test_statistics_are_averaged_and_counters_are_not():
    layer = nn.Linear(3, 4)
    network = nn.Sequential(layer, nn.BatchNorm1d(4))
    averaged = MovingAverage(network, 0.9)
    steps = []
    for step in range(30):
        network(torch.randn(5, 3, generator=torch.Generator().manual_seed(step)))
        with torch.no_grad():
            layer.weight.add_(0.1)
        averaged.update(network)
        steps.append({name: value.clone() for name, value in network.state_dict().items()})
    expected = average(steps, 0.9)
    for name, value in averaged.model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value.item() == 30
        else:
            torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-6)
    assert not any(parameter.requires_grad for parameter in averaged.model.parameters())


def test_the_average_is_what_is_measured_and_kept(tmp_path, monkeypatch):
    steps = seen(monkeypatch)
    record = run_trial.run(trial("labo", epochs=3, set={"ema": 0.8}, curves=True), tmp_path)
    assert len(steps) == record["step"] == 21
    expected, kept = average(steps, 0.8), load_file(tmp_path / trials.WEIGHTS)
    for name, value in kept.items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-5)
        assert not torch.equal(value, steps[-1][name])
    measured = json.loads((tmp_path / "curve.jsonl").read_text().splitlines()[-1])
    found = saved_run.load(tmp_path).evaluate("validation")
    assert measured["validation_nll"] == pytest.approx(found["nll"])
    assert saved_run.load(tmp_path).evaluate("test") == pytest.approx(record["metrics"])


def test_the_best_epoch_is_of_the_average(tmp_path, monkeypatch):
    chosen = {"learning_rate": 0.03, "ema": 0.5}  # later epochs are worse than some earlier one
    steps = seen(monkeypatch)
    record = run_trial.run(trial("none", epochs=10, set=chosen, checkpoint="best"), tmp_path)
    assert record["step"] < 70
    expected, kept = average(steps[: record["step"]], 0.5), load_file(tmp_path / trials.WEIGHTS)
    for name, value in kept.items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-5, rtol=1e-4)


def test_nothing_is_written_of_what_is_off(tmp_path):
    off: dict[str, Any] = {"ema": 0, "accumulation": 1, "channels_last": False}
    assert trial("labo", set=off) == trial("labo")
    run_trial.run(trial("none", epochs=1, set=off), tmp_path)
    assert not off.keys() & json.loads((tmp_path / trials.RUN).read_text())["settings"].keys()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ema": 1.0}, r"`ema` to be in \[0, 1\), but got 1.0"),
        ({"ema": "on"}, "`ema` to be a number"),
        ({"accumulation": 0}, "`accumulation` to be a whole number above 0, but got 0"),
        ({"channels_last": 1}, "`channels_last` to be a boolean"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        trial("none", set=settings)


def test_a_checkpoint_without_the_average_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"lacks average\.safetensors"):
        checkpoints.load_average(nn.Linear(1, 1), tmp_path)
