"""The commands under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from labo.cli import bench, compare, doctor, evaluate, labels, methods, predict, report, tasks, train

app = typer.Typer(
    name="labo",
    help="Training with label regularization: which regularizer is better on your data, and is it more than luck?",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(asked: bool) -> None:
    if asked:
        from labo import __version__

        print(f"labo {__version__}")
        raise typer.Exit


@app.callback()
def _labo(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Training with label regularization: which regularizer is better on your data, and is it more than luck?"""


for command in (compare, train, evaluate, predict, labels, report, bench, tasks, methods, doctor):
    app.command()(getattr(command, command.__name__.rpartition(".")[2]))
