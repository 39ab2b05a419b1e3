"""The translations that a run keeps beside the references of its test split; imports nothing heavy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from labo.records.storage import write_text

HYPOTHESES, REFERENCES = "test.hypotheses.txt", "test.references.txt"


def write(folder: Path, hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Keep the translations of a run and what they are scored against, a line a sentence each.

    Any run of white space becomes one space, which neither BLEU nor chrF sees and which keeps a sentence on its line.
    """
    for name, lines in ((REFERENCES, references), (HYPOTHESES, hypotheses)):
        write_text(folder / name, "".join(" ".join(line.split()) + "\n" for line in lines))


def read(folder: Path) -> tuple[list[str], list[str]] | None:
    """(translations, references) of a run, or None where they are not both there with as many lines."""
    try:
        found = [(folder / name).read_text(encoding="utf-8").split("\n")[:-1] for name in (HYPOTHESES, REFERENCES)]
    except (OSError, UnicodeDecodeError):
        return None
    return (found[0], found[1]) if found[0] and len(found[0]) == len(found[1]) else None


def digest(texts: Iterable[Sequence[str]]) -> str:
    """What some texts are told from others by."""
    found = hashlib.sha256()
    for lines in texts:
        found.update("\n".join(lines).encode() + b"\0")
    return found.hexdigest()[:16]
