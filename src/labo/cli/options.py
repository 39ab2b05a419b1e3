"""Options that several commands share, and what they come to."""

from __future__ import annotations

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
    typer.Argument(help="A name that `labo tasks` lists; digits by default, table with --data.", show_default=False),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Your own data: a table (.csv, .parquet, .npz), or, for tasks over pictures, where they lie."),
]
Target = Annotated[
    str | None, typer.Option(help="The column of the classes in --data; with --source, a file of translations.")
]
Split = Annotated[str | None, typer.Option(help="A column of --data that says train, validation or test.")]
Source = Annotated[
    Path | None, typer.Option(help="A file of sentences, one a line; --target is the file of their translations.")
]
TrainSize = Annotated[int | None, typer.Option(help="How many examples to train on.")]
LabelNoise = Annotated[
    str | None, typer.Option(help="SHARE,symmetric|pair: turn this share of the training and validation labels wrong.")
]
SkipUnreadable = Annotated[
    bool | None,
    typer.Option(
        "--skip-unreadable", help="Leave out pictures that cannot be read, and tell how many.", show_default=False
    ),
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="KEY=VALUE", help="Another option of the task, as `labo tasks` lists; repeatable."
    ),
]
Epochs = Annotated[float | None, typer.Option(help="How many epochs to train.")]
Steps = Annotated[int | None, typer.Option(help="How many steps to train, in place of epochs.")]
StartAfter = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS", help="Train so many steps by plain cross-entropy first, or --set start_with=label_smoothing."
    ),
]
Model = Annotated[str | None, typer.Option(help="Which network.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any setting, such as alpha=0.3; may be repeated."),
]
Config = Annotated[Path | None, typer.Option(help="A YAML file of settings, KEY: VALUE; --set comes over it.")]
Checkpoint = Annotated[
    str, typer.Option(help="Which weights count: those of the last epoch, or of the best by validation: last or best.")
]
Curves = Annotated[bool, typer.Option(help="Measure the validation split every epoch.")]
SaveEvery = Annotated[float, typer.Option(metavar="SECONDS", help="Write a checkpoint this often.")]
NoSamples = Annotated[bool, typer.Option("--no-samples", help="A report without pictures or sentences of the data.")]
Shift = Annotated[
    str | None,
    typer.Option(
        metavar="KINDS",
        help="Also measure the test pictures made worse: noise,blur,contrast or some of them.",
    ),
]
Severity = Annotated[int | None, typer.Option(help="How much worse, 1 to 5.", show_default="the mean over all five")]
Beams = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTHS", help="Translations: also BLEU with beams of these widths, such as 1,5,20.", show_default=False
    ),
]
Run = Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)]


# Options of tasks that are options of the commands too.
OWN = ("data", "source", "target", "split", "train_size", "label_noise", "skip_unreadable")


def task(name: str | None, texts: list[str] | None, **options: Any) -> tuple[str, dict[str, Any]]:
    """(task, its options) from what was given; `texts` are KEY=VALUE. Options that were not given are left out."""
    from labo.experiment import settings as flat
    from labo.tasks.registry import TEXTS

    given = {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items() if value is not None
    }
    for key, value in flat.parse(texts or [], "--option", as_text=TEXTS).items():
        if key in OWN:
            raise UserError(f"Give --{key.replace('_', '-')} {value} in place of --option {key}={value}.")
        given[key] = value
    if name is None:
        name = "translation" if "source" in given else "table" if "data" in given else "digits"
    return name, given


def slug(name: str, data: Path | None) -> str:
    """What a folder of this task is called: the task, or the file of one's own."""
    return name if data is None else data.stem


def settings(
    config: Path | None,
    texts: list[str] | None,
    epochs: float | None,
    steps: int | None,
    model: str | None,
    start_after: int | None = None,
) -> dict[str, Any]:
    """What the user set: the config, then --set, then the options of their own."""
    from labo.experiment import settings as flat

    found = flat.read_config(config) if config is not None else {}
    own = {"epochs": epochs, "steps": steps, "model": model, "start_after": start_after}
    layers = [flat.parse(texts or []), {key: value for key, value in own.items() if value is not None}]
    lengths = [key for layer in layers for key in layer if key in flat.LENGTHS]
    if len(set(lengths)) > 1:
        raise UserError("Expected either epochs or steps, but got both.")
    if lengths:
        found = {key: value for key, value in found.items() if key not in flat.LENGTHS}
    for layer in layers:
        found |= layer
    return found


def shifts(tasks: Sequence[str], shift: str | None, severity: int | None) -> Any:
    """What --shift and --severity ask of the tasks that have shifts; None where nothing is asked."""
    if shift is None:
        if severity is not None:
            raise UserError("Expected --shift with --severity, but got none.")
        return None
    from labo.experiment.post_hoc import parse_shifts

    return parse_shifts(tasks, shift, severity)


def beams(tasks: Sequence[str], text: str | None) -> list[int]:
    """The widths that --beams asks of the tasks that are translations; none where nothing is asked."""
    if text is None:
        return []
    from labo.tasks import kind

    if not any(kind(task) == "translation" for task in tasks):
        raise UserError(f"Task '{tasks[0]}' is no translation: leave --beams out.")
    widths = [part.strip() for part in text.split(",") if part.strip()]
    if not widths or not all(width.isdecimal() and int(width) > 0 for width in widths):
        raise UserError(f"Expected --beams to be whole numbers above 0, separated by commas, but got '{text}'.")
    return list(dict.fromkeys(map(int, widths)))


def known_checkpoint(name: str) -> str:
    """`name`, if it is one."""
    if name not in CHECKPOINTS:
        raise unknown("checkpoint", name, CHECKPOINTS)
    return name


def names(text: str) -> list[str]:
    """Names separated by commas, those in brackets apart; "all" is every method there is."""
    from labo import regularizers

    found = [name.strip() for name in re.split(r",(?![^\[]*\])", text) if name.strip()]
    return list(regularizers.available()) if found == ["all"] else found
