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
    jobs: Annotated[
        int, typer.Option(help="Networks of folds to train side by side, for methods that train some first.")
    ] = 1,
    budget: Annotated[
        float | None, typer.Option(help="What labo_auto may cost in plain runs: 1.5, 3 or 6.", show_default="3")
    ] = None,
    fsdp: Annotated[
        bool | None,
        typer.Option(
            "--fsdp/--no-fsdp",
            help="With several processes, split weights, gradients and optimizer state over them (FSDP2); by default "
            "as `accelerate launch` is configured.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Train one method on one seed.

    The same command with the same --output resumes an interrupted run. For several processes, use
    `torchrun --nproc-per-node N -m labo train …` or `accelerate launch … -m labo train …`.
    """
    from labo import distributed
    from labo.records import lock

    options.limit_unpacked(max_bytes)
    overrides = options.settings(config, set_, epochs, steps, model, start_after)
    if budget is not None:
        overrides["budget"] = _budget(method, budget)
    data_options = {"data": data, "source": source, "target": target, "split": split}
    reading = {"separator": separator, "decimal": decimal, "leave_out": leave_out or None}
    sampling = {"train_size": train_size, "label_noise": label_noise, "skip_unreadable": skip_unreadable}
    name, task_options = options.task(task, option, **data_options, **reading, **sampling)
    if threads < 1:
        raise UserError(f"Expected --threads of at least 1, but got {threads}.")
    if jobs < 1:
        raise UserError(f"Expected --jobs of at least 1, but got {jobs}.")
    trial_options = {"checkpoint": options.known_checkpoint(checkpoint), "curves": curves, "save_seconds": save_every}
    trial_options |= {"threads": threads, "fsdp": _split_over_processes(fsdp)}
    with distributed.process_group():
        # The main process first, because it may download the data.
        trial, notes = distributed.main_process_first(
            lambda: _trial(name, task_options, method, seed, overrides, teacher, trial_options)
        )
        if jobs > 1 and distributed.world_size() > 1:
            raise UserError("Option --jobs starts processes of its own: leave it out under torchrun.")
        folder = output or Path("runs/train") / f"{options.slug(name, data or source)}-{method}-{seed}"
        if not distributed.is_main_process():
            return _follow(trial, folder)
        with lock.hold(folder):
            return _run(trial, folder, notes, jobs)


def _budget(method: str, budget: float) -> float:
    """The budget, if the method has one."""
    from labo import regularizers
    from labo.regularizers.labo_auto import LABOAuto, check_budget

    if not isinstance(regularizers.create(method), LABOAuto):
        raise UserError(f"Method '{method}' has no budget: --budget is for labo_auto.")
    check_budget(budget)
    return budget


def _split_over_processes(fsdp: bool | None) -> bool:
    """Whether to split the network over the processes, by the option or the configuration of `accelerate launch`."""
    from labo import machine

    if fsdp is None:
        version = machine.fsdp_version()
        if version == 1:
            raise UserError(
                "labo train splits networks by FSDP2: use accelerate launch --fsdp_version 2, or --no-fsdp."
            )
        return version is not None and machine.launched() > 1
    if fsdp and machine.launched() == 1:
        raise UserError(
            "--fsdp splits a network over several processes, but this is one: use torchrun --nproc-per-node N -m labo "
            "train …, or leave it out."
        )
    return fsdp


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


def _run(trial: Trial, folder: Path, notes: Sequence[str], jobs: int) -> int:
    from labo.experiment import run_trial
    from labo.experiment.executor import TrialExecutor, run_job
    from labo.experiment.progress import ConsoleProgress
    from labo.records.trial import Job, read_record
    from labo.report import learnt

    record, job = read_record(folder), Job(trial, folder)
    with ConsoleProgress() as progress:
        if record is not None:
            record = run_trial.run(trial, folder)
            progress.message(f"The run in '{folder}' is already finished.")
        else:
            progress.begin(1, 0)
            progress.phase("training")
            unsaid = list(notes)  # said when the training begins, for a run that is refused has but its one sentence

            def update(fraction: float) -> None:
                while unsaid:
                    progress.message(unsaid.pop(0))
                progress.update(job, fraction)

            with TrialExecutor(jobs if run_trial.has_stage(trial) else 1) as executor:
                record = run_job(job, update, phase=progress.phase, run_folds=executor.run)
            progress.finished(job, record)
    if failed := record.get("failed"):
        print(f"labo: The run failed at step {failed['step']}: {failed['reason']}.", file=sys.stderr)
        return 1
    print(scores.table({trial.method: record["metrics"]}))
    page = learnt.write_page(folder, record)
    for note in (*record.get("notes", ()), *learnt.sentences(record, learnt.read(folder))):
        print(f"\n{note}")
    next_commands = f"labo predict {folder} INPUT, labo labels {folder}"
    next_commands = f"labo translate {folder} FILE" if "bleu" in record["metrics"] else next_commands
    if page is not None:
        print(f"\nPage: {page}")
    print(f"\nRun: {folder} (next: labo evaluate {folder}, {next_commands})")
    return 0
