"""`labo tune`: settings of a method, searched by Optuna."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from labo.cli import options


def tune(
    task: options.TaskName = None,
    method: Annotated[str, typer.Option(help="A method that `labo methods` lists.")] = "labo",
    budget: Annotated[float, typer.Option(help="How much is trained, in plain trainings of the task's length.")] = 20.0,
    tuning_seeds: Annotated[int, typer.Option(help="Number of seeds that each setting is tried on.")] = 1,
    output: Annotated[
        Path | None, typer.Option(help="The folder of the search.", show_default="runs/tune/TASK-METHOD")
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Trials to run in parallel, one thread each.", show_default="the cores, or 2 on a GPU")
    ] = 0,
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
    save_every: options.SaveEvery = 60.0,
) -> None:
    """Search the settings of a method with Optuna, and print the best as a `labo train` command.

    The method's options, the learning rate, the weight decay and the number of epochs are searched on the validation
    split; what is set here is not. Settings that are behind the median of those before them are stopped early. The same
    command with the same --output resumes an interrupted search.
    """
    from labo.experiment import compare as experiment
    from labo.experiment.progress import ConsoleProgress

    options.limit_unpacked(max_bytes)
    reading = {"separator": separator, "decimal": decimal, "leave_out": leave_out or None}
    sampling = {"train_size": train_size, "label_noise": label_noise, "skip_unreadable": skip_unreadable}
    data_options = {"data": data, "source": source, "target": target, "split": split}
    name, task_options = options.task(task, option, **data_options, **reading, **sampling)
    given = options.settings(config, set_, epochs, steps, model, start_after)
    search = experiment.ComparisonConfig(
        methods=[method],
        output=output or Path("runs/tune") / f"{options.slug(name, data or source)}-{method}",
        task=name,
        task_options=task_options,
        baseline=method,
        tuning_seeds=tuning_seeds,
        tune=budget,
        set=given,
        checkpoint=options.known_checkpoint(checkpoint),
        save_seconds=save_every,
        jobs=jobs,
        command=["labo", *sys.argv[1:]],
    )
    with ConsoleProgress() as progress:
        settings, searched = experiment.tune(search, progress)
    chosen = {key: settings[key] for key in dict.fromkeys((*given, *searched)) if key in settings}
    print(shlex.join(train_command(name, method, task_options, chosen, checkpoint)))


def train_command(
    task: str, method: str, task_options: Mapping[str, Any], settings: Mapping[str, Any], checkpoint: str
) -> list[str]:
    """The words of the `labo train` command with these options of the task and settings."""
    words = ["labo", "train", task, "--method", method]
    for key, value in task_options.items():
        flag = f"--{key.replace('_', '-')}"
        if key not in options.DEDICATED_OPTIONS:
            words += ["--option", f"{key}={_as_yaml(value)}"]
        elif isinstance(value, bool):
            words += [flag] if value else []
        else:
            words += [word for each in (value if isinstance(value, list) else [value]) for word in (flag, str(each))]
    for key, value in settings.items():
        words += [f"--{key}", str(value)] if key in ("epochs", "steps") else ["--set", f"{key}={_as_yaml(value)}"]
    return words + (["--checkpoint", checkpoint] if checkpoint != "last" else [])


def _as_yaml(value: Any) -> str:
    """A value as --set and --option read it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
