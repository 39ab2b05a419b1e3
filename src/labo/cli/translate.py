"""`labo translate`: lines in, their translations out."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labo.cli import options
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.experiment.saved_run import SavedRun

# Lines that are translated together at most, and bytes that are read at a time.
TOGETHER, READ = 256, 2**16


def translate(
    run: options.Run,
    beam: Annotated[int | None, typer.Option(help="Hypotheses kept at each step.", show_default="the run's")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="The larger, the longer the translations.", show_default="the run's")
    ] = None,
    together: Annotated[
        int, typer.Option(help="Lines translated at a time, at most: those that are there.")
    ] = TOGETHER,
) -> None:
    """Translate standard input, line by line, to standard output.

    Line 7 of the output is the translation of line 7 of the input: an empty line stays empty, and one that is too long
    for the network is cut, which is told on standard error. Lines are translated as they come, in UTF-8.
    """
    from labo.experiment import saved_run

    for name, value in (("beam", beam), ("together", together)):
        if value is not None and value < 1:
            raise UserError(f"Expected --{name} to be a whole number above 0, but got {value}.")
    loaded = saved_run.load(run)
    loaded.require_kind("translation", "translate")
    given = {} if length_penalty is None else {"length_penalty": length_penalty}
    number = 0
    out = sys.stdout.buffer  # UTF-8, whatever the locale has for text
    for lines in _chunks(sys.stdin.buffer, together):
        texts = [_text(line, number + at) for at, line in enumerate(lines, 1)]
        for text in _translated(loaded, texts, number, beam, given):
            out.write(f"{' '.join(text.split())}\n".encode())
        out.flush()
        number += len(lines)


def _translated(
    loaded: SavedRun, lines: list[str], before: int, beam: int | None, given: dict[str, float]
) -> list[str]:
    """The translations of lines that have so many before them."""
    evaluator = loaded.evaluator
    sources = evaluator.vocabulary.encode(lines, "source")

    def warn(cut: list[int], limit: int) -> None:
        first, longer = before + cut[0] + 1, f"longer than the {limit:,} pieces that are read"
        one = f"Line {first:,} is {longer}, and was cut."
        many = f"{len(cut):,} lines are {longer}, and were cut; the first is line {first:,}."
        print(one if len(cut) == 1 else many, file=sys.stderr)

    return evaluator.translated(loaded.model.to(loaded.device), sources, beam=beam, on_truncated=warn, **given)


def _chunks(stream: Any, size: int) -> Iterator[list[bytes]]:
    """Lines as they come, at most `size` of those that are there: who waits for an answer gets it."""
    lines: list[bytes] = []
    begun: list[bytes] = []  # of the line whose end has not come
    piece = b"any"
    while piece:
        piece = stream.read1(READ)
        first, *rest = piece.split(b"\n")
        begun.append(first)
        for next_one in rest:
            lines.append(b"".join(begun))
            begun = [next_one]
        if not piece and any(begun):
            lines.append(b"".join(begun))
        while len(lines) >= size or (lines and not (piece and _readable(stream))):
            yield lines[:size]
            lines = lines[size:]


def _readable(stream: Any) -> bool:
    """Whether more, or the end, can be read without waiting; False where the system does not tell."""
    try:
        return bool(select.select([stream], [], [], 0)[0])
    except (OSError, ValueError):
        return False


def _text(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        print(f"Line {number} is not UTF-8 (byte {error.start + 1}): what cannot be read is left out.", file=sys.stderr)
        return line.decode("utf-8", errors="ignore").rstrip("\r\n")
