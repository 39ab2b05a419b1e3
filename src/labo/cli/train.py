"""`labo train`: one run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labo.cli import options, scores
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.records.trial import Trial


def train(
    task: options.TaskName = None,
    method: Annotated[str, typer.Option(help="A method that `labo methods` lists.")] = "labo",
    seed: Annotated[int, typer.Option(help="Seed of the split, the initialisation and the data order.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="The output folder of the run.", show_default="runs/train/TASK-METHOD-SEED")
    ] = None,
    data: options.Data = None,
    source: options.Source = None,
    target: options.Target = None,
    split: options.Split = None,
    separator: options.Separator = None,
    decimal: options.Decimal = None,
    leave_out: options.LeaveOut = None,
    train_size: options.TrainSize = None,
    label_noise: options.LabelNoise = None,
    skip_unreadable: options.SkipUnreadable = None,
    max_bytes: options.MaxBytes = None,
    option: options.Option = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    start_after: options.StartAfter = None,
    model: options.Model = None,
    set_: options.Set = None,
    config: options.Config = None,
    checkpoint: options.Checkpoint = "last",
    curves: options.Curves = True,
    save_every: options.SaveEvery = 60.0,
    teacher: Annotated[
        Path | None, typer.Option(help="The folder of a finished run, for methods that need a teacher.")
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Threads on the CPU; the last digits of the results depend on their number.")
    ] = 1,
) -> int:
    """Train one method on one seed.

    The same command with the same --output resumes an interrupted run. For several processes, use
    `torchrun --nproc-per-node N -m labo train …`.
    """
    from labo import distributed
    from labo.records import lock

    options.limit_unpacked(max_bytes)
    overrides = options.settings(config, set_, epochs, steps, model, start_after)
    data_options = {"data": data, "source": source, "target": target, "split": split}
    reading = {"separator": separator, "decimal": decimal, "leave_out": leave_out or None}
    sampling = {"train_size": train_size, "label_noise": label_noise, "skip_unreadable": skip_unreadable}
    name, task_options = options.task(task, option, **data_options, **reading, **sampling)
    if threads < 1:
        raise UserError(f"Expected --threads of at least 1, but got {threads}.")
    trial_options = {"checkpoint": options.known_checkpoint(checkpoint), "curves": curves, "save_seconds": save_every}
    trial_options |= {"threads": threads}
    with distributed.process_group():
        # The main process first, because it may download the data.
        trial, notes = distributed.main_process_first(
            lambda: _trial(name, task_options, method, seed, overrides, teacher, trial_options)
        )
        folder = output or Path("runs/train") / f"{options.slug(name, data or source)}-{method}-{seed}"
        if not distributed.is_main_process():
            return _follow(trial, folder)
        with lock.hold(folder):
            return _run(trial, folder, notes)


def _trial(
    name: str,
    task_options: dict[str, Any],
    method: str,
    seed: int,
    overrides: dict[str, Any],
    teacher: Path | None,
    trial_options: dict[str, Any],
) -> tuple[Trial, Sequence[str]]:
    """The trial, and notes about its data."""
    from labo import tasks
    from labo.experiment import settings as flat
    from labo.experiment.outlook import data_sentence
    from labo.records.trial import Trial

    if not 0 <= seed < 2**32:
        raise UserError(f"Expected --seed to be from 0 to 2**32 - 1, but got {seed}.")
    created = tasks.create(name, **task_options)
    defaults = created.default_settings(overrides.get("model"))
    flat.check_known(overrides, defaults, [method])
    settings = flat.resolve(defaults, method, overrides)
    if teacher is not None and "teacher" not in flat.create_method(method, settings).needs:
        raise UserError(f"Method '{method}' has no teacher, so --teacher does not apply.")
    teacher_path = "" if teacher is None else str(teacher)
    trial = Trial(
        name,
        method,
        seed,
        settings,
        dict(created.options),
        data=created.fingerprint(),
        teacher=teacher_path,
        teacher_folder=teacher_path,
        **trial_options,
    )
    splits = created.splits(seed)
    return trial, (data_sentence(splits), *created.notes(splits, settings))


def _follow(trial: Trial, folder: Path) -> int:
    """Train in a process other than the main one."""
    from labo.experiment.executor import run_job
    from labo.records.trial import Job

    return 1 if run_job(Job(trial, folder), lambda fraction: None).get("failed") else 0


def _run(trial: Trial, folder: Path, notes: Sequence[str]) -> int:
    from labo.experiment import run_trial
    from labo.experiment.executor import run_job
    from labo.experiment.progress import ConsoleProgress
    from labo.records.trial import Job, read_record

    record, job = read_record(folder), Job(trial, folder)
    with ConsoleProgress() as progress:
        for note in notes:
            progress.message(note)
        if record is not None:
            record = run_trial.run(trial, folder)
            progress.message(f"The run in '{folder}' is already finished.")
        else:
            progress.begin(1, 0)
            progress.phase("training")
            record = run_job(job, lambda fraction: progress.update(job, fraction))
            progress.finished(job, record)
    if failed := record.get("failed"):
        print(f"labo: The run failed at step {failed['step']}: {failed['reason']}.", file=sys.stderr)
        return 1
    print(scores.table({trial.method: record["metrics"]}))
    sentences = (record.get(stage, {}).get("sentence") for stage in ("decision", "channel"))
    for note in (*record.get("notes", ()), *filter(None, sentences)):
        print(f"\n{note}")
    next_commands = f"labo predict {folder} INPUT, labo labels {folder}"
    next_commands = f"labo translate {folder} FILE" if "bleu" in record["metrics"] else next_commands
    print(f"\nRun: {folder} (next: labo evaluate {folder}, {next_commands})")
    return 0
