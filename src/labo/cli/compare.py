"""`labo compare`: which method is better, and is the difference significant?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from labo.cli import options
from labo.cli.report import build_and_print
from labo.errors import UserError, unknown

LAUNCHERS = ("local", "ray")


def compare(
    task: options.TaskName = None,
    methods: Annotated[
        str, typer.Option(help="Methods to compare, comma-separated, or all; NAME[OPTION=VALUE] fixes an option.")
    ] = options.DEFAULT_METHODS,
    baseline: Annotated[
        str | None,
        typer.Option(help="The method that the others are compared to.", show_default="label_smoothing"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds that every method runs on.")] = 8,
    first_seed: Annotated[int, typer.Option(help="The first of these seeds.")] = 0,
    settings_per_method: Annotated[
        int, typer.Option(help="Hyperparameter candidates per method; 1 uses the defaults.")
    ] = 3,
    tuning_seeds: Annotated[int, typer.Option(help="Number of seeds per candidate.")] = 3,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="optuna:N",
            help="Search settings with Optuna instead, N plain trainings for each method; epochs included.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder for records and the report.", show_default="runs/TASK")
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Trials to run in parallel, one thread each.", show_default="the cores, or 2 on a GPU")
    ] = 0,
    launcher: Annotated[
        str, typer.Option(help="Where trials run: local, in processes of this machine, or ray, on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="The Ray cluster, or auto.", show_default="$RAY_ADDRESS, or a new local one"
        ),
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="With --launcher ray: GPUs that a trial takes, such as 0.25.", show_default="0")
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
    curves: options.Curves = False,
    save_every: options.SaveEvery = 60.0,
    shift: options.Shift = None,
    severity: options.Severity = None,
    no_samples: options.NoSamples = False,
    margin: options.Margin = None,
) -> int:
    """Compare methods on a task: which is better, and is the difference significant?

    The verdict on a method is better, worse, practically the same, or undecided with the seeds that a decision takes.
    Every method is tuned on the validation split over the same number of candidate settings, then runs on the same
    seeds. The same command with the same --output resumes an interrupted comparison.
    """
    from labo.experiment import compare as experiment
    from labo.experiment import search
    from labo.experiment.progress import ConsoleProgress
    from labo.report.equivalence import check_margin

    options.limit_unpacked(max_bytes)
    name, task_options = options.task(
        task,
        option,
        data=data,
        source=source,
        target=target,
        split=split,
        separator=separator,
        decimal=decimal,
        leave_out=leave_out or None,
        train_size=train_size,
        label_noise=label_noise,
        skip_unreadable=skip_unreadable,
    )
    options.shifts([name], shift, severity)  # an error is raised before anything runs
    chosen = options.names(methods)
    if margin is not None:
        check_margin(margin)
    comparison = experiment.ComparisonConfig(
        methods=chosen,
        output=output or Path("runs") / options.slug(name, data or source),
        task=name,
        task_options=task_options,
        seeds=seeds,
        first_seed=first_seed,
        baseline=baseline or ("label_smoothing" if "label_smoothing" in chosen else (chosen or [""])[0]),
        settings_per_method=settings_per_method,
        tuning_seeds=tuning_seeds,
        tune=0.0 if tune is None else search.parse(tune),
        set=options.settings(config, set_, epochs, steps, model, start_after),
        checkpoint=options.known_checkpoint(checkpoint),
        curves=curves,
        save_seconds=save_every,
        jobs=jobs,
        cluster=_cluster(launcher, address, gpus_per_trial),
        command=["labo", *sys.argv[1:]],
        margin=margin,
    )
    with ConsoleProgress() as progress:
        unfinished = experiment.run(comparison, progress)
    summary = build_and_print(
        comparison.output, baseline=None, no_samples=no_samples, shift=shift, severity=severity, margin=margin
    )
    any_finished = any(method.finished for task in summary.tasks for method in task.methods)
    return 1 if unfinished or not any_finished else 0


def _cluster(launcher: str, address: str | None, gpus_per_trial: float | None) -> Any:
    """The cluster of --launcher ray, or None."""
    if launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, LAUNCHERS)
    if launcher == "ray":
        from labo.experiment.ray_executor import RayCluster

        return RayCluster(address or "", gpus_per_trial or 0.0)
    for name, value in (("address", address), ("gpus-per-trial", gpus_per_trial)):
        if value is not None:
            raise UserError(f"Option --{name} requires --launcher ray.")
    return None
