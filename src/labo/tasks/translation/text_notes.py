"""Notes for the user on the text of a corpus: what makes its scores say something else than they seem to."""

from __future__ import annotations

import re
from collections.abc import Mapping

from labo.tasks.translation.text_files import Pairs
from labo.wording import counted

# Marks words that other tools split before.
_SUBWORD_MARK = "@@ "
# What the tokenizer of Moses writes for characters that mean something to its decoder.
_MOSES = re.compile(r"&(?:apos|quot|amp|lt|gt|bar|#91|#93|#124);|(?<=\S) @(?:-|/|,|\.)@ (?=\S)")
# Sentences that are searched for these.
_INSPECTED = 10_000


def text_notes(parts: Mapping[str, Pairs]) -> list[str]:
    """Notes on the training text: words split before, tokens of Moses, and sides that are the same."""
    train, notes = parts["train"], []
    if any(_SUBWORD_MARK in line for line in train.target[:_INSPECTED]):
        mark = _SUBWORD_MARK.strip()
        notes.append(f"The sentences are split into subwords by '{mark}' already: BLEU is not that of plain text.")
    lines = [line for side in (train.source, train.target) for line in side[:_INSPECTED]]
    matches = [match for line in lines if (match := _MOSES.search(line))]
    if matches:
        notes.append(
            f"{counted(len(matches), 'sentence has', 'sentences have')} tokens of Moses such as "
            f"'{matches[0][0].strip()}': BLEU is not that of plain text; detokenize them."
        )
    for part, pairs in parts.items():
        same = sum(source == target for source, target in zip(pairs.source, pairs.target, strict=True))
        if 2 * same > len(pairs):
            which = "All" if same == len(pairs) else f"{same:,} of the {len(pairs):,}"
            notes.append(f"{which} {part} pairs have the same text on both sides: copying is scored, not translation.")
    return notes


def overlap_notes(parts: Mapping[str, Pairs]) -> list[str]:
    """Notes on the validation and test sentences that are in the training part too."""
    notes = []
    for part in ("validation", "test"):
        # A set of the small part alone: the training part may have millions of sentences.
        sentences = set(parts[part].source)
        seen = sentences.intersection(parts["train"].source)
        if overlap := sum(line in seen for line in parts[part].source):
            verb = "is" if overlap == 1 else "are"
            notes.append(f"{overlap:,} of the {len(parts[part]):,} {part} sentences {verb} trained on too.")
    return notes
