"""`labo translate`: translate a file or standard input."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labo.cli import options
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.experiment.saved_run import SavedRun

# Lines per batch at most, and bytes per read.
MAX_BATCH_LINES, READ_BYTES = 256, 2**16


def translate(
    run: options.Run,
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A file with one sentence a line (.gz too), or a .tsv or .parquet file with the source side.",
            show_default="standard input",
        ),
    ] = None,
    beam: Annotated[int | None, typer.Option(help="Beam width.", show_default="the run's")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Larger values give longer translations.", show_default="the run's")
    ] = None,
    together: Annotated[
        int, typer.Option(help="Maximum number of lines per batch; a batch does not wait for lines.")
    ] = MAX_BATCH_LINES,
    max_bytes: options.MaxBytes = None,
) -> None:
    """Translate a file or standard input, line by line, to standard output.

    Line 7 of the output is the translation of line 7 of the input. Empty lines stay empty. Lines that are too long for
    the network are truncated, with a warning on standard error. Lines are translated as they arrive; text is UTF-8.
    """
    from labo.experiment import saved_run

    for name, value in (("beam", beam), ("together", together)):
        if value is not None and value < 1:
            raise UserError(f"Expected --{name} to be a whole number above 0, but got {value}.")
    options.limit_unpacked(max_bytes)
    loaded = saved_run.load(run)
    loaded.require_kind("translation", "translate")
    decoding = {} if length_penalty is None else {"length_penalty": length_penalty}
    line_count = 0
    out = sys.stdout.buffer  # UTF-8, whatever the locale has for text
    for texts in _arriving(sys.stdin.buffer, together) if file is None else _parts(loaded.inputs_in(file), together):
        for text in _translate_lines(loaded, texts, line_count, beam, decoding):
            out.write(f"{' '.join(text.split())}\n".encode())
        out.flush()
        line_count += len(texts)


def _translate_lines(
    loaded: SavedRun, lines: list[str], before: int, beam: int | None, decoding: dict[str, float]
) -> list[str]:
    """Translate lines; `before` is the number of lines that precede them."""
    evaluator = loaded.evaluator
    sources = evaluator.vocabulary.encode(lines, "source")

    def warn(truncated: list[int], limit: int) -> None:
        first, longer = before + truncated[0] + 1, f"longer than the limit of {limit:,} tokens"
        one = f"Line {first:,} is {longer}, and was truncated."
        many = f"{len(truncated):,} lines are {longer}, and were truncated; the first is line {first:,}."
        print(one if len(truncated) == 1 else many, file=sys.stderr)

    return evaluator.translated(loaded.model.to(loaded.device), sources, beam=beam, on_truncated=warn, **decoding)


def _parts(lines: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(lines), size):
        yield lines[start : start + size]


def _arriving(stream: Any, size: int) -> Iterator[list[str]]:
    """Batches of lines as `_chunks` has them, as text."""
    line_count = 0
    for lines in _chunks(stream, size):
        yield [_decode(line, line_count + index) for index, line in enumerate(lines, 1)]
        line_count += len(lines)


def _chunks(stream: Any, size: int) -> Iterator[list[bytes]]:
    """Batches of up to `size` lines that have arrived, without waiting for more, so that interactive use works."""
    lines: list[bytes] = []
    partial: list[bytes] = []  # the pieces of a line whose end has not arrived
    piece = b"any"
    while piece:
        piece = stream.read1(READ_BYTES)
        first, *rest = piece.split(b"\n")
        partial.append(first)
        for next_piece in rest:
            lines.append(b"".join(partial))
            partial = [next_piece]
        if not piece and any(partial):
            lines.append(b"".join(partial))
        while len(lines) >= size or (lines and not (piece and _readable(stream))):
            yield lines[:size]
            lines = lines[size:]


def _readable(stream: Any) -> bool:
    """Whether more input, or its end, can be read without waiting; False where the system cannot say."""
    try:
        return bool(select.select([stream], [], [], 0)[0])
    except (OSError, ValueError):
        return False


def _decode(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        print(f"Line {number} is not UTF-8 (byte {error.start + 1}); invalid bytes are dropped.", file=sys.stderr)
        return line.decode("utf-8", errors="ignore").rstrip("\r\n")
