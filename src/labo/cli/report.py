"""`labo report`: tables, figures and a page from recorded trials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labo.cli import options


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --output of a comparison.", show_default=False)],
    baseline: Annotated[
        str | None, typer.Option(help="The method to compare with; that of the comparison by default.")
    ] = None,
    no_samples: options.NoSamples = False,
) -> None:
    """The verdict on recorded trials.

    Prints it, and writes report.html, report.md and figures/ into DIR.
    """
    tell(directory, baseline=baseline, no_samples=no_samples)


def tell(directory: Path, *, baseline: str | None, no_samples: bool) -> None:
    """Build the report of a folder and print its verdict."""
    from rich.console import Console

    from labo.report import build, summarize
    from labo.report.tables import console

    page = build(directory, baseline=baseline, samples=not no_samples)
    Console(highlight=False).print(console(summarize(directory, baseline)))
    print(f"\nReport: {page}")
