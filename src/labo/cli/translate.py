"""`labo translate`: lines in, their translations out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from labo.cli import options
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.experiment.runs import Run

# Lines that are translated together where they are not typed in: as many as there are at once, at most.
TOGETHER = 256


def translate(
    run: options.Run,
    beam: Annotated[int | None, typer.Option(help="Hypotheses kept at each step.", show_default="the run's")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="The larger, the longer the translations.", show_default="the run's")
    ] = None,
    together: Annotated[int, typer.Option(help="Lines translated at a time; 1 answers each at once.")] = TOGETHER,
) -> None:
    """Translate standard input, line by line, to standard output.

    Line 7 of the output is the translation of line 7 of the input: an empty line stays empty, and one that is too long
    for the network is cut, which is told on standard error.
    """
    from labo.experiment import runs

    for name, value in (("beam", beam), ("together", together)):
        if value is not None and value < 1:
            raise UserError(f"Expected --{name} to be a whole number above 0, but got {value}.")
    loaded = runs.load(run)
    loaded.require_kind("translation", "translate")
    if sys.stdin.isatty():
        together = 1
    given = {} if length_penalty is None else {"length_penalty": length_penalty}
    number = 0
    for lines in _chunks(sys.stdin.buffer, together):
        for text in _translated(loaded, [_text(line, number + at) for at, line in enumerate(lines, 1)], beam, given):
            print(" ".join(text.split()))
        sys.stdout.flush()
        number += len(lines)


def _translated(loaded: Run, lines: list[str], beam: int | None, given: dict[str, float]) -> list[str]:
    judge = loaded.judge
    sources = judge.vocabulary.encode(lines, "source")
    return judge.translated(
        loaded.model.to(loaded.device), sources, beam=beam, told=lambda told: print(told, file=sys.stderr), **given
    )


def _chunks(stream: BinaryIO, size: int) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    for line in stream:
        lines.append(line)
        if len(lines) == size:
            yield lines
            lines = []
    if lines:
        yield lines


def _text(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        print(f"Line {number} is not UTF-8 (byte {error.start + 1}): what cannot be read is left out.", file=sys.stderr)
        return line.decode("utf-8", errors="ignore").rstrip("\r\n")
