"""Encoded pairs of sentences: kept flat, padded when a batch is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from labo.tasks.base import Examples, Origin
from labo.tasks.translation.models import decoder_inputs
from labo.tasks.translation.pairs import Pairs
from labo.tasks.translation.vocabulary import BEGIN, END, PAD, Side, Vocabulary

# What the loss ignores.
IGNORED = -100
# Lines are encoded so many at a time: lists of Python's integers are large.
_PIECE = 10_000


@dataclass(frozen=True)
class Ragged:
    """N sequences of different length, end to end.

    `ids` are int32, sequence i is ids[offsets[i] : offsets[i + 1]], and `offsets` are int64 (N + 1,).
    """

    ids: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]]) -> Ragged:
        """Of lists of integers."""
        arrays = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        lengths = torch.tensor([len(array) for array in arrays], dtype=torch.int64)
        flat = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
        return cls(torch.from_numpy(flat), _offsets(lengths))

    @classmethod
    def chain(cls, pieces: Sequence[Ragged]) -> Ragged:
        """One after the other."""
        ids = [piece.ids for piece in pieces] or [torch.zeros(0, dtype=torch.int32)]
        lengths = [piece.lengths for piece in pieces] or [torch.zeros(0, dtype=torch.int64)]
        return cls(torch.cat(ids), _offsets(torch.cat(lengths)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tensor:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> Tensor:
        """How long each is, int64 (N,)."""
        return self.offsets.diff()

    def take(self, indices: Tensor) -> Ragged:
        """Those at `indices` (M,), in this order."""
        return self._beginnings(self.offsets[:-1][indices], self.lengths[indices])

    def shortened(self, most: int) -> Ragged:
        """The first `most` of each.

        Example:
            >>> Ragged.of([[5, 6, 7], [8]]).shortened(2).ids.tolist()
            [5, 6, 8]
        """
        return self._beginnings(self.offsets[:-1], self.lengths.clamp(max=most))

    def _beginnings(self, starts: Tensor, lengths: Tensor) -> Ragged:
        offsets = _offsets(lengths)
        within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
        return Ragged(self.ids[starts.repeat_interleave(lengths) + within], offsets)


@dataclass(frozen=True)
class Sentences(Examples):
    """N pairs of sentences as numbers of pieces, each with the end mark, and as the text that they were.

    `features` and `target` are `Ragged`, and so is `before_noise`, the right translations, where noise was planted;
    `source_text` and `target_text` are lists of N raw lines. The latter are what translations are scored against.
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
        source, target = encoded(pairs.source, vocabulary, "source"), encoded(pairs.target, vocabulary, "target")
        places = torch.arange(len(pairs)) if pairs.places is None else torch.tensor(pairs.places, dtype=torch.int64)
        return cls(source, target, Origin(places, _line), source_text=pairs.source, target_text=pairs.target)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A padded batch of M pairs.

        `input_ids` (M, S) int64 are padded with 0, `attention_mask` (M, S) int64 is 1 where they are not, `labels`
        (M, T) int64 are padded with -100, and `decoder_input_ids` (M, T) are what the decoder reads to give them; S and
        T are the longest of the batch, end mark included.
        """
        source = [self.features[index].long() for index in indices]
        target = [self.target[index].long() for index in indices]
        input_ids = pad_sequence(source, batch_first=True, padding_value=PAD)
        # Not `input_ids != 0`: the mask is what was padded, whatever the text holds.
        lengths = torch.tensor([len(row) for row in source])
        mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
        labels = pad_sequence(target, batch_first=True, padding_value=IGNORED)
        read = decoder_inputs(labels, {"pad": PAD, "bos": BEGIN})
        return {"input_ids": input_ids, "attention_mask": mask, "decoder_input_ids": read, "labels": labels}

    @property
    def lengths(self) -> Tensor:
        """The pieces of the longer side, end mark included, int64 (N,): what `TokenBatches` goes by."""
        return torch.maximum(self.features.lengths, self.target.lengths)

    def class_counts(self, size: int) -> Tensor:
        """See `Examples.class_counts`: pieces, end marks included."""
        return torch.bincount(self.target.ids.long(), minlength=size)

    def subset(self, chosen: Tensor) -> Sentences:
        """See `Examples.subset`."""
        places = chosen.tolist()
        source, target = ([text[place] for place in places] for text in (self.source_text, self.target_text))
        origin = None if self.origin is None else replace(self.origin, places=self.origin.places[chosen])
        before = None if self.before_noise is None else self.before_noise.take(chosen)
        return Sentences(self.features.take(chosen), self.target.take(chosen), origin, before, source, target)

    def longer(self, limits: tuple[int | None, int | None]) -> int:
        """How many pairs have a side with more pieces, end mark included, than the limit of (source, target)."""
        sides = zip((self.features.lengths, self.target.lengths), limits, strict=True)
        long = torch.zeros(len(self), dtype=torch.bool)
        for lengths, most in sides:
            if most is not None:
                long |= lengths > most
        return int(long.sum())

    def cut(self, limits: tuple[int | None, int | None]) -> Sentences:
        """The pairs as a network that takes at most so many pieces of (source, target) reads them; the text stays.

        A source that is cut still ends with the end mark, as in decoding; a target does not, for it goes on there.
        """
        if not self.longer(limits):
            return self
        source, target = self.features, self.target
        if limits[0] is not None:
            source = source.shortened(limits[0])
            source.ids[source.offsets[1:] - 1] = END
        if limits[1] is not None:
            target = target.shortened(limits[1])
        return replace(self, features=source, target=target)

    def filtered(self, max_length: int, max_ratio: float | None = None) -> tuple[Sentences, int, int]:
        """(the pairs to train on, how many are too long, how many too unequal).

        Args:
            max_length: the most pieces of a side, end mark left out.
            max_ratio: how many times the pieces of the shorter side the longer may have; any number by default.
        """
        source, target = self.features.lengths - 1, self.target.lengths - 1
        long = torch.maximum(source, target) > max_length
        unequal = torch.zeros_like(long)
        if max_ratio is not None:
            unequal = ~long & (torch.maximum(source, target) > max_ratio * torch.minimum(source, target))
        kept = ~(long | unequal)
        found = self if kept.all() else self.subset(kept.nonzero().flatten())
        return found, int(long.sum()), int(unequal.sum())


def encoded(lines: Sequence[str], vocabulary: Vocabulary, side: Side) -> Ragged:
    """Lines as numbers of pieces, each with the end mark."""
    pieces = []
    for start in range(0, len(lines), _PIECE):
        pieces.append(Ragged.of([*ids, END] for ids in vocabulary.encode(lines[start : start + _PIECE], side)))
    return Ragged.chain(pieces)


def said_of_cut(examples: Sentences, limits: tuple[int | None, int | None], what: str) -> tuple[str, ...]:
    """What is to be said of pairs that a network of these `limits` does not read whole: a sentence or none."""
    count = examples.longer(limits)
    if not count:
        return ()
    most = " and ".join(f"{limit:,}" for limit in dict.fromkeys(limits) if limit is not None)
    return (
        f"{count:,} of {len(examples):,} {what} pairs have a side longer than the {most} pieces that the network "
        "takes: the rest of it is neither read nor scored as tokens, BLEU and chrF are of the whole reference.",
    )


def _line(place: int) -> str:
    return f"line {place + 1}"


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
