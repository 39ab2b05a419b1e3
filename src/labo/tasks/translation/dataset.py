"""Encoded sentence pairs: flat in memory, padded per batch; and how their parts and label noise are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from labo.checks import IGNORE_INDEX
from labo.errors import UserError
from labo.tasks.base import Examples, Origin
from labo.tasks.translation.models import decoder_inputs
from labo.tasks.translation.text_files import Pairs
from labo.tasks.translation.vocabulary import BEGIN, END, PAD, Side, Vocabulary
from labo.wording import counted

# The label of padding, which the loss ignores.
# Lines encoded at a time: lists of Python integers are large.
_LINES_AT_ONCE = 10_000
# A part that the data lack gets a tenth of the training pairs, at most this many.
MAX_DRAWN, MIN_PAIRS = 1_000, 10


@dataclass(frozen=True)
class Ragged:
    """N sequences of different lengths, concatenated.

    `ids` are int32, sequence i is ids[offsets[i] : offsets[i + 1]], and `offsets` are int64 (N + 1,).
    """

    ids: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]]) -> Ragged:
        """From lists of integers."""
        arrays = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        lengths = torch.tensor([len(array) for array in arrays], dtype=torch.int64)
        flat = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
        return cls(torch.from_numpy(flat), _offsets(lengths))

    @classmethod
    def chain(cls, pieces: Sequence[Ragged]) -> Ragged:
        """The sequences of all `pieces`, in order."""
        ids = [piece.ids for piece in pieces] or [torch.zeros(0, dtype=torch.int32)]
        lengths = [piece.lengths for piece in pieces] or [torch.zeros(0, dtype=torch.int64)]
        return cls(torch.cat(ids), _offsets(torch.cat(lengths)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tensor:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> Tensor:
        """The length of each sequence, int64 (N,)."""
        return self.offsets.diff()

    def take(self, indices: Tensor) -> Ragged:
        """The sequences at `indices` (M,), in this order."""
        return self._prefixes(self.offsets[:-1][indices], self.lengths[indices])

    def truncated(self, max_length: int) -> Ragged:
        """The first `max_length` elements of each sequence.

        Example:
            >>> Ragged.of([[5, 6, 7], [8]]).truncated(2).ids.tolist()
            [5, 6, 8]
        """
        return self._prefixes(self.offsets[:-1], self.lengths.clamp(max=max_length))

    def _prefixes(self, starts: Tensor, lengths: Tensor) -> Ragged:
        offsets = _offsets(lengths)
        within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
        return Ragged(self.ids[starts.repeat_interleave(lengths) + within], offsets)


@dataclass(frozen=True)
class Sentences(Examples):
    """N sentence pairs as token ids, each with the end-of-sentence token, and as raw text.

    `features` and `target` are `Ragged`, and with label noise so is `before_noise`, the right translations;
    `source_text` and `target_text` are lists of N raw lines. Translations are scored against `target_text`.
    """

    features: Any
    target: Any
    before_noise: Any = None
    source_text: list[str] = field(default_factory=list)
    target_text: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, pairs: Pairs, vocabulary: Vocabulary) -> Sentences:
        """Encode pairs.

        Example:
            >>> words = Vocabulary.train(["ein Hund"], ["a dog"], size=100, shrink=True)
            >>> batch = Sentences.of(Pairs(["ein Hund", "Hund"], ["a dog", "dog"]), words).__getitems__([0, 1])
            >>> batch["labels"].eq(3).sum(1)
            tensor([1, 1])
        """
        source, target = encode(pairs.source, vocabulary, "source"), encode(pairs.target, vocabulary, "target")
        lines = pairs.source_indices
        indices = torch.arange(len(pairs)) if lines is None else torch.tensor(lines, dtype=torch.int64)
        text = {"source_text": pairs.source, "target_text": pairs.target}
        return cls(source, target, Origin(indices, _line_name), notes=pairs.notes, **text)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A padded batch of M pairs.

        `input_ids` (M, S) int64 are padded with 0, `attention_mask` (M, S) int64 is 0 at padding and 1 elsewhere,
        `labels` (M, T) int64 are padded with -100, `decoder_input_ids` (M, T) are the decoder's inputs for them; S and
        T are the longest of the batch, end-of-sentence token included.
        """
        source = [self.features[index].long() for index in indices]
        target = [self.target[index].long() for index in indices]
        input_ids = pad_sequence(source, batch_first=True, padding_value=PAD)
        # From the lengths, not from `input_ids != 0`, whatever the text contains.
        lengths = torch.tensor([len(row) for row in source])
        mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
        labels = pad_sequence(target, batch_first=True, padding_value=IGNORE_INDEX)
        decoder_input_ids = decoder_inputs(labels, {"pad": PAD, "bos": BEGIN})
        return {
            "input_ids": input_ids, "attention_mask": mask, "decoder_input_ids": decoder_input_ids, "labels": labels
        }  # fmt: skip

    @property
    def lengths(self) -> Tensor:
        """Tokens of the longer side, end-of-sentence token included, int64 (N,); `TokenBatches` uses these."""
        return torch.maximum(self.features.lengths, self.target.lengths)

    @override
    def class_counts(self, size: int) -> Tensor:
        """Counts of target tokens, end-of-sentence tokens included."""
        return torch.bincount(self.target.ids.long(), minlength=size)

    @override
    def subset(self, indices: Tensor) -> Sentences:
        rows = indices.tolist()
        source, target = ([text[row] for row in rows] for text in (self.source_text, self.target_text))
        origin = None if self.origin is None else self.origin.subset(indices)
        before = None if self.before_noise is None else self.before_noise.take(indices)
        return Sentences(self.features.take(indices), self.target.take(indices), origin, before, source, target)

    def count_longer(self, limits: tuple[int | None, int | None]) -> int:
        """The number of pairs with more tokens, end-of-sentence token included, than the limits of (source, target)."""
        sides = zip((self.features.lengths, self.target.lengths), limits, strict=True)
        long = torch.zeros(len(self), dtype=torch.bool)
        for lengths, limit in sides:
            if limit is not None:
                long |= lengths > limit
        return int(long.sum())

    def truncated(self, limits: tuple[int | None, int | None]) -> Sentences:
        """The pairs cut to the tokens that a network takes of (source, target); the raw text is kept whole.

        A truncated source still ends with the end-of-sentence token, as in decoding; a truncated target does not,
        because the sentence goes on there.
        """
        if not self.count_longer(limits):
            return self
        source, target = self.features, self.target
        if limits[0] is not None:
            source = source.truncated(limits[0])
            source.ids[source.offsets[1:] - 1] = END
        if limits[1] is not None:
            target = target.truncated(limits[1])
        return replace(self, features=source, target=target)

    def filtered(self, max_length: int, max_ratio: float | None = None) -> tuple[Sentences, int, int]:
        """(the pairs to train on, the number of too long pairs, the number of too unequal pairs).

        Args:
            max_length: tokens per side, without the end-of-sentence token.
            max_ratio: tokens of the longer side over those of the shorter; unlimited by default.
        """
        source, target = self.features.lengths - 1, self.target.lengths - 1
        long = torch.maximum(source, target) > max_length
        unequal = torch.zeros_like(long)
        if max_ratio is not None:
            unequal = ~long & (torch.maximum(source, target) > max_ratio * torch.minimum(source, target))
        keep = ~(long | unequal)
        kept = self if keep.all() else self.subset(keep.nonzero().flatten())
        return kept, int(long.sum()), int(unequal.sum())


def encode(lines: Sequence[str], vocabulary: Vocabulary, side: Side) -> Ragged:
    """Lines as token ids, each with the end-of-sentence token."""
    pieces = []
    for start in range(0, len(lines), _LINES_AT_ONCE):
        pieces.append(Ragged.of([*ids, END] for ids in vocabulary.encode(lines[start : start + _LINES_AT_ONCE], side)))
    return Ragged.chain(pieces)


def truncation_notes(examples: Sentences, limits: tuple[int | None, int | None], what: str) -> tuple[str, ...]:
    """A note on the pairs that a network with these `limits` (see `Sentences.truncated`) truncates, if there are any.

    Args:
        what: the name of the part, such as "test".
    """
    count = examples.count_longer(limits)
    if not count:
        return ()
    lengths = " and ".join(f"{limit:,}" for limit in dict.fromkeys(limits) if limit is not None)
    pairs = f"{count:,} of {counted(len(examples), f'{what} pair')} {'has' if count == 1 else 'have'}"
    return (
        f"{pairs} a side longer than the {lengths} pieces that the network takes: the rest of it is neither read nor "
        "scored as tokens, BLEU and chrF are of the whole reference.",
    )


def draw_parts(
    parts: dict[str, Pairs], train_size: int | None, generator: torch.Generator
) -> tuple[dict[str, Pairs], list[str]]:
    """(the parts train, validation and test, notes); parts that the data lack are drawn from the training part.

    Args:
        parts: the parts of the data, train among them.
        train_size: number of training pairs to keep; None keeps all.

    Raises:
        UserError: too few pairs to draw a part from, or fewer than `train_size`.
    """
    drawn, notes = dict(parts), []
    for part in ("test", "validation"):
        if part not in drawn:
            drawn |= _draw_part(drawn["train"], part, generator)
            notes.append(f"The data have no {part} part: the seed draws {counted(len(drawn[part]), 'pair')}.")
    if train_size is not None:
        count = len(drawn["train"])
        if train_size > count:
            raise UserError(f"Expected a train size from 1 to {count} (all there is), but got {train_size}.")
        indices = torch.randperm(count, generator=generator)[:train_size].sort().values
        drawn["train"] = drawn["train"].take(indices.tolist())
    return drawn, notes


def wrong_translations(target: list[str], fraction: float, kind: str, generator: torch.Generator) -> list[str]:
    """Label noise for text: exactly round(fraction * N) of N translations are replaced by that of another pair.

    "symmetric" takes the translation of any other pair, "pair" that of the next one; where it is the same text, the
    next different one.

    Raises:
        UserError: all translations are the same.

    Example:
        >>> wrong_translations(["one", "two", "two"], 1.0, "pair", torch.Generator())
        ['two', 'one', 'one']
    """
    count = len(target)
    selected = torch.randperm(count, generator=generator)[: round(fraction * count)]
    steps = torch.ones_like(selected)
    if kind == "symmetric" and count > 1:
        steps = torch.randint(1, count, selected.shape, generator=generator)
    if len(selected) and len(set(target)) == 1:
        raise UserError("Expected at least two different translations for label noise, but got the same in all pairs.")
    noisy = list(target)
    for index, step in zip(selected.tolist(), steps.tolist(), strict=True):
        other = (index + step) % count
        while target[other] == target[index]:
            other = (other + 1) % count
        noisy[index] = target[other]
    return noisy


def _draw_part(train: Pairs, part: str, generator: torch.Generator) -> dict[str, Pairs]:
    """The remaining training pairs and those drawn for `part`, each in the order of the data."""
    count = len(train)
    if count < MIN_PAIRS:
        raise UserError(f"Expected at least {MIN_PAIRS} pairs to draw a {part} part from, but got {count}.")
    size = min(MAX_DRAWN, count // 10)
    order = torch.randperm(count, generator=generator)
    kept, drawn = (train.take(indices.sort().values.tolist()) for indices in (order[size:], order[:size]))
    return {"train": kept, part: drawn}


def _line_name(index: int) -> str:
    return f"line {index + 1}"


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
