"""The vocabulary and the sentences that it makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from labo.errors import UserError
from labo.tasks.translation import numbers, vocabulary
from labo.tasks.translation.dataset import Ragged, Sentences
from labo.tasks.translation.text_files import Pairs
from labo.tasks.translation.vocabulary import JOINT, SEPARATE, Vocabulary

TEXT = numbers.draw(0, 300, "de", "en")["train"]


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return Vocabulary.train(TEXT.source, TEXT.target, size=100)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("joint", [True, False])
def test_the_same_text_gives_the_same_vocabulary(kind: str, joint: bool):
    first, again = (Vocabulary.train(TEXT.source, TEXT.target, size=60, kind=kind, joint=joint) for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    assert tuple(first.to_bytes()) == (JOINT if joint else SEPARATE)
    assert (first.size, first.source_size, first.joint) == (60, 60, joint)
    assert first.digest() == again.digest()
    sides: Any = (("source", TEXT.source), ("target", TEXT.target))
    for side, lines in sides:
        ids = first.encode(lines, side)
        assert first.decode(ids, side) == lines
        assert min(min(row) for row in ids) >= 4  # no marks, nothing unknown
        assert max(max(row) for row in ids) < 60
    assert (first.encode(["ein"], "source") == first.encode(["ein"], "target")) == joint
    read = Vocabulary.from_bytes(first.to_bytes(), first.digest())
    assert read.encode(TEXT.target, "target") == first.encode(TEXT.target, "target")


def test_marks_and_strange_text(words: Vocabulary):
    assert words.pieces([0, 1, 2, 3]) == ["<pad>", "<unk>", "<s>", "</s>"]
    ids = words.encode(["zwei", "", "  two   hundred ", "ｔｗｏ", "日本 two"])
    assert ids[1] == []
    assert words.decode([[2, *ids[0], 3, 0, 0], *ids[1:]]) == ["zwei", "", "two hundred", "two", "⁇ two"]
    assert 1 in ids[4]
    assert "".join(words.pieces(ids[0])) == "▁zwei"
    for wrong in (-1, words.size):
        with pytest.raises(UserError, match=f"Expected pieces from 0 to {words.size - 1}, but got {wrong}"):
            words.decode([[5, wrong]])
    long = words.encode(["zwei " * 20_000, "q" * 100_000])  # 100,000 characters each
    assert words.decode(long[:1]) == [("zwei " * 20_000).strip()]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_large_and_too_small(kind: str):
    source, target = ["ein Hund", "eine Katze"], ["a dog", "a cat"]
    with pytest.raises(UserError, match=r"at most (\d+) pieces, the most that the text of both sides supports, but"):
        Vocabulary.train(source, target, size=8_000, kind=kind)
    shrunk = Vocabulary.train(source, target, size=8_000, kind=kind, shrink=True)
    assert shrunk.size < 100
    assert any(f"supports a vocabulary of {shrunk.size} pieces" in note for note in shrunk.notes)
    with pytest.raises(UserError, match=f"at most {shrunk.size} pieces"):
        Vocabulary.train(source, target, size=shrunk.size + 1, kind=kind)
    assert Vocabulary.train(source, target, size=shrunk.size, kind=kind).to_bytes() == shrunk.to_bytes()
    with pytest.raises(UserError, match=r"at least (\d+) pieces, for its characters alone, but got 6"):
        Vocabulary.train(source, target, size=6, kind=kind)
    with pytest.raises(UserError, match="text of the target supports"):
        Vocabulary.train(TEXT.source, ["a"], size=80, kind=kind, joint=False)


def test_what_will_not_do():
    with pytest.raises(UserError, match="Unknown vocabulary kind 'bpd'; the nearest is 'bpe'"):
        Vocabulary.train(["a"], ["b"], size=10, kind="bpd")
    with pytest.raises(UserError, match="vocabulary of both sides on, but got none"):
        Vocabulary.train([], [" "], size=10)
    with pytest.raises(UserError, match=r"have the file source\.sentencepiece.model, but got none"):
        Vocabulary({})


def test_a_truncated_model_is_refused(words: Vocabulary):
    (content,) = words.to_bytes().values()
    for cut in (0, 10, len(content) // 2, len(content) - 1):
        with pytest.raises(UserError, match="was cut"):
            Vocabulary.from_bytes({JOINT[0]: content[:cut]})
    other = Vocabulary.train(TEXT.source, TEXT.target, size=99)
    with pytest.raises(UserError, match=f"digest {words.digest()}, but got {other.digest()}"):
        Vocabulary.from_bytes(other.to_bytes(), words.digest())


def test_many_characters_leave_the_rarest_out():
    rare = [chr(0x4E00 + i) for i in range(1_200)]
    text, letters = "the cat sat on the mat " * 25_000, 10  # a blank among them
    found = Vocabulary.train([text[:500_000]] * 9, rare, size=60, shrink=True)
    assert f"has {1_200 + letters:,} different characters: the rarest, 0.05% of the text," in found.notes[0]
    assert found.encode(["一 cat"])[0].count(1) == 1
    assert found.size <= 60


def test_large_text_is_thinned_evenly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocabulary, "MAX_LINES", 200)
    found = Vocabulary.train(TEXT.source, TEXT.target, size=60)
    assert found.notes == ("The vocabulary of both sides is trained on one of every 3 of 600 lines.",)
    monkeypatch.undo()
    assert found.to_bytes() == Vocabulary.train(TEXT.source[::3], TEXT.target[::3], size=60).to_bytes()


def test_ragged():
    rows = [[1, 2, 3], [], [4], [5, 6]]
    ragged = Ragged.of(rows)
    assert ragged.ids.dtype == torch.int32
    assert ragged.lengths.tolist() == [3, 0, 1, 2]
    assert [row.tolist() for row in ragged] == rows
    taken = ragged.take(torch.tensor([3, 0, 0, 1]))
    assert [row.tolist() for row in taken] == [[5, 6], [1, 2, 3], [1, 2, 3], []]
    assert [row.tolist() for row in Ragged.chain([ragged, taken])] == [*rows, [5, 6], [1, 2, 3], [1, 2, 3], []]
    assert len(Ragged.of([])) == len(Ragged.chain([])) == len(ragged.take(torch.tensor([], dtype=torch.long))) == 0


def test_batches_are_padded(words: Vocabulary, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("labo.tasks.translation.dataset._LINES_AT_ONCE", 7)  # lines are encoded in several pieces
    part = Sentences.of(TEXT, words)
    assert len(part) == 300
    batch = part.__getitems__([4, 0, 299])
    for row, index in enumerate([4, 0, 299]):
        source, target = words.encode([TEXT.source[index]])[0], words.encode([TEXT.target[index]], "target")[0]
        length = len(source) + 1
        assert batch["input_ids"][row].tolist() == [*source, 3] + [0] * (batch["input_ids"].shape[1] - length)
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert batch["labels"][row].tolist() == [*target, 3] + [-100] * (batch["labels"].shape[1] - len(target) - 1)
        assert part.lengths[index] == max(length, len(target) + 1)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert batch["input_ids"].shape[1] == part.features.lengths[[4, 0, 299]].max()
    assert part.target_text == TEXT.target


def test_counts_of_labels(words: Vocabulary):
    part = Sentences.of(Pairs(["eins", "zwei"], ["one", "one two"]), words)
    counts = part.class_counts(words.size)
    expected = torch.zeros(words.size, dtype=torch.int64)
    for row in words.encode(part.target_text, "target"):
        for piece in [*row, 3]:
            expected[piece] += 1
    assert torch.equal(counts, expected)
    assert counts[3] == 2


def test_subsets_keep_everything(words: Vocabulary):
    part = Sentences.of(TEXT, words)
    part = replace(part, before_noise=Ragged.of([[i] for i in range(300)]))
    some = part.subset(torch.tensor([7, 2]))
    assert (some.source_text, some.target_text) == ([TEXT.source[7], TEXT.source[2]], [TEXT.target[7], TEXT.target[2]])
    assert some.__getitems__([1])["labels"].tolist() == part.__getitems__([2])["labels"].tolist()
    assert some.before_noise.ids.tolist() == [7, 2]
    assert some.origin is not None
    assert some.origin.names() == ["line 8", "line 3"]


def test_filters(words: Vocabulary):
    part = Sentences.of(Pairs(["zwei", "zwei " * 50, "zwei"], ["two", "two", "two " * 9]), words)
    source, target = (side.lengths - 1 for side in (part.features, part.target))
    kept, long, unequal = part.filtered(int(source[0]))
    assert long == 2
    longest = int(max(source[2], target[2]))
    kept, long, unequal = part.filtered(longest)
    assert (len(kept), long, unequal) == (2, 1, 0)
    assert kept.source_text == ["zwei", "zwei"]
    assert part.filtered(longest - 1)[1] == 2
    kept, long, unequal = part.filtered(longest, max_ratio=3)
    assert (len(kept), long, unequal) == (1, 1, 1)
    assert kept.__getitems__([0])["labels"].tolist() == part.__getitems__([0])["labels"].tolist()
    assert part.filtered(10_000)[0] is part


def test_a_model_file_is_what_other_programs_read(words: Vocabulary, tmp_path: Path):
    import sentencepiece

    path = tmp_path / JOINT[0]
    path.write_bytes(words.to_bytes()[JOINT[0]])
    other = sentencepiece.SentencePieceProcessor(model_file=str(path))  # pyright: ignore[reportCallIssue]
    assert other.encode(TEXT.source[:5]) == words.encode(TEXT.source[:5])
