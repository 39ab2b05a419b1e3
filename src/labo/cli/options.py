"""Options that several commands share, and their parsing."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from labo.errors import UserError, unknown

CHECKPOINTS = ("last", "best")
DEFAULT_METHODS = "none,label_smoothing,confidence_penalty,labo"

TaskName = Annotated[
    str | None,
    typer.Argument(help="A task that `labo tasks` lists; by default digits, or table with --data.", show_default=False),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Your own data: a table (.csv, .parquet, .npz), or images for image tasks."),
]
Target = Annotated[
    str | None, typer.Option(help="The class column of --data; with --source, the file of translations.")
]
Split = Annotated[str | None, typer.Option(help="A column of --data whose values are train, validation or test.")]
Separator = Annotated[
    str | None,
    typer.Option(help="The character between the cells of .csv files, or tab or space.", show_default="found in them"),
]
Decimal = Annotated[
    str | None, typer.Option(metavar=".|,", help="The mark of decimals in tables.", show_default="found in them")
]
LeaveOut = Annotated[
    list[str] | None, typer.Option(metavar="COLUMN", help="A column of --data that is no feature; repeatable.")
]
Source = Annotated[
    Path | None,
    typer.Option(help="A file of source sentences, one per line; --target is the file of their translations."),
]
TrainSize = Annotated[int | None, typer.Option(help="Number of training examples.")]
LabelNoise = Annotated[
    str | None, typer.Option(help="SHARE,symmetric|pair: corrupt this share of the training and validation labels.")
]
SkipUnreadable = Annotated[
    bool | None,
    typer.Option("--skip-unreadable", help="Skip images that cannot be read, and print how many.", show_default=False),
]
MaxBytes = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Refuse archives (.npz, .gz) that unpack to more than this, such as 8GB.",
        show_default="half of the memory",
    ),
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="KEY=VALUE", help="Another option of the task, as listed by `labo tasks`; repeatable."
    ),
]
Epochs = Annotated[float | None, typer.Option(help="Number of training epochs.")]
Steps = Annotated[int | None, typer.Option(help="Number of training steps, instead of --epochs.")]
StartAfter = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS",
        help="Train this many steps with plain cross-entropy first (or --set start_with=label_smoothing).",
    ),
]
Model = Annotated[str | None, typer.Option(help="The network architecture.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as alpha=0.3; repeatable."),
]
Config = Annotated[Path | None, typer.Option(help="A YAML file of settings (KEY: VALUE); --set takes precedence.")]
Checkpoint = Annotated[str, typer.Option(help="The weights to evaluate: last, or best by the validation split.")]
Curves = Annotated[bool, typer.Option(help="Evaluate the validation split every epoch.")]
SaveEvery = Annotated[float, typer.Option(metavar="SECONDS", help="Seconds between checkpoints.")]
NoSamples = Annotated[
    bool, typer.Option("--no-samples", help="Leave images and sentences of the data out of the report.")
]
Shift = Annotated[
    str | None,
    typer.Option(
        metavar="KINDS",
        help="Also evaluate on corrupted test images: a comma-separated subset of noise,blur,contrast.",
    ),
]
Severity = Annotated[
    int | None, typer.Option(help="Severity of the corruption, 1 to 5.", show_default="the mean over all five")
]
Beams = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTHS", help="Translation: also BLEU at these beam widths, such as 1,5,20.", show_default=False
    ),
]
Margin = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS",
        help="Differences within this many points of accuracy or BLEU are practically none.",
        show_default="0.5",
    ),
]
Run = Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)]


# Task options that have a command-line option of their own.
DEDICATED_OPTIONS = ("data", "source", "target", "split", "separator", "decimal", "leave_out", "train_size")
DEDICATED_OPTIONS += ("label_noise", "skip_unreadable")


def task(name: str | None, assignments: list[str] | None, **options: Any) -> tuple[str, dict[str, Any]]:
    """The task and its options from the command line; `assignments` are KEY=VALUE. Drops options that are None."""
    from labo.experiment import settings as flat
    from labo.tasks.registry import TEXTS

    task_options = {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items() if value is not None
    }
    for key, value in flat.parse(assignments or [], "--option", as_text=TEXTS).items():
        if key in DEDICATED_OPTIONS:
            raise UserError(f"Use --{key.replace('_', '-')} {value} instead of --option {key}={value}.")
        task_options[key] = value
    if name is None:
        name = "translation" if "source" in task_options else "table" if "data" in task_options else "digits"
    return name, task_options


def limit_unpacked(max_bytes: str | None) -> None:
    """Set how much an archive may unpack to, in this process and in the workers that it starts."""
    if max_bytes is not None:
        from labo.tasks import file_limits

        os.environ[file_limits.VARIABLE] = str(file_limits.parse_size(max_bytes))


def slug(name: str, data: Path | None) -> str:
    """The folder name of a task: its name, or the stem of the data file."""
    return name if data is None else data.stem


def settings(
    config: Path | None,
    assignments: list[str] | None,
    epochs: float | None,
    steps: int | None,
    model: str | None,
    start_after: int | None = None,
) -> dict[str, Any]:
    """The settings given by the user: the config, overridden by --set, overridden by dedicated options."""
    from labo.experiment import settings as flat

    merged = flat.read_config(config) if config is not None else {}
    dedicated = {"epochs": epochs, "steps": steps, "model": model, "start_after": start_after}
    layers = [flat.parse(assignments or []), {key: value for key, value in dedicated.items() if value is not None}]
    lengths = [key for layer in layers for key in layer if key in flat.LENGTHS]
    if len(set(lengths)) > 1:
        raise UserError("Expected either epochs or steps, but got both.")
    if lengths:
        merged = {key: value for key, value in merged.items() if key not in flat.LENGTHS}
    for layer in layers:
        merged |= layer
    return merged


def shifts(tasks: Sequence[str], shift: str | None, severity: int | None) -> Any:
    """The grid of shifts that --shift and --severity select, or None without them."""
    if shift is None:
        if severity is not None:
            raise UserError("Option --severity requires --shift.")
        return None
    from labo.experiment.post_hoc import parse_shifts

    return parse_shifts(tasks, shift, severity)


def beams(tasks: Sequence[str], text: str | None) -> list[int]:
    """The beam widths of --beams; an empty list without it."""
    if text is None:
        return []
    from labo.tasks import kind

    if not any(kind(task) == "translation" for task in tasks):
        raise UserError(f"Task '{tasks[0]}' is not a translation task, so --beams does not apply.")
    widths = [part.strip() for part in text.split(",") if part.strip()]
    if not widths or not all(width.isdecimal() and int(width) > 0 for width in widths):
        raise UserError(f"Expected --beams to be comma-separated whole numbers above 0, but got '{text}'.")
    return list(dict.fromkeys(map(int, widths)))


def known_checkpoint(name: str) -> str:
    """Return `name` if it is a known checkpoint."""
    if name not in CHECKPOINTS:
        raise unknown("checkpoint", name, CHECKPOINTS)
    return name


def names(text: str) -> list[str]:
    """Split a comma-separated list of methods, except at commas in brackets; "all" is every registered method."""
    from labo import regularizers

    methods = [name.strip() for name in re.split(r",(?![^\[]*\])", text) if name.strip()]
    return list(regularizers.available()) if methods == ["all"] else methods
