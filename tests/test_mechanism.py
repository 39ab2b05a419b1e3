"""What members need reaches them: through the Trainer, by hand, over a kill, and over parts of a batch."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from experiments import trial
from labo import LabelRegularizedLoss, regularizers
from labo.cli import main
from labo.errors import UserError
from labo.experiment import compare, run_trial
from labo.experiment.compare import ComparisonConfig
from labo.integrations.checkpoint_files import checkpoints
from labo.integrations.transformers import LabelRegularizedTrainer, TrainerLoss
from labo.networks import FrozenCopy
from labo.outer.trust import Decision
from labo.records import trial as trials
from labo.records.trial import Job
from labo.regularizers.base import BATCH_INPUTS
from test_compare import Watcher

CLASSES, EXAMPLES, WIDTH, BATCH_SIZE, EPOCHS = 3, 24, 4, 4, 3
RATE = 0.5
METHODS = (*regularizers.available(), "labo[prior=memory]")
every = pytest.mark.parametrize("name", METHODS)
needing = pytest.mark.parametrize("name", [name for name in METHODS if regularizers.create(name).needs])
# Its draws are dealt out over the rows of a batch, and the last mini-batch is another one where batches are parts.
NOT_ROW_BY_ROW = ("beta_smoothing", "dlb")
STEPS = EPOCHS * EXAMPLES // BATCH_SIZE


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> Iterator[None]:
    """The Trainer collects garbage at the end, among all that was ever imported: most of the time of a short run."""
    gc.freeze()
    yield
    gc.unfreeze()


class Classifier(nn.Module):
    """Logits of features, with all that a resumed run may lose: dropout's draws and the statistics of batches."""

    def __init__(self, *, noisy: bool = True, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        between = (nn.BatchNorm1d(8), nn.Dropout(0.3)) if noisy else ()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 8), *between, nn.Tanh(), nn.Linear(8, classes))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(features)}


class Data(torch.utils.data.Dataset):
    """Examples as Transformers has them, one mapping each; `order` tells which were read, in what order."""

    def __init__(self, count: int = EXAMPLES) -> None:
        draw = torch.Generator().manual_seed(1)
        self.features = torch.randn(count, WIDTH, generator=draw)
        self.labels = torch.randint(0, CLASSES, (count,), generator=draw)
        self.order: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.order.append(index)
        return {"features": self.features[index], "labels": int(self.labels[index]), "unused": "a column of text"}


def member(name: str) -> regularizers.Regularizer:
    """A fresh member with what the user gives, and nothing that the Trainer does."""
    made = regularizers.create(name)
    if "decision" in made.missing:
        made.provide(decision=Decision("strong", "labo", {"prior": "memory"}, None, 2.0))
    if "kept" in made.missing:
        made.provide(kept=torch.arange(EXAMPLES))
    if "class_counts" in made.missing:
        made.provide(class_counts=Data().labels.bincount(minlength=CLASSES))
    if "teacher" in made.missing:
        teacher = Classifier()
        with torch.no_grad():
            teacher.state_dict()["layers.4.bias"].copy_(torch.tensor([0.5, -0.5, 0.0]))
        made.provide(teacher=teacher)
    return made


class Draws(TrainerCallback):
    """Makes what is drawn in a step a function of the step, so that a plain loop can draw the same."""

    def on_step_begin(self, args, state, control, **kwargs):
        torch.manual_seed(state.global_step)


class Stop(TrainerCallback):
    """Saves and stops, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def trainer(folder: Path, regularizer: regularizers.Regularizer, **options: Any) -> Any:
    model = options.pop("model", None) or Classifier(noisy=options.pop("noisy", True))
    data, callbacks = options.pop("data", None) or Data(), options.pop("callbacks", [])
    known = {"per_device_train_batch_size": BATCH_SIZE, "num_train_epochs": EPOCHS, "learning_rate": RATE}
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "use_cpu": True}
    plain = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "dataloader_pin_memory": False}
    return LabelRegularizedTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **(known | quiet | plain | options)),
        train_dataset=data,
        eval_dataset=Data(8),
        loss=LabelRegularizedLoss(regularizer),
        callbacks=callbacks,
    )


def same(ours: nn.Module, theirs: nn.Module) -> None:
    """What both hold is the same to the bit."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for key, value in mine.items():
        assert torch.equal(value, other[key]), key


@every
@pytest.mark.parametrize("step", [8, pytest.param(6, marks=pytest.mark.slow), pytest.param(17, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_if_it_was_not(tmp_path, name, step):
    adam = {"optim": "adamw_torch", "learning_rate": 0.05, "lr_scheduler_type": "linear"}
    whole = trainer(tmp_path / "whole", member(name), **adam)
    whole.train()
    assert whole.state.global_step == STEPS
    trainer(tmp_path / "cut", member(name), callbacks=[Stop(step)], **adam).train()
    (newest,) = checkpoints(tmp_path / "cut")
    torch.manual_seed(99)
    resumed = trainer(tmp_path / "cut", member(name), **adam)
    resumed.train(resume_from_checkpoint=str(newest))
    same(resumed.model, whole.model)
    same(resumed.loss.regularizer, whole.loss.regularizer)


def by_hand(name: str, order: list[int]) -> tuple[nn.Module, regularizers.Regularizer]:
    """The plain loop of the documentation, over batches in a given order."""
    model, data, regularizer = Classifier().train(), Data(), member(name)
    known = {"model": model, "examples": EXAMPLES, "epochs": EPOCHS}
    regularizer.provide(**{need: known[need] for need in regularizer.missing if need in known})
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    if regularizer.learnt():
        optimizer.add_param_group({"params": regularizer.learnt(), "weight_decay": 0.0})
    if "optimizer" in regularizer.missing:
        regularizer.provide(optimizer=optimizer)
    criterion = LabelRegularizedLoss(regularizer)
    draws = regularizers.SameClass(data.labels, seed=42)
    for step, batch in enumerate(torch.tensor(order).split(BATCH_SIZE)):
        torch.manual_seed(step)
        epoch, inputs = step * BATCH_SIZE // EXAMPLES, {"features": data.features[batch]}
        told = {"indices": batch, "inputs": inputs, "epoch": epoch, "step": step, "progress": step / STEPS}
        if "partners" in regularizer.needs:
            told["partners"] = {"features": data.features[draws.draw(batch, epoch)]}
        logits = model(**inputs)["logits"]
        needed = {need: told[need] for need in regularizer.needs if need in BATCH_INPUTS}
        loss = criterion(logits, data.labels[batch], **needed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, regularizer


@needing
def test_a_plain_loop_that_tells_the_same_trains_the_same(tmp_path, name):
    data = Data()
    ours = trainer(tmp_path, member(name), data=data, callbacks=[Draws()])
    data.order.clear()
    ours.train()
    # The examples in the order of training; partners are read between them, so a member without tells the order.
    if "partners" in ours.loss.regularizer.needs:
        data = Data()
        trainer(tmp_path / "order", member("none"), data=data).train()
    model, regularizer = by_hand(name, data.order)
    for mine, theirs in ((model, ours.model), (regularizer, ours.loss.regularizer)):
        expected = theirs.state_dict()
        for key, value in mine.state_dict().items():
            torch.testing.assert_close(value, expected[key], msg=lambda text, key=key: f"{key}: {text}")


@every
def test_parts_of_a_batch_have_the_gradient_of_the_batch(tmp_path, name):
    if name in NOT_ROW_BY_ROW:
        pytest.skip("its loss is not a function of one row at a time")
    found = []
    for parts in (1, 2):
        options = {"per_device_train_batch_size": BATCH_SIZE // parts, "gradient_accumulation_steps": parts}
        # Two epochs, for what is remembered of the first; at a low rate, which does not magnify what rounding does.
        made = trainer(
            tmp_path / str(parts), member(name), noisy=False, num_train_epochs=2, learning_rate=0.1, **options
        )
        made.train()
        found.append(made)
    whole, divided = found
    assert whole.state.global_step == divided.state.global_step == 2 * EXAMPLES // BATCH_SIZE
    for mine, theirs in ((divided.model, whole.model), (divided.loss.regularizer, whole.loss.regularizer)):
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[key], value, atol=1e-6, rtol=1e-6)


def test_a_moving_average_moves_once_a_step_however_many_parts_it_has(tmp_path, monkeypatch):
    moved, update = [], FrozenCopy.ema_update

    def counted(self: FrozenCopy, model: nn.Module, *, decay: float = 0.0) -> None:
        moved.append(decay)
        update(self, model, decay=decay)

    monkeypatch.setattr(FrozenCopy, "ema_update", counted)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_train_epochs": 1}
    trainer(tmp_path, member("beta_smoothing"), **parts).train()
    assert moved == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])


@needing
def test_measuring_in_between_changes_nothing(tmp_path, name):
    found = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 4}):
        made = trainer(tmp_path, member(name), num_train_epochs=2, callbacks=[Draws()], **options)
        made.train()
        found.append(made)
    plain, measured = found
    same(measured.model, plain.model)
    same(measured.loss.regularizer, plain.loss.regularizer)
    history = measured.state.log_history
    assert len([entry for entry in history if "eval_loss" in entry]) == 3
    if set(plain.loss.regularizer.needs) & set(BATCH_INPUTS):
        with torch.no_grad():
            logits = plain.model.eval()(Data(8).features)["logits"]
        expected = torch.nn.functional.cross_entropy(logits, Data(8).labels).item()
        assert history[-2]["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_examples_are_told_their_places_whatever_the_data_loader_does(tmp_path):
    class Seen(regularizers.Regularizer):
        name = "seen"

        @property
        def needs(self) -> tuple[str, ...]:
            return ("indices", "inputs")

        def losses(self, rows: Any) -> Tensor:
            torch.testing.assert_close(Data().features[rows.given["indices"]], rows.given["inputs"]["features"])
            assert set(rows.given["inputs"]) == {"features"}
            return torch.nn.functional.cross_entropy(rows.logits, rows.target, reduction="none")

    class Bare(Data):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {name: value for name, value in super().__getitem__(index).items() if name != "unused"}

    for data, options in ((Data(), {"dataloader_drop_last": True}), (Bare(), {"remove_unused_columns": False})):
        trainer(tmp_path, Seen(), data=data, per_device_train_batch_size=5, **options).train()


@pytest.mark.parametrize(
    "name", ["ps_kd", "online_smoothing", "cs_kd", "maxsup", "dlb", "beta_smoothing", "distillation"]
)
def test_the_loss_alone_says_who_tells_what_it_needs(name):
    regularizer = member(name)
    first = next(need for need in regularizer.needs if need in BATCH_INPUTS)
    with pytest.raises(UserError, match=f"'{name}' needs {first}, which LabelRegularizedTrainer passes"):
        TrainerLoss(LabelRegularizedLoss(regularizer))(torch.zeros(2, CLASSES), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", ["ps_kd", "online_smoothing", "self_adaptive_smoothing"])
def test_epochs_are_not_to_be_had_of_steps(tmp_path, name):
    with pytest.raises(
        UserError, match=rf"'{name}' needs epochs, but the length of this run is set in steps \(max_steps=5\)"
    ):
        trainer(tmp_path, member(name), max_steps=5)


def test_a_part_of_an_epoch_is_an_epoch(tmp_path):
    regularizer = member("ps_kd")
    trainer(tmp_path, regularizer, num_train_epochs=1.5).train()
    assert regularizer.provided("epochs") == 2


def test_what_the_user_has_to_give_is_asked_for(tmp_path):
    for name, told in (("distillation", "needs teacher: call"), ("unigram_smoothing", "needs class_counts: call")):
        with pytest.raises(UserError, match=f"'{name}' {told}"):
            trainer(tmp_path, regularizers.create(name)).train()


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    regularizer = regularizers.create("distillation")
    regularizer.provide(teacher=Classifier(classes=CLASSES + 1))
    with pytest.raises(UserError, match="Expected the teacher to have 3 classes, as the logits, but it has 4"):
        trainer(tmp_path, regularizer).train()


def test_a_member_belongs_to_one_network(tmp_path):
    regularizer = member("cs_kd")
    first = trainer(tmp_path, regularizer)
    trainer(tmp_path, regularizer, model=first.model)
    with pytest.raises(UserError, match="'cs_kd' was provided with another network before"):
        trainer(tmp_path, regularizer)
    with pytest.raises(UserError, match="pass `model`, not `model_init`"):
        LabelRegularizedTrainer(
            model_init=lambda: Classifier(),
            args=first.args,
            train_dataset=Data(),
            loss=LabelRegularizedLoss(member("dlb")),
        )


def stopped(folder: Path, name: str) -> str:
    """The checkpoint of a run that was stopped."""
    trainer(folder, member(name), callbacks=[Stop(8)]).train()
    (found,) = checkpoints(folder)
    return str(found)


def test_a_memory_of_other_examples_is_refused(tmp_path):
    checkpoint = stopped(tmp_path, "ps_kd")
    with pytest.raises(
        UserError, match="has stored a prediction of 24 x 3, but this training needs one of 28 x 3"
    ) as told:
        trainer(tmp_path, member("ps_kd"), data=Data(28)).train(resume_from_checkpoint=checkpoint)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["ls_plus", "unigram_smoothing"])
def test_a_memory_of_other_classes_is_refused(tmp_path, name):
    checkpoint = stopped(tmp_path, name)
    regularizer = regularizers.create(name)
    regularizer.provide(class_counts=torch.ones(CLASSES + 1))
    with pytest.raises(UserError, match="it was saved for other classes or examples") as told:
        trainer(tmp_path, regularizer).train(resume_from_checkpoint=checkpoint)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("saved", "now"), [("beta_smoothing", "none"), ("online_smoothing", "beta_smoothing")])
def test_a_memory_of_another_method_is_refused(tmp_path, saved, now):
    checkpoint = stopped(tmp_path, saved)
    with pytest.raises(UserError, match=f"does not fit method '{now}' and this network") as told:
        trainer(tmp_path, member(now)).train(resume_from_checkpoint=checkpoint)
    assert "\n" not in str(told.value)


# The project's own runs.


def labo(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--method", "distillation"], "Method 'distillation' needs a teacher: name the folder of a finished run"),
        (
            ["--method", "ps_kd", "--steps", "5"],
            "Method 'ps_kd' needs epochs, but the length of this run is set in steps",
        ),
        (["--method", "none", "--teacher", "anywhere"], "Method 'none' has no teacher, so --teacher does not apply."),
        (["--method", "distillation", "--teacher", "nowhere"], "No run in 'nowhere'."),
    ],
)
def test_the_command_line_says_in_one_sentence_what_is_missing(capsys, tmp_path, arguments, told):
    status, error = labo(capsys, "train", "digits", "--epochs", "1", "--output", tmp_path / "run", *arguments)
    if "--steps" in arguments:
        status, error = labo(capsys, "train", "digits", "--output", tmp_path / "run", *arguments)
    assert status == 2
    assert told in error
    assert error.startswith("labo: ")
    assert "\n" not in error


def test_a_teacher_that_may_have_seen_the_test_split_is_refused(tmp_path):
    from labo import tasks

    run_trial.run(trial("none", epochs=1), tmp_path / "teacher")
    given = {"epochs": 1, "teacher": "t", "teacher_folder": str(tmp_path / "teacher")}
    assert run_trial.run(trial("distillation", **given), tmp_path / "student")["metrics"]
    with pytest.raises(UserError, match=r"is of another seed \(0, here 1\)"):
        run_trial.run(trial("distillation", seed=1, **given), tmp_path / "other")
    with pytest.raises(UserError, match="inputs that were prepared otherwise"):
        run_trial.run(trial("distillation", task_options={"train_size": 100}, **given), tmp_path / "other")
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "".join(f"{i % 7},{'ab'[i % 2]}\n" for i in range(60)))
    options = tasks.create("table", data=str(path), target="y").options
    with pytest.raises(UserError, match=r"is of another task \(digits, here table\)"):
        run_trial.run(trial("distillation", task="table", task_options=options, **given), tmp_path / "other")


@pytest.mark.slow
@every
def test_the_projects_own_run_goes_on_where_it_was_stopped(tmp_path, name):
    class StoppedError(Exception):
        pass

    def stop(share: float) -> None:
        if share >= 10 / 21:
            raise StoppedError

    options: dict[str, Any] = {"epochs": 3.0, "set": {"dropout": 0.2}, "checkpoint": "best"}
    if "teacher" in regularizers.create(name).needs:
        run_trial.run(trial("none", epochs=1), tmp_path / "teacher")
        options |= {"teacher": "t", "teacher_folder": str(tmp_path / "teacher")}
    whole = run_trial.run(trial(name, **options), tmp_path / "whole")
    with pytest.raises(StoppedError):
        run_trial.run(trial(name, save_seconds=0.0, **options), tmp_path / "cut", stop)
    resumed = run_trial.run(trial(name, **options), tmp_path / "cut")
    assert resumed["metrics"] == whole["metrics"]
    assert (tmp_path / "cut" / "curve.jsonl").read_text() == (tmp_path / "whole" / "curve.jsonl").read_text()


def test_a_comparison_trains_teachers_once_a_seed_and_counts_what_they_cost(tmp_path):
    class KilledError(Exception):
        pass

    class Killing(Watcher):
        def finished(self, job: Job, record: Any) -> None:
            super().finished(job, record)
            if len(self.ran) == 5:
                raise KilledError

    methods = ("none", "distillation", "ps_kd")
    asked = ComparisonConfig(
        methods, tmp_path, seeds=2, baseline="none", settings_per_method=2, tuning_seeds=1, set={"epochs": 2.0}, jobs=1
    )
    first, second, third = Killing(), Watcher(), Watcher()
    with pytest.raises(KilledError):
        compare.run(asked, first)
    assert compare.run(asked, second) == 0
    # 3 teachers, 6 trials of tuning and 6 of the verdict; the fifth was recorded before the end came.
    assert (first.total, first.done, second.total, second.done) == (15, 0, 15, 5)
    ran = [*first.ran, *second.ran]
    assert len(ran) == 15
    teachers = [job for job in ran if job.folder.parent.name == ".teachers"]
    assert sorted(job.trial.seed for job in teachers) == [0, 1, 10_000]
    for line in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines()):
        folder = tmp_path / "digits" / ".teachers" / str(line["seed"])
        teacher = json.loads((folder / "record.json").read_text())
        if line["method"] == "distillation":
            assert line["seconds"] > teacher["seconds"]
        about = json.loads((tmp_path / "digits" / line["method"] / str(line["seed"]) / "run.json").read_text())
        assert ("teacher" in about) == (line["method"] == "distillation")
    assert compare.run(asked, third) == 0
    assert third.ran == []


def test_a_student_costs_what_its_teacher_did(tmp_path):
    run_trial.run(trial("none", epochs=1), tmp_path / "teacher")
    path = tmp_path / "teacher" / trials.RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 1000.0}))
    options = {"epochs": 1, "teacher": "t", "teacher_folder": str(tmp_path / "teacher")}
    assert 1000 < run_trial.run(trial("tf_kd_self", **options), tmp_path / "student")["seconds"] < 1100
