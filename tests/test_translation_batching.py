"""Batches by a budget of tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from labo.errors import UserError
from labo.tasks.translation.batching import TokenBatches, over_budget_notes
from labo.tasks.translation.dataset import Ragged, Sentences


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=300),
    budget=st.integers(1, 500),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 50),
)
def test_every_sentence_once_within_the_budget(lengths: list[int], budget: int, seed: int, epoch: int):
    batches = TokenBatches(torch.tensor(lengths), budget, seed)
    batches.set_epoch(epoch)
    found = list(batches)
    assert len(found) == len(batches)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    alone = sum(length > budget for length in lengths)
    told = over_budget_notes(torch.tensor(lengths), budget)
    pairs = "training pair has" if alone == 1 else "training pairs have"
    expected = f"{alone} {pairs} more than the {budget} tokens of a batch, the longest {max(lengths)}: "
    assert [note.startswith(expected) for note in told] == [True] * bool(alone)


def lengths(count: int = 2_000) -> torch.Tensor:
    return torch.randint(3, 60, (count,), generator=torch.Generator().manual_seed(1))


def test_seed_and_epoch_alone_decide():
    def epoch(seed: int, number: int) -> list[list[int]]:
        batches = TokenBatches(lengths(), 512, seed)
        batches.set_epoch(number)
        return list(batches)

    assert epoch(7, 3) == epoch(7, 3)
    different = [epoch(7, 3), epoch(7, 4), epoch(8, 3), epoch(2**31, 0)]
    assert len({str(found) for found in different}) == 4
    assert len({len(found) for found in different}) == 1
    # Not only the order of the batches: others meet in them.
    assert len({frozenset(map(frozenset, found)) for found in different}) == 4
    going = TokenBatches(lengths(), 512, 7)
    list(going)
    going.set_epoch(3)
    assert list(going) == epoch(7, 3)


def test_little_is_padded_and_the_order_is_no_curriculum():
    true = lengths()
    batches = list(TokenBatches(true, 1_024, 0))
    padded = sum(len(batch) * int(true[batch].max()) for batch in batches)
    assert true.sum() / padded > 0.93  # a batch drawn at random has a half of padding
    assert padded / len(batches) > 0.85 * 1_024
    means = torch.tensor([true[batch].float().mean() for batch in batches])
    place = torch.arange(len(means)).float()
    assert torch.corrcoef(torch.stack([means, place]))[0, 1].abs() < 0.3


def test_what_will_not_do():
    for budget in (0, -5, 3.5, None):
        with pytest.raises(UserError, match=r"Expected setting `tokens` to be a whole number above 0"):
            TokenBatches(torch.tensor([1]), budget, 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="Expected at least 1 sentences to make batches of, but got 0"):
        TokenBatches(torch.tensor([], dtype=torch.long), 5, 0)


def sentences() -> Sentences:
    source, target = ([list(range(4, 4 + int(n))) for n in lengths(100).roll(shift)] for shift in (0, 1))
    return Sentences(Ragged.of(source), Ragged.of(target))


def test_a_data_loader_takes_them():
    part = sentences()
    batches = TokenBatches(part.lengths, 256, 0)
    loader = DataLoader(part, batch_sampler=batches, collate_fn=lambda batch: batch)  # pyright: ignore[reportArgumentType]
    read = list(loader)
    assert len(read) == len(loader) == len(batches)
    for batch in read:
        pairs, longest = len(batch["labels"]), max(batch["labels"].shape[1], batch["input_ids"].shape[1])
        assert pairs == 1 or pairs * longest <= 256
    assert sum(int(batch["labels"].ne(-100).sum()) for batch in read) == int(part.target.lengths.sum())


def test_accelerate_sets_the_epoch():
    from accelerate import Accelerator

    part = sentences()
    batches = TokenBatches(part.lengths, 256, 0)
    loader = DataLoader(part, batch_sampler=batches, collate_fn=lambda batch: batch)  # pyright: ignore[reportArgumentType]
    prepared = Accelerator(cpu=True).prepare(loader)
    epochs = []
    for epoch in range(2):
        prepared.set_epoch(epoch)
        epochs.append([batch["labels"].shape[0] for batch in prepared])
        batches.set_epoch(epoch)
        assert epochs[-1] == [len(batch) for batch in batches]
    assert epochs[0] != epochs[1]


def test_batches_that_are_divided_have_an_example_for_each_part():
    many = torch.tensor([3, 9, 9, 40, 50, 2, 3, 60, 9])
    for least in (1, 2, 3, 4):
        found = list(TokenBatches(many, 20, 0, least=least))
        assert sorted(place for batch in found for place in batch) == list(range(9))
        assert min(map(len, found)) >= least
    with pytest.raises(UserError, match="at least 10 sentences"):
        TokenBatches(many, 20, 0, least=10)
