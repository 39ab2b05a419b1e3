"""One trial from its data to its record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from labo import checks, distributed, machine, tasks
from labo.errors import NonFiniteLogitsError, UserError
from labo.experiment import auto, cross_fitting, folds, replaced, saved_run
from labo.experiment import settings as flat
from labo.experiment.evaluators import Evaluator, make_evaluator
from labo.experiment.folds import RunJobs, StageRunner, UpdateJob
from labo.outer import health
from labo.records import trial as trials
from labo.records.storage import lacks_room, read_lines, write_object
from labo.records.trial import Job, Trial
from labo.regularized_loss import LabelRegularizedLoss
from labo.settings import TrainingSettings
from labo.training import checkpoints, data_loading
from labo.training.curve import DivergedError
from labo.training.loop import TrainingLoop

# Training inputs of a method that sentences, with many labels each, do not have.
SEQUENCES_LACK = {"inputs", "partners", "dense_logits", "teacher", "decision", "posterior", "kept"}
# Training inputs that belong to single examples; mixtures of two are none.
SINGLE_EXAMPLE = {"indices", "partners", "decision", "posterior"}
# What is found out by trials of folds before the training: the input of the method, the record's entry, and the stage.
STAGES: dict[str, tuple[str, Callable[..., tuple[Any, dict[str, Any]]]]] = {
    "decision": ("decision", auto.decide),
    "posterior": ("channel", cross_fitting.cross_fit),
    "kept": ("pruning", cross_fitting.keep_confident),
}
# The fraction of a trial's progress that a stage takes.
STAGE_FRACTION = 0.75

Progress = Callable[[float], None]
Record = dict[str, Any]


def run(
    trial: Trial,
    folder: Path,
    progress: Progress = lambda fraction: None,
    *,
    phase: Callable[[str], None] = lambda words: None,
    run_folds: RunJobs | None = None,
) -> Record:
    """Run a trial in `folder`, or resume it there; returns its record. Of several processes the first writes.

    `phase` receives what runs, in words. `run_folds` runs the trials of folds, by default one after the other here.

    The record of a tuning trial has "validation" in place of "metrics"; its folder can be removed once it is recorded.
    That of a fold has "held_out", the scores of the part left out. A trial that diverged has "failed" with step and
    reason, and no metrics.

    Raises:
        UserError: the folder holds another trial or a damaged checkpoint, the data are unfit, or the disk is full.
    """
    try:
        record = distributed.broadcast_from_main(lambda: _claim(trial, folder))
        if record is None:
            runner = StageRunner(run_folds or _in_turn, phase, _first(progress, STAGE_FRACTION))
            own = _run(trial, folder, progress, runner)
            record = distributed.broadcast_from_main(lambda: trials.finish(folder, own))
    except Exception as error:
        if not lacks_room(error):
            raise
        raise UserError(
            f"There is no room to write into '{folder}' ({getattr(error, 'strerror', None) or error}): make some, and "
            "the same command goes on from the last checkpoint."
        ) from error
    return record


def _claim(trial: Trial, folder: Path) -> Record | None:
    """Claim the folder; returns the record of a trial that is finished there."""
    record = trials.read_record(folder)
    trials.claim(trial, folder)
    if record is not None:
        trials.remove_unfinished(folder)
    return record


def has_stage(trial: Trial) -> bool:
    """Whether networks of folds are trained before the trial's own network."""
    return any(need in flat.create_method(trial.method, trial.settings).needs for need in STAGES)


def _in_turn(jobs: Sequence[Job], update: UpdateJob) -> Iterator[tuple[Job, Record]]:
    """Run jobs one after the other in this process."""
    for job in jobs:
        yield job, run(job.trial, job.folder, lambda fraction, job=job: update(job, fraction))


def _run(trial: Trial, folder: Path, progress: Progress, runner: StageRunner) -> Record:
    start, earlier_seconds = time.monotonic(), 0.0
    task = tasks.create(trial.task, **trial.task_options)
    splits, held_out = _splits(trial, task)
    model, loss = build(trial, task, splits)
    if "teacher" in loss.regularizer.missing:
        earlier_seconds = _provide_teacher(trial, loss.regularizer, splits)
    settings, _ = flat.split(trial.settings, trial.method)
    files = {**splits.files, **task.model_files(model, settings)}
    distributed.broadcast_from_main(lambda: trials.describe(trial, folder, _details(splits), files))
    record = {key: trial.identity()[key] for key in ("task", "method", "seed", "settings")}
    for need, (key, stage) in STAGES.items():
        if need in loss.regularizer.missing:
            value, record[key] = stage(trial, folder, splits, runner)
            runner.phase("training the final network")
            start, earlier_seconds = time.monotonic(), record[key]["seconds"]
            progress = _remaining(progress, STAGE_FRACTION)
            if need == "kept":
                splits = replace(splits, train=splits.train.subset(value))
            model, loss = build(trial, task, splits, **{need: value})
    evaluator = make_evaluator(task.kind, splits.preprocessing, splits.files, settings)
    best = trial.checkpoint == "best"

    def validate(network: Any) -> tuple[dict[str, float], float]:
        return evaluator.validate(network, splits.validation, best=best)

    _reset_peak_memory()
    try:
        loop = TrainingLoop(
            model,
            splits,
            loss,
            TrainingSettings.from_mapping(settings),
            seed=trial.seed,
            folder=folder,
            validate=validate if trial.curves or best else None,
            keep_best=best,
            save_seconds=trial.save_seconds,
            augment=task.augmentation(splits, settings),
            fsdp=trial.fsdp,
            progress=progress,
        )
        step = loop.run()
    except DivergedError as failure:
        record |= _failed(failure.step, failure.reason)
    else:
        memory = _peak_memory()
        record |= distributed.broadcast_from_main(
            lambda: _measure(trial, evaluator, model, loss, splits, held_out, step, folder)
        )
        if record.keys() & {key for key, _ in STAGES.values()} and record.get("metrics"):
            targets = loss.regularizer.training_targets(splits.train.target, len(splits.classes))
            learnt = replaced.describe(task, splits, targets) | {"epoch": round(step / loop.steps_per_epoch, 2)}
            distributed.broadcast_from_main(lambda: write_object(folder / trials.LEARNT, learnt))
        record |= {} if memory is None else {"peak_memory": memory}
    seconds = round(time.monotonic() - start + earlier_seconds, 3)  # a teacher or a decision is part of the cost
    return record | {"seconds": seconds, "versions": machine.versions()}


def _reset_peak_memory() -> None:
    machine.reset_peak_memory()
    if distributed.device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> int | None:
    """The most bytes of the training: allocated on the GPU, else of the process."""
    if distributed.device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return machine.peak_memory()


def _splits(trial: Trial, task: Any) -> tuple[Any, Any]:
    """(splits of the trial, the examples of its fold or None)."""
    splits = task.splits(trial.seed)
    if not trial.fold:
        return splits, None
    splits, held_out = folds.leave_out(splits, trial.fold, trial.seed)
    if trial.curves and trial.checkpoint == "last":
        splits = replace(splits, validation=held_out)  # the curve is of what the fold leaves out
    return splits, held_out


def _details(splits: Any) -> dict[str, Any]:
    """What run.json says beside the trial's identity."""
    details = {"classes": splits.classes, "preprocessing": splits.preprocessing, "versions": machine.versions()}
    if splits.classes:
        details["class_counts"] = splits.train.class_counts(splits.size).tolist()
    if distributed.world_size() > 1:
        details["processes"] = distributed.world_size()
    return details


def _first(progress: Progress, part: float) -> Progress:
    """The progress of what comes first, a fraction `part`."""
    return lambda fraction: progress(part * fraction)


def _remaining(progress: Progress, done: float) -> Progress:
    """The progress of what remains after a fraction `done`."""
    return lambda fraction: progress(done + (1 - done) * fraction)


def build(trial: Trial, task: Any, splits: Any, **provided: Any) -> tuple[Any, LabelRegularizedLoss]:
    """(network with fresh weights of the trial's seed, loss), with inputs `provided` for the method.

    Raises:
        UserError: a setting of the network or an option of the method is out of range, or they exclude each other.
    """
    settings, _ = flat.split(trial.settings, trial.method)
    regularizer = flat.create_method(trial.method, trial.settings)
    regularizer.provide(**provided)
    _check(trial, settings, regularizer, splits)
    if "batch_size" in settings:
        data_loading.check_divisible(
            len(splits.train), settings["batch_size"], settings.get("accumulation", 1), distributed.world_size()
        )
    torch.manual_seed(trial.seed)
    model = task.model(splits.classes, splits.preprocessing, settings)
    if "class_counts" in regularizer.missing:
        regularizer.provide(class_counts=splits.train.class_counts(splits.size))
    return model, LabelRegularizedLoss(regularizer)


def _check(trial: Trial, settings: Mapping[str, Any], regularizer: Any, splits: Any) -> None:
    """Refuse settings that do not fit each other, the method or the task."""
    try:
        checks.probabilities("prior", getattr(regularizer, "prior", None), splits.size)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    needs = set(regularizer.needs)
    if "kept" in needs and find_spec("cleanlab") is None:
        raise UserError(f"Method '{trial.method}' needs the package cleanlab: pip install cleanlab.")
    if "steps" in settings and {"epoch", "epochs"} & needs:
        raise UserError(
            f"Method '{trial.method}' needs epochs, but the length of this run is set in steps: use --epochs."
        )
    if splits.sequences and (unfit := SEQUENCES_LACK & needs):
        raise UserError(
            f"Method '{trial.method}' needs {min(unfit)}: it is for one label per example, and the sentences of task "
            f"'{trial.task}' have many."
        )
    if (settings.get("mixup") or settings.get("cutmix")) and (unfit := SINGLE_EXAMPLE & needs):
        raise UserError(
            f"Method '{trial.method}' needs {min(unfit)}: it follows single images, and mixup and cutmix train on "
            "mixtures of two: leave them out."
        )
    if settings.get("channels_last") and len(getattr(splits.train.features, "shape", ())) != 4:
        raise UserError(f"Setting `channels_last` is for images, which task '{trial.task}' has none of: leave it out.")
    if settings.get("patience") and trial.checkpoint != "best":
        raise UserError("Setting `patience` requires --checkpoint best.")
    if settings.get("average_epochs") and trial.checkpoint == "best":
        raise UserError("Setting `average_epochs` is the mean of the last epochs: leave --checkpoint best out.")


def _provide_teacher(trial: Trial, regularizer: Any, splits: Any) -> float:
    """Give the method its teacher, the network of a finished run; returns the seconds of the teacher's training.

    Raises:
        UserError: there is no teacher, or it was trained on other data or another split, so that it may have seen what
            this trial is tested on.
    """
    if not trial.teacher_folder:
        raise UserError(f"Method '{trial.method}' needs a teacher: name the folder of a finished run with --teacher.")
    teacher = saved_run.load(Path(trial.teacher_folder))
    own = {"task": trial.task, "data": trial.data, "seed": trial.seed, "classes": list(splits.classes)}
    for key, value in own.items():
        if teacher.description[key] != value:
            change = "" if key in ("data", "classes") else f" ({teacher.description[key]}, here {value})"
            raise UserError(f"The teacher in '{teacher.folder}' is of another {key}{change}: train one as this run is.")
    if json.dumps(teacher.description["preprocessing"]) != json.dumps(splits.preprocessing):
        raise UserError(
            f"The teacher in '{teacher.folder}' was trained on inputs that were prepared otherwise: train one with the "
            "options of this task."
        )
    regularizer.provide(teacher=teacher.model)
    return float(teacher.record["seconds"])


def _failed(step: int, reason: str) -> Record:
    return {"metrics": {}, "failed": {"step": step, "reason": reason}}


def _measure(
    trial: Trial, evaluator: Evaluator, model: Any, loss: Any, splits: Any, held_out: Any, step: int, folder: Path
) -> Record:
    """What the record says of the trained network, which is saved first: a failure here must not cost the training."""
    notes: list[str] = []
    try:
        if held_out is not None:
            return {"held_out": folds.save_logits(model, held_out, folder), **_agreement(loss, splits)}
        if trial.tuning:
            return _tuning_record(evaluator, model, splits)
        checkpoints.save_weights(model, folder / trials.WEIGHTS)
        memory = loss.regularizer.prediction_memory
        if memory is not None and not splits.sequences:
            checkpoints.save_tensors(memory.state_dict(), folder / trials.MEMORY)
            notes = _memory_warnings(memory, splits, folder)
        metrics = evaluator.test_metrics(model, loss, splits, folder)
    except NonFiniteLogitsError:
        for file in (trials.WEIGHTS, trials.MEMORY):
            (folder / file).unlink(missing_ok=True)  # a failed trial keeps none
        return _failed(step, "the trained network gives non-finite logits")
    return {**metrics, "step": step, **({"notes": notes} if notes else {})}


def _tuning_record(evaluator: Evaluator, model: Any, splits: Any) -> Record:
    validation = evaluator.tuning_metrics(model, splits.validation)
    signatures = {name: signature for name, signature in evaluator.signatures().items() if name in validation}
    return {"validation": validation, **({"signatures": signatures} if signatures else {})}


def _memory_warnings(memory: Any, splits: Any, folder: Path) -> list[str]:
    """Signs that a method's memory of the training examples has gone wrong."""
    distributions = _distributions(memory, splits)
    return health.signs(distributions, splits.train.target, splits.classes, read_lines(folder / trials.CURVE))


def _agreement(loss: Any, splits: Any) -> Record:
    """The share of training labels that the method's memory agrees with; empty without a memory."""
    memory = loss.regularizer.prediction_memory
    if memory is None:
        return {}
    return {"agreement": health.agreement(_distributions(memory, splits), splits.train.target)}


def _distributions(memory: Any, splits: Any) -> Any:
    return memory.all_distributions(len(splits.train), len(splits.classes)).cpu()
