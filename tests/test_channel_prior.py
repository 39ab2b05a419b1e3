"""labo[prior=channel]: the loss by hand, and trials that cross-fit, are killed, and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from experiments import trial
from labo import LabelRegularizedLoss, regularizers
from labo.cli import main
from labo.errors import UserError
from labo.experiment import cross_fitting, run_trial
from labo.experiment.folds import StageRunner
from labo.records import trial as trials

METHOD = "labo[prior=channel]"
NOISE = {"train_size": 300, "label_noise": "0.3"}


def loss_of(posterior: torch.Tensor, **options: Any) -> LabelRegularizedLoss:
    member = regularizers.create(METHOD, **options)
    member.provide(posterior=posterior)
    return LabelRegularizedLoss(member)


def test_the_loss_is_the_cross_entropy_of_the_smoothed_mixture():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    posterior = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.0, 1.0, 0.0, 0.0], [0.25] * 4, [0.0, 0.0, 0.5, 0.5]])
    labels, indices = torch.tensor([0, 3, 2]), torch.tensor([0, 1, 3])
    for alpha, epsilon in [(1.0, 0.0), (1.0, 0.3), (0.5, 0.2), (0.0, 0.1), (0.0, 0.0)]:
        target = (1 - alpha) * F.one_hot(labels, 4) + alpha * posterior[indices].double()
        target = (1 - epsilon) * target + epsilon / 4
        loss = loss_of(posterior, alpha=alpha, epsilon=epsilon)(logits, labels, indices=indices)
        torch.testing.assert_close(loss, F.cross_entropy(logits, target))


def test_ignored_rows_and_class_weights_count_as_in_cross_entropy():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    posterior = torch.eye(4)[:3]
    loss = loss_of(posterior, epsilon=0.0)(logits, torch.tensor([0, -100, 1]), indices=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(loss, F.cross_entropy(logits[[0, 2]], torch.tensor([0, 2])))


def test_it_is_in_the_state_and_knows_its_labels():
    first = loss_of(torch.eye(4))
    first(torch.zeros(2, 4), torch.tensor([0, 1]), indices=torch.tensor([0, 1]))
    second = loss_of(torch.full((4, 4), 0.25))
    second.load_state_dict(first.state_dict())
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    given = {"indices": torch.tensor([0, 1])}
    assert second(logits, torch.tensor([0, 1]), **given) == first(logits, torch.tensor([0, 1]), **given)
    with pytest.raises(UserError, match="the memory belongs to other data"):
        second(logits, torch.tensor([0, 2]), **given)


def test_many_classes_keep_the_largest():
    posterior = torch.zeros(5, 300)
    posterior[:, :20] = 0.05
    loss = loss_of(posterior, epsilon=0.0)(torch.zeros(1, 300), torch.tensor([0]), indices=torch.tensor([2]))
    assert loss.item() == pytest.approx(torch.tensor(300.0).log().item(), rel=1e-3)
    member = loss_of(posterior).regularizer
    assert sum(buffer.nbytes for buffer in member.buffers()) < posterior.nbytes / 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharpness": 2.0}, 'Option `sharpness` requires prior="memory"'),
        ({"beta": 2.0}, '`alpha` and `beta` must be a number and inf with prior="channel"'),
        ({"epsilon": 2.0}, "epsilon"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises((UserError, ValueError)) as refusal:
        regularizers.create(METHOD, **options)
    assert message in str(refusal.value)


@pytest.mark.parametrize("posterior", [torch.ones(4), torch.ones(4, 2), [[0.5, 0.5]]])
def test_posteriors_that_do_not_fit(posterior):
    with pytest.raises((UserError, ValueError), match="`posterior` to"):
        loss_of(posterior)


def test_it_needs_posteriors_and_indices():
    loss = LabelRegularizedLoss(regularizers.create(METHOD))
    with pytest.raises(UserError, match=r"needs posterior: call regularizer.provide\(posterior=labels\)"):
        loss(torch.zeros(2, 4), torch.tensor([0, 1]), indices=torch.tensor([0, 1]))
    with pytest.raises(UserError, match="pass indices"):
        loss_of(torch.eye(4))(torch.zeros(2, 4), torch.tensor([0, 1]))


# In a trial.


def channel_trial(**options: Any) -> trials.Trial:
    return trial(METHOD, task_options=NOISE, epochs=options.pop("epochs", 20), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channel") / "run"
    run_trial.run(channel_trial(), folder)
    return folder


def test_a_trial_tells_what_it_found_and_cost(whole):
    record = trials.read_record(whole)
    assert record is not None
    found = record["channel"]
    assert found["folds"] == 3
    assert found["networks"] in [candidate.name for candidate in cross_fitting.CANDIDATES]
    assert 0.15 < found["wrong"] < 0.4
    assert 30 < found["changed"] < 150
    assert 1 < found["cost"] <= 1 + 4 * 2 / 3
    assert record["seconds"] > found["seconds"] > 0
    assert "of the labels are wrong" in found["sentence"]
    assert not (whole / trials.CROSS_FIT).exists()


def test_a_trial_of_tuning_is_measured_on_the_validation_split(tmp_path):
    record = run_trial.run(channel_trial(tuning=True, epochs=1, set={"hidden": 8}), tmp_path)
    assert 0 < record["validation"]["accuracy"] < 1
    assert "metrics" not in record
    assert record["channel"]["cost"] > 1
    assert not (tmp_path / trials.LEARNT).exists()


def test_a_killed_stage_goes_on(whole, tmp_path):
    class StoppedError(Exception):
        pass

    shares: list[float] = []

    def stop(share: float) -> None:
        shares.append(share)
        if share > 0.3:  # of 0.75 for four folds: in the second
            raise StoppedError

    with pytest.raises(StoppedError):
        run_trial.run(channel_trial(save_seconds=0.0), tmp_path / "cut", stop)
    assert list((tmp_path / "cut" / trials.CROSS_FIT).glob(f"*/1/{trials.RECORD}"))
    resumed, record = run_trial.run(channel_trial(), tmp_path / "cut", shares.append), trials.read_record(whole)
    assert record is not None
    for key in ("metrics", "step"):
        assert resumed[key] == record[key]
    assert all(resumed["channel"][key] == record["channel"][key] for key in record["channel"] if key != "seconds")
    assert max(shares) <= 1


def test_runs_by_steps_folds_and_sequences_are_refused(whole, capsys):
    with pytest.raises(UserError, match="needs epochs, but the length of this run is set in steps"):
        run_trial.run(trial(METHOD, set={"steps": 5}), whole.parent / "steps")
    assert main(["labels", str(whole), "--folds", "2"]) == 2
    assert "has learnt from networks of its own folds: leave --folds out" in capsys.readouterr().err
    with pytest.raises(UserError, match="needs posterior: it is for one label per example"):
        run_trial.run(trial(METHOD, task="numbers"), whole.parent / "numbers")


def test_a_class_of_one_example_is_refused(tmp_path, monkeypatch):
    class One:
        train = type("Examples", (), {"target": torch.tensor([0, 0, 0, 1])})

    with pytest.raises(UserError, match="at least 2 training examples of every class"):
        cross_fitting.cross_fit(channel_trial(), tmp_path, One, StageRunner(lambda *_: iter(())))


def test_a_network_that_diverges_is_told(tmp_path):
    with pytest.raises(UserError, match="The networks of the first of 3 folds diverge"):
        run_trial.run(channel_trial(set={"learning_rate": 1e30}), tmp_path / "run")
