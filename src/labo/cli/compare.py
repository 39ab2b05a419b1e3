"""`labo compare`: which method is better, and is it more than luck?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from labo.cli import options
from labo.cli.report import build_and_print


def compare(
    task: options.TaskName = None,
    methods: Annotated[
        str, typer.Option(help="Methods to compare, separated by commas, or all; NAME[OPTION=VALUE] fixes an option.")
    ] = options.DEFAULT_METHODS,
    baseline: Annotated[
        str | None,
        typer.Option(help="The method that the others are compared with.", show_default="label_smoothing"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds every method runs on.")] = 8,
    first_seed: Annotated[int, typer.Option(help="The first of these seeds.")] = 0,
    settings_per_method: Annotated[
        int, typer.Option(help="Candidate settings tried for each method; 1 takes the defaults.")
    ] = 3,
    tuning_seeds: Annotated[int, typer.Option(help="Seeds that each candidate is tried on.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Where records and report go.", show_default="runs/TASK")] = None,
    jobs: Annotated[
        int, typer.Option(help="Trials at a time, one thread each.", show_default="the cores, or 2 on a GPU")
    ] = 0,
    data: options.Data = None,
    source: options.Source = None,
    target: options.Target = None,
    split: options.Split = None,
    train_size: options.TrainSize = None,
    label_noise: options.LabelNoise = None,
    skip_unreadable: options.SkipUnreadable = None,
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
) -> int:
    """Which method is better on a task, and is it more than luck?

    Every method gets the same number of candidate settings, chosen on validation, then runs on the same seeds. The same
    command in the same --output goes on where it was stopped.
    """
    from labo.experiment import compare as experiment
    from labo.experiment.progress import ConsoleProgress

    name, task_options = options.task(
        task,
        option,
        data=data,
        source=source,
        target=target,
        split=split,
        train_size=train_size,
        label_noise=label_noise,
        skip_unreadable=skip_unreadable,
    )
    options.shifts([name], shift, severity)  # refused before anything runs
    chosen = options.names(methods)
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
        set=options.settings(config, set_, epochs, steps, model, start_after),
        checkpoint=options.known_checkpoint(checkpoint),
        curves=curves,
        save_seconds=save_every,
        jobs=jobs,
        command=["labo", *sys.argv[1:]],
    )
    with ConsoleProgress() as progress:
        unfinished = experiment.run(comparison, progress)
    summary = build_and_print(comparison.output, baseline=None, no_samples=no_samples, shift=shift, severity=severity)
    any_finished = any(method.finished for task in summary.tasks for method in task.methods)
    return 1 if unfinished or not any_finished else 0
