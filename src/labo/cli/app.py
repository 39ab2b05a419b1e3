"""The commands under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from labo import machine
from labo.cli import bench, compare, doctor, evaluate, labels, methods, predict, report, tasks, train, translate
from labo.errors import UserError

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
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Training with label regularization: which regularizer is better on your data, and is it more than luck?"""
    if machine.launched() > 1 and context.invoked_subcommand != "train":
        raise UserError(
            f"labo {context.invoked_subcommand} is one process, which starts others where it needs them: run it "
            "without torchrun."
        )


for command in (compare, train, evaluate, predict, translate, labels, report, bench, tasks, methods, doctor):
    app.command()(getattr(command, command.__name__.rpartition(".")[2]))
