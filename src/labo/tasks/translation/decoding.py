"""Translation with a trained network: beam search by Transformers' `generate`, in batches of similar length."""

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

# Budget of a batch: source pieces times beam width, padding included.
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
    on_truncated: Callable[[list[int], int], None] | None = None,
) -> list[list[int]]:
    """Translate sources with a network of `models.build`; the translation of an empty source is empty.

    Sources are batched by length and returned in the given order. Decoding is deterministic; the network's training
    mode is restored.

    Args:
        model: a Transformers encoder-decoder, on any device.
        sources: token ids of each source; the end-of-sentence token is optional.
        beam: beam width; 1 is greedy.
        length_penalty: hypotheses are ranked by log probability / length ** length_penalty; larger values favour longer
            translations, 0 ranks by probability alone.
        max_ratio, max_more: a translation has at most max_ratio * S + max_more tokens for a source of S, and no more
            than the network has positions.
        max_source: sources are truncated to this many tokens, end-of-sentence token included; by default to the number
            of the network's positions.
        batch_tokens: budget of a batch: longest source x number of sources x beam. A longer source is a batch of its
            own.
        progress: called with the number of sources translated since the last call.
        on_truncated: called if sources were truncated, with their indices and the number of tokens kept.

    Returns:
        Token ids of each translation, without special tokens.

    Raises:
        UserError: an option is out of range, or a token id is outside the vocabulary.

    Example:
        >>> from labo.tasks.translation import models
        >>> model = models.build("tiny", {"vocabulary_size": 20, "pad": 0, "bos": 2, "eos": 3}, {})
        >>> [len(ids) <= 12 for ids in translate(model, [[5, 6], [], [9]], beam=1, max_more=8)]
        [True, True, True]
    """
    search = _Search(beam, length_penalty, max_ratio, max_more, max_source, batch_tokens)
    inputs, truncated = _truncate(sources, model, search)
    if truncated and on_truncated:
        on_truncated(truncated, _source_limit(model, search))
    translations: list[list[int]] = [[] for _ in inputs]
    empty = sum(not ids for ids in inputs)
    if empty and progress:
        progress(empty)
    training = model.training
    model.eval()
    try:
        for indices in _batches(inputs, search):
            for index, ids in zip(indices, _generate(model, [inputs[i] for i in indices], search), strict=True):
                translations[index] = ids
            if progress:
                progress(len(indices))
    finally:
        model.train(training)
    return translations


@dataclass(frozen=True)
class _Search:
    """The options of `translate`, checked."""

    beam: int
    length_penalty: float
    max_ratio: float
    max_more: int
    max_source: int | None
    batch_tokens: int

    def __post_init__(self) -> None:
        for name in ("beam", "max_more", "batch_tokens", "max_source"):
            value, minimum = getattr(self, name), 2 if name == "max_source" else 1
            if not (name == "max_source" and value is None) and (type(value) is not int or value < minimum):
                raise UserError(f"Expected `{name}` to be a whole number of at least {minimum}, but got {value!r}.")
        for name, minimum in (("length_penalty", -math.inf), ("max_ratio", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value < math.inf:
                bound = "" if minimum < 0 else " of at least 0"
                raise UserError(f"Expected `{name}` to be a finite number{bound}, but got {value!r}.")

    def max_length(self, source: int) -> int:
        """The maximum length of a translation for a source of this length."""
        return int(self.max_ratio * source) + self.max_more


def _positions(model: Any) -> tuple[int, int]:
    """Positions of (source, target); networks without a limit get one, because memory grows with its square."""
    source, target = limits_of(model.config)
    return source or POSITIONS, target or POSITIONS


def _source_limit(model: nn.Module, search: _Search) -> int:
    positions, _ = _positions(model)
    return min(positions, search.max_source or positions)


def _truncate(sources: Sequences, model: Any, search: _Search) -> tuple[list[list[int]], list[int]]:
    """(the truncated sources without end-of-sentence token, the indices of those that were longer)."""
    limit, end, size = (
        _source_limit(model, search),
        model.config.eos_token_id,
        model.get_input_embeddings().num_embeddings,
    )
    inputs: list[list[int]] = []
    truncated: list[int] = []
    for index, source in enumerate(sources):
        ids = [int(token) for token in source]
        if ids and ids[-1] == end:
            ids.pop()
        if ids and not 0 <= min(ids) <= max(ids) < size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise UserError(f"Expected pieces from 0 to {size - 1} in source {index}, but got {wrong}.")
        if len(ids) >= limit:
            truncated.append(index)
        inputs.append(ids[: limit - 1])
    return inputs, truncated


def _batches(inputs: Sequences, search: _Search) -> Iterator[list[int]]:
    """Indices of the non-empty sources, longest first, so that a lack of memory shows at once."""
    order = sorted((index for index, ids in enumerate(inputs) if ids), key=lambda index: -len(inputs[index]))
    while order:
        size = max(1, search.batch_tokens // ((len(inputs[order[0]]) + 1) * search.beam))
        yield order[:size]
        order = order[size:]


@torch.no_grad()
def _generate(model: Any, inputs: Sequences, search: _Search) -> list[list[int]]:
    """The translations of a batch."""
    from transformers import GenerationConfig

    config, device = model.config, next(model.parameters()).device
    rows = [torch.tensor([*ids, config.eos_token_id]) for ids in inputs]
    input_ids = pad_sequence(rows, batch_first=True, padding_value=config.pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
    ranking = {"length_penalty": float(search.length_penalty), "early_stopping": False} if search.beam > 1 else {}
    # The begin token takes a position; the end-of-sentence token is generated too.
    max_new_tokens = min(search.max_length(max(map(len, inputs))) + 1, _positions(model)[1] - 1)
    generation = GenerationConfig(
        num_beams=search.beam,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        suppress_tokens=[config.pad_token_id, config.bos_token_id],
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        **ranking,
    )
    output = model.generate(
        input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=generation
    )
    return [
        _before_end(ids, config.eos_token_id)[: search.max_length(len(source))]
        for ids, source in zip(output[:, 1:].tolist(), inputs, strict=True)
    ]


def _before_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
