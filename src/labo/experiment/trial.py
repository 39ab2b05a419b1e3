"""One trial: one method on one seed with its settings, from the data to a record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labo.errors import UserError
from labo.experiment import settings as flat
from labo.storage import lacks_room, read_object, write_bytes, write_object

RUN, RECORD, WEIGHTS, ERROR = "run.json", "record.json", "model.safetensors", "error.txt"
# What the method remembers of the training examples, where it remembers predictions.
MEMORY = "memory.safetensors"
# What training can tell a method of examples with one label each, and not of sentences.
SEQUENCES_LACK = {"inputs", "partners", "dense_logits", "teacher", "decision"}
# What follows single examples from epoch to epoch, or to others of their class; mixed pictures are none.
SINGLE = {"indices", "partners", "decision"}
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
    from labo import distributed

    try:
        done = distributed.broadcast_from_main(lambda: _begin(trial, folder))
        if done is None:
            record = _run(trial, folder, progress)
            done = distributed.broadcast_from_main(lambda: _written(folder, record))
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
    from labo.experiment import auto
    from labo.training import checkpoints

    shutil.rmtree(folder / auto.FOLDER, ignore_errors=True)
    shutil.rmtree(folder / checkpoints.CHECKPOINTS, ignore_errors=True)
    for name in (checkpoints.BEST, ERROR):
        (folder / name).unlink(missing_ok=True)


def _run(trial: Trial, folder: Path, progress: Any) -> dict[str, Any]:
    from labo import distributed, machine, tasks
    from labo.experiment import auto, folds, measuring, teaching
    from labo.experiment.judges import judge_of
    from labo.training.curve import DivergedError
    from labo.training.loop import TrainingLoop
    from labo.training.settings import TrainingSettings

    began = time.monotonic()
    task = tasks.create(trial.task, **trial.task_options)
    splits = task.splits(trial.seed)
    splits, held_out = folds.cut(splits, trial.fold, trial.seed) if trial.fold else (splits, None)
    if trial.curves and held_out is not None and trial.checkpoint == "last":
        splits = replace(splits, validation=held_out)  # the curve is of what the fold leaves out
    model, loss = build(trial, task, splits)
    taught = teaching.teach(trial, loss.regularizer, splits)
    tuned, _ = flat.split(trial.settings, trial.method)
    files = {**splits.files, **task.model_files(model, tuned)}
    distributed.broadcast_from_main(lambda: _describe(trial, splits, files, folder))
    record = {key: trial.identity()[key] for key in ("task", "method", "seed", "settings")}
    if "decision" in loss.regularizer.missing:
        decision, record["decision"] = auto.decide(trial, folder, splits, run, lambda share: progress(0.75 * share))
        taught, progress = record["decision"]["seconds"], _rest(progress, 0.75)
        model, loss = build(trial, task, splits, decision)  # as if it had been chosen by hand
        began = time.monotonic()
    best = trial.checkpoint == "best"
    judge = judge_of(task.kind, splits.preprocessing, splits.files, tuned)

    def validate(network: Any) -> tuple[dict[str, float], float]:
        return judge.of_epoch(network, splits.validation, best=best)

    try:
        step = TrainingLoop(
            model,
            splits,
            loss,
            TrainingSettings.from_mapping(tuned),
            seed=trial.seed,
            folder=folder,
            validate=validate if trial.curves or best else None,
            keep_best=best,
            save_seconds=trial.save_seconds,
            augment=task.augmentation(splits, tuned),
            progress=progress,
        ).run()
    except DivergedError as failure:
        record |= measuring.failed(failure)
    else:
        record |= distributed.broadcast_from_main(
            lambda: measuring.results(trial, judge, model, loss, splits, held_out, step, folder)
        )
    seconds = round(time.monotonic() - began + taught, 3)  # what a teacher cost is a part of the price
    return record | {"seconds": seconds, "versions": machine.versions()}


def _describe(trial: Trial, splits: Any, files: Mapping[str, bytes], folder: Path) -> None:
    """Write down what the run is, and the files that its task needs to read new inputs and build its network."""
    from labo import distributed, machine

    about = {"classes": splits.classes, "preprocessing": splits.preprocessing, "versions": machine.versions()}
    if splits.classes:
        about["class_counts"] = splits.train.class_counts(splits.size).tolist()
    if distributed.world_size() > 1:
        about["processes"] = distributed.world_size()
    if files:
        about["files"] = sorted(files)
    write_object(folder / RUN, {**trial.identity(), **about})
    for name, content in files.items():
        write_bytes(folder / name, content)


def _rest(progress: Any, done: float) -> Any:
    """Tells the progress of what is left after a share that is `done`."""
    return lambda share: progress(done + (1 - done) * share)


def build(trial: Trial, task: Any, splits: Any, decision: Any = None) -> tuple[Any, Any]:
    """(network with fresh weights of the trial's seed, loss with all that it needs).

    `decision` is for a method that decides by itself.

    Raises:
        UserError: a setting of the network or an option of the method is out of range.
    """
    import torch

    from labo import distributed
    from labo.modules import LabelRegularizedLoss
    from labo.training.data_loading import check_divisible

    training, _ = flat.split(trial.settings, trial.method)
    regularizer = build_method(trial.method, trial.settings)
    if decision is not None:
        regularizer.provide(decision=decision)
    _check(trial, training, regularizer, splits)
    if "batch_size" in training:
        check_divisible(
            len(splits.train), training["batch_size"], training.get("accumulation", 1), distributed.world_size()
        )
    torch.manual_seed(trial.seed)
    model = task.model(splits.classes, splits.preprocessing, training)
    if "class_counts" in regularizer.missing:
        regularizer.provide(class_counts=splits.train.class_counts(splits.size))
    return model, LabelRegularizedLoss(regularizer)


def _check(trial: Trial, training: Mapping[str, Any], regularizer: Any, splits: Any) -> None:
    """Refuse settings that do not fit each other, the method or the task."""
    from labo import checks

    try:
        checks.probabilities("prior", getattr(regularizer, "prior", None), splits.size)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    if "steps" in training and {"epoch", "epochs"} & set(regularizer.needs):
        raise UserError(f"Method '{trial.method}' needs epochs, but this run is given by steps: give --epochs.")
    if unfit := SEQUENCES_LACK & set(regularizer.needs) if splits.sequences else None:
        raise UserError(
            f"Method '{trial.method}' needs {min(unfit)}: it is for one label an example, and the sentences of task "
            f"'{trial.task}' have many."
        )
    if (training.get("mixup") or training.get("cutmix")) and (unfit := SINGLE & set(regularizer.needs)):
        raise UserError(
            f"Method '{trial.method}' needs {min(unfit)}: it follows single pictures, and mixup and cutmix train on "
            "mixtures of two: leave them out."
        )
    if training.get("channels_last") and len(getattr(splits.train.features, "shape", ())) != 4:
        raise UserError(
            f"Setting `channels_last` is for pictures, which task '{trial.task}' has none of: leave it out."
        )
    if training.get("patience") and trial.checkpoint != "best":
        raise UserError("Setting `patience` waits for a better epoch: give --checkpoint best with it.")
    if training.get("average_epochs") and trial.checkpoint == "best":
        raise UserError("Setting `average_epochs` is the mean of the last epochs: leave --checkpoint best out.")


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
