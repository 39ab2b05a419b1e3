"""Translations from a trained network: beam search by Transformers' `generate`, in batches of like length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from labo.errors import UserError
from labo.tasks.translation.models import POSITIONS, limits_of

# Of a batch: pieces of the sources times the beam, padding included.
BATCH_TOKENS = 16_384
Sequences = Sequence[Sequence[int]]


def translate(
    model: nn.Module,
    sources: Sequences,
    *,
    beam: int = 5,
    length_penalty: float = 1.0,
    max_ratio: float = 2.0,
    max_more: int = 20,
    max_source: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] | None = None,
    told: Callable[[list[int], int], None] | None = None,
) -> list[list[int]]:
    """Translate sources with a network that `models.build` made; an empty source has an empty translation.

    Batches hold sources of like length; the result has the order that was given. No translation has a padding or begin
    mark. The same network, sources and options give the same translations; the network's mode is put back.

    Args:
        model: a Transformers encoder-decoder, on any device.
        sources: pieces of each source, with or without the end mark; the network reads it with one.
        beam: hypotheses kept at each step; 1 is greedy.
        length_penalty: hypotheses are ranked by their log probability over their length to this power; the larger, the
            longer the translations; 0 ranks by probability alone.
        max_ratio, max_more: a translation has at most max_ratio * S + max_more pieces for a source of S, and no more
            than the network has positions for.
        max_source: pieces that are read of a source, its end mark included; by default as many as the network has
            positions for.
        batch_tokens: the budget of a batch: its longest source times its sources times the beam. A source that is
            longer than that by itself is a batch.
        progress: called now and then with how many sources more are done.
        told: called where sources were cut, with the places of these and how many pieces are read of each.

    Returns:
        The pieces of each translation, without begin and end marks.

    Raises:
        UserError: an option is out of range, or a source has a piece that the network does not know.

    Example:
        >>> from labo.tasks.translation import models
        >>> model = models.build("tiny", {"vocabulary_size": 20, "pad": 0, "bos": 2, "eos": 3}, {})
        >>> [len(ids) <= 12 for ids in translate(model, [[5, 6], [], [9]], beam=1, max_more=8)]
        [True, True, True]
    """
    search = _Search(beam, length_penalty, max_ratio, max_more, max_source, batch_tokens)
    read, cut = _prepared(sources, model, search)
    if cut and told:
        told(cut, _limit(model, search))
    found: list[list[int]] = [[] for _ in read]
    empty = sum(not ids for ids in read)
    if empty and progress:
        progress(empty)
    training = model.training
    model.eval()
    try:
        for places in _batches(read, search):
            for place, ids in zip(places, _searched(model, [read[at] for at in places], search), strict=True):
                found[place] = ids
            if progress:
                progress(len(places))
    finally:
        model.train(training)
    return found


@dataclass(frozen=True)
class _Search:
    """The options of `translate`, once they are seen to be in range."""

    beam: int
    length_penalty: float
    max_ratio: float
    max_more: int
    max_source: int | None
    batch_tokens: int

    def __post_init__(self) -> None:
        for name in ("beam", "max_more", "batch_tokens", "max_source"):
            value, least = getattr(self, name), 2 if name == "max_source" else 1
            if not (name == "max_source" and value is None) and (type(value) is not int or value < least):
                raise UserError(f"Expected `{name}` to be a whole number of at least {least}, but got {value!r}.")
        for name, least in (("length_penalty", -math.inf), ("max_ratio", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
                bound = "" if least < 0 else " of at least 0"
                raise UserError(f"Expected `{name}` to be a finite number{bound}, but got {value!r}.")

    def longest(self, source: int) -> int:
        """The most pieces of a translation for a source of so many."""
        return int(self.max_ratio * source) + self.max_more


def _positions(model: Any) -> tuple[int, int]:
    """(pieces read of a source, of a target); those without a bound are given one, as memory grows with its square."""
    source, target = limits_of(model.config)
    return source or POSITIONS, target or POSITIONS


def _limit(model: nn.Module, search: _Search) -> int:
    positions, _ = _positions(model)
    return min(positions, search.max_source or positions)


def _prepared(sources: Sequences, model: Any, search: _Search) -> tuple[list[list[int]], list[int]]:
    """What is read of each source, without its end mark, and the places of those that were cut."""
    limit, end, size = _limit(model, search), model.config.eos_token_id, model.get_input_embeddings().num_embeddings
    read: list[list[int]] = []
    cut: list[int] = []
    for place, source in enumerate(sources):
        ids = [int(piece) for piece in source]
        if ids and ids[-1] == end:
            ids.pop()
        if ids and not 0 <= min(ids) <= max(ids) < size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise UserError(f"Expected pieces from 0 to {size - 1} in source {place}, but got {wrong}.")
        if len(ids) >= limit:
            cut.append(place)
        read.append(ids[: limit - 1])
    return read, cut


def _batches(read: Sequences, search: _Search) -> Iterator[list[int]]:
    """Places of sources that are not empty, the longest first, so that what does not fit in memory is seen at once."""
    order = sorted((place for place, ids in enumerate(read) if ids), key=lambda place: -len(read[place]))
    while order:
        take = max(1, search.batch_tokens // ((len(read[order[0]]) + 1) * search.beam))
        yield order[:take]
        order = order[take:]


@torch.no_grad()
def _searched(model: Any, read: Sequences, search: _Search) -> list[list[int]]:
    """The translations of a batch."""
    from transformers import GenerationConfig

    config, device = model.config, next(model.parameters()).device
    rows = [torch.tensor([*ids, config.eos_token_id]) for ids in read]
    input_ids = pad_sequence(rows, batch_first=True, padding_value=config.pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
    ranking = {"length_penalty": float(search.length_penalty), "early_stopping": False} if search.beam > 1 else {}
    # The begin mark takes a position; the end mark is one piece more than the translation has.
    most = min(search.longest(max(map(len, read))) + 1, _positions(model)[1] - 1)
    asked = GenerationConfig(
        num_beams=search.beam,
        do_sample=False,
        max_new_tokens=most,
        suppress_tokens=[config.pad_token_id, config.bos_token_id],
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        **ranking,
    )
    given = model.generate(input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=asked)
    return [
        _before_end(ids, config.eos_token_id)[: search.longest(len(source))]
        for ids, source in zip(given[:, 1:].tolist(), read, strict=True)
    ]


def _before_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
