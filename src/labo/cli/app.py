"""The `labo` application: all commands under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from labo import machine
from labo.cli import bench, compare, doctor, evaluate, labels, methods, predict, report, tasks, train, translate, tune
from labo.errors import UserError

SUMMARY = "Training with label regularization: train, evaluate and compare regularizers, with significance tests."

app = typer.Typer(
    name="labo",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(requested: bool) -> None:
    if requested:
        from labo import __version__

        print(f"labo {__version__}")
        raise typer.Exit


@app.callback(help=SUMMARY)
def _labo(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Handle options of `labo` itself."""
    if machine.launched() > 1 and context.invoked_subcommand != "train":
        raise UserError(
            f"Run labo {context.invoked_subcommand} without torchrun: it is one process, which starts its own workers."
        )


for command in (compare, train, tune, evaluate, predict, translate, labels, report, bench, tasks, methods, doctor):
    app.command()(getattr(command, command.__name__.rpartition(".")[2]))
