"""Translations are those of an exhaustive search where there can be one; order, length and odd sources are seen to."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from labo.errors import UserError
from labo.tasks.translation import models
from labo.tasks.translation.decoding import translate

IDS: dict[str, Any] = {"vocabulary_size": 7, "pad": 0, "unk": 1, "bos": 2, "eos": 3}


@pytest.fixture(scope="module")
def model() -> Any:
    """A network that has half learnt to turn a few words round: it says another thing of each source."""
    torch.manual_seed(0)
    made: Any = models.build("tiny", IDS, {"dropout": 0.0})
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-3)
    for step in range(30):
        words = torch.randint(4, 7, (32, step % 3 + 1))
        end = torch.full((32, 1), 3)
        labels = torch.cat([words.flip(1), end], 1)
        read = models.decoder_inputs(labels, IDS)
        logits = made(input_ids=torch.cat([words, end], 1), decoder_input_ids=read).logits
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
    return made


def log_p(model: Any, source: list[int], read: torch.Tensor) -> torch.Tensor:
    """The log probability of every next piece (M, T, 7) after each of what was read (M, T)."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*source, 3]] * len(read)), decoder_input_ids=read).logits
    model.train()
    return logits.log_softmax(-1)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("source", [[4], [5, 6, 4], [6, 6]])
def test_a_wide_beam_is_an_exhaustive_search(model, source, penalty):
    words = (1, 4, 5, 6)
    longest = list(itertools.product(words, repeat=3))
    steps = log_p(model, source, torch.tensor([(2, *target) for target in longest]))
    found: dict[tuple[int, ...], float] = {}
    for target, each in zip(longest, steps.tolist(), strict=True):
        total = 0.0
        for length in range(4):
            # The end mark ends a translation; after the third word another one does too, which is cut off.
            for last in (3,) if length < 3 else (3, *words):
                value = (total + each[length][last]) / (length + 1) ** penalty
                found[target[:length]] = max(value, found.get(target[:length], -math.inf))
            total += each[length][target[length]] if length < 3 else 0.0
    best = max(found, key=found.__getitem__)
    ours = translate(model, [source], beam=100, length_penalty=penalty, max_ratio=0, max_more=3)
    assert ours == [list(best)]


def test_the_length_penalty_decides_among_them(model):
    lengths = [
        sum(map(len, translate(model, SOURCES, beam=5, length_penalty=penalty, max_ratio=0, max_more=9)))
        for penalty in (-2.0, 0.0, 3.0)
    ]
    assert lengths[0] <= lengths[1] < lengths[2]


def test_greedy_takes_the_likeliest_piece_at_each_step(model):
    for source in ([4, 5], [6], [5, 5, 4, 6]):
        target = [2]
        while len(target) < 12 and target[-1] != 3:
            following = log_p(model, source, torch.tensor([target]))[0, -1]
            following[[0, 2]] = -torch.inf
            target.append(int(following.argmax()))
        expected = [piece for piece in target[1:] if piece != 3]
        assert translate(model, [source], beam=1, max_ratio=0, max_more=11) == [expected]


SOURCES = [[4], [], [5, 6, 4, 4, 5], [6, 5], [3], [4, 4, 4], [6] * 9]


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_the_order_is_kept_and_batches_change_nothing(model, beam, batch_tokens):
    done: list[int] = []
    found = translate(model, SOURCES, beam=beam, batch_tokens=batch_tokens, progress=done.append)
    alone = [translate(model, [source], beam=beam)[0] for source in SOURCES]
    assert found == alone
    assert sum(done) == len(SOURCES)
    assert found[1] == found[4] == []  # nothing to translate
    assert len({tuple(ids) for ids in found}) > 3
    assert model.training


def test_the_end_mark_may_be_there(model):
    assert translate(model, [[5, 6, 3]]) == translate(model, [[5, 6]])


def test_no_translation_has_a_padding_or_begin_mark():
    torch.manual_seed(0)
    made: Any = models.build("tiny", IDS, {})
    with torch.no_grad():
        made.final_logits_bias[0, [0, 2]] = 50.0  # as smoothing and a small corpus may make it
    found = translate(made, SOURCES, beam=3)
    assert any(found)
    assert not {0, 2, 3} & {piece for ids in found for piece in ids}


@pytest.mark.parametrize("beam", [1, 4])
def test_a_translation_is_no_longer_than_asked(model, beam):
    with torch.no_grad():
        model.final_logits_bias[0, 3] = -100.0
    try:
        found = translate(model, [[4] * 10, [5]], beam=beam, max_ratio=1.5, max_more=2)
        assert [len(ids) for ids in found] == [17, 3]
    finally:
        model.final_logits_bias.zero_()


def test_long_sources_are_cut_and_it_is_told(model):
    told: list[tuple[list[int], int]] = []

    def tell(places: list[int], limit: int) -> None:
        told.append((places, limit))

    long = [4, 5] * 50_000
    found = translate(model, [long, [4]], beam=1, max_ratio=0, max_more=3, on_truncated=tell)
    assert told == [([0], 1024)]
    assert found[0] == translate(model, [long[:1023]], beam=1, max_ratio=0, max_more=3, on_truncated=tell)[0]
    assert len(told) == 1
    short = translate(model, [[4, 5, 6, 6]], max_source=3, on_truncated=tell)
    assert short == translate(model, [[4, 5]])
    assert told[1:] == [([0], 3)]


def test_nothing_is_printed(model, capfd):
    translate(model, SOURCES, beam=1)
    translate(model, SOURCES, beam=2)
    assert capfd.readouterr() == ("", "")


def test_nothing_to_translate(model):
    assert translate(model, []) == []
    assert translate(model, [[], []]) == [[], []]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beam": 0}, "`beam` to be a whole number of at least 1, but got 0"),
        ({"beam": 2.5}, "`beam` to be a whole number"),
        ({"length_penalty": float("nan")}, "`length_penalty` to be a finite number, but got nan"),
        ({"max_ratio": -1}, "`max_ratio` to be a finite number of at least 0, but got -1"),
        ({"max_more": True}, "`max_more` to be a whole number"),
        ({"max_source": 1}, "`max_source` to be a whole number of at least 2, but got 1"),
    ],
)
def test_what_is_refused(model, options, told):
    with pytest.raises(UserError, match=told):
        translate(model, [[4]], **options)


def test_a_piece_of_another_vocabulary_is_refused(model):
    with pytest.raises(UserError, match="pieces from 0 to 6 in source 1, but got 7"):
        translate(model, [[4], [5, 7]])
    with pytest.raises(UserError, match="in source 0, but got -100"):
        translate(model, [[-100]])
