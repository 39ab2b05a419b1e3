"""One trial: one method on one seed with its settings, from the data to a record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labo.errors import UserError
from labo.experiment import settings as flat
from labo.storage import lacks_room, read_object, write_object

RUN, RECORD, WEIGHTS, ERROR = "run.json", "record.json", "model.safetensors", "error.txt"
# What must be the same for a run to be continued, and what that is called.
IDENTITY = ("task", "task_options", "data", "method", "seed", "settings", "checkpoint")


@dataclass(frozen=True)
class Trial:
    """What is run; all of it is JSON-able.

    `data` is the task's fingerprint of its data. `tuning` trials look at the validation split alone and keep nothing.
    `teacher` says which finished run teaches, for methods that need one, and `teacher_folder` where it lies. `fold`,
    "2/5", trains without the second of five parts of the training split and keeps the logits of that part alone.
    """

    task: str
    method: str
    seed: int
    settings: dict[str, Any]
    task_options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = "last"
    curves: bool = False
    save_seconds: float = 60.0
    tuning: bool = False
    data: str = ""
    teacher: str = ""
    teacher_folder: str = ""
    fold: str = ""

    @property
    def name(self) -> str:
        """The trial in words."""
        return f"{self.task}, {self.method}, seed {self.seed}" + (f", without fold {self.fold}" if self.fold else "")

    def identity(self) -> dict[str, Any]:
        """What makes it this trial."""
        found = {key: value for key, value in asdict(self).items() if key in IDENTITY}
        return found | {key: value for key in ("teacher", "fold") if (value := getattr(self, key))}


def finished(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run, or None."""
    return read_object(folder / RECORD)


def claim(trial: Trial, folder: Path) -> None:
    """Refuse a folder that holds another run.

    Raises:
        UserError: it does, or cannot be written.
    """
    known = read_object(folder / RUN)
    if known is not None:
        for key, value in trial.identity().items():
            if known.get(key) != value:
                raise UserError(
                    f"'{folder}' holds another run ({_change(key, known.get(key), value)}): name another one."
                )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What a kill or a mistake leaves before a run is written down, and a lock, are no run.
        if any(not path.name.startswith(".") and path.name != ERROR for path in folder.iterdir()):
            raise UserError(f"'{folder}' is not empty and holds no run: name another folder.")
    except OSError as error:
        raise UserError(f"Cannot write into '{folder}': {error.strerror or error}.") from error


def _change(key: str, before: Any, now: Any) -> str:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            if before.get(name) != now.get(name):
                return f"{name} was {before.get(name)}, now {now.get(name)}"
    return "the data have changed" if key == "data" else f"{key} was {before}, now {now}"


def run(trial: Trial, folder: Path, progress: Any = lambda share: None) -> dict[str, Any]:
    """Run a trial in `folder`, or continue it there; its record. Of several processes the first writes.

    The record of a tuning trial has "validation" in place of "metrics"; its folder can go once it is recorded. That of
    a fold has "held_out", the scores of the part left out. A trial whose loss is no number has "failed" with step and
    reason, and no metrics.

    Raises:
        UserError: the folder holds another run or a damaged checkpoint, the data will not do, or the disk is full.
    """
    from labo import ranks

    try:
        done = ranks.shared(lambda: _begin(trial, folder))
        if done is None:
            record = _run(trial, folder, progress)
            done = ranks.shared(lambda: _written(folder, record))
    except Exception as error:
        if not lacks_room(error):
            raise
        raise UserError(
            f"There is no room to write into '{folder}' ({getattr(error, 'strerror', None) or error}): make some, and "
            "the same command goes on from the last checkpoint."
        ) from error
    return done


def _begin(trial: Trial, folder: Path) -> dict[str, Any] | None:
    """Claim the folder; the record of what is finished there."""
    done = finished(folder)
    claim(trial, folder)
    if done is not None:
        _clear(folder)
    return done


def _written(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    write_object(folder / RECORD, record)
    _clear(folder)
    return record


def _clear(folder: Path) -> None:
    """Remove what only an interrupted run needs."""
    from labo.experiment import checkpoint

    shutil.rmtree(folder / checkpoint.CHECKPOINTS, ignore_errors=True)
    for name in (checkpoint.BEST, ERROR):
        (folder / name).unlink(missing_ok=True)


def _run(trial: Trial, folder: Path, progress: Any) -> dict[str, Any]:
    from labo import machine, ranks, tasks
    from labo.experiment import folds, measuring, teaching, training

    began = time.monotonic()
    task = tasks.create(trial.task, **trial.task_options)
    splits = task.splits(trial.seed)
    splits, held_out = folds.cut(splits, trial.fold, trial.seed) if trial.fold else (splits, None)
    model, loss = build(trial, task, splits)
    taught = teaching.teach(trial, loss.regularizer, splits)
    counts = splits.train.target.bincount(minlength=len(splits.classes)).tolist()
    about = {"classes": splits.classes, "preprocessing": splits.preprocessing, "class_counts": counts}
    about["versions"] = machine.versions()
    if ranks.together() > 1:
        about["processes"] = ranks.together()
    ranks.shared(lambda: write_object(folder / RUN, {**trial.identity(), **about}))
    record = {key: trial.identity()[key] for key in ("task", "method", "seed", "settings")}
    options = training.Options(trial.checkpoint, trial.curves, trial.save_seconds)
    tuned, _ = flat.split(trial.settings, trial.method)
    try:
        step = training.train(
            model,
            splits,
            loss,
            tuned,
            seed=trial.seed,
            folder=folder,
            options=options,
            augment=task.augmentation(splits, tuned),
            progress=progress,
        )
    except training.DivergedError as failure:
        record |= measuring.failed(failure)
    else:
        record |= ranks.shared(lambda: measuring.results(trial, model, loss, splits, held_out, step, folder))
    seconds = round(time.monotonic() - began + taught, 3)  # what a teacher cost is a part of the price
    return record | {"seconds": seconds, "versions": machine.versions()}


def build(trial: Trial, task: Any, splits: Any) -> tuple[Any, Any]:
    """(network with fresh weights of the trial's seed, loss with all that it needs).

    Raises:
        UserError: a setting of the network or an option of the method is out of range.
    """
    import torch

    from labo import checks, ranks
    from labo.experiment import feeding
    from labo.modules import LabelRegularizedLoss

    training, _ = flat.split(trial.settings, trial.method)
    regularizer = build_method(trial.method, trial.settings)
    try:
        checks.probabilities("prior", getattr(regularizer, "prior", None), len(splits.classes))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    if "steps" in training and {"epoch", "epochs"} & set(regularizer.needs):
        raise UserError(f"Method '{trial.method}' needs epochs, but this run is given by steps: give --epochs.")
    if training.get("channels_last") and len(splits.train.features.shape) != 4:
        raise UserError(
            f"Setting `channels_last` is for pictures, which task '{trial.task}' has none of: leave it out."
        )
    feeding.check(len(splits.train), training["batch_size"], training.get("accumulation", 1), ranks.together())
    torch.manual_seed(trial.seed)
    model = task.model(splits.classes, splits.preprocessing, training)
    if "class_counts" in regularizer.missing:
        regularizer.provide(class_counts=torch.bincount(splits.train.target, minlength=len(splits.classes)))
    return model, LabelRegularizedLoss(regularizer)


def build_method(name: str, settings: Mapping[str, Any]) -> Any:
    """The method with its options among `settings`.

    Raises:
        UserError: an option of the method is out of range.
    """
    from labo import regularizers

    _, options = flat.split(settings, name)
    try:
        return regularizers.create(name, **options)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
