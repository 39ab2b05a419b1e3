"""The translation tasks: their parts, vocabulary, noise, and what is said of data that will not do."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from labo import tasks
from labo.errors import UserError
from labo.tasks import data_files
from labo.tasks.translation import numbers
from labo.tasks.translation import task as shared
from labo.tasks.translation.corpora import CORPORA
from labo.tasks.translation.text_files import Pairs
from labo.tasks.translation.vocabulary import Vocabulary

NAMED = list(CORPORA)
REAL = os.environ.get(data_files.VARIABLE, "")
# The parts of these tasks are `Sentences`, of which `Task` knows nothing.
create: Any = tasks.create
FOUND = numbers.draw(0, 60, "de", "en")


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(data_files.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shared, "_TEXTS", {})
    monkeypatch.setattr(shared, "_VOCABULARIES", {})


def write(path: Path, lines: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def corpus(folder: Path, source: str = "de", target: str = "en") -> str:
    """A folder of 60, 40 and 50 number names."""
    for name, part, count in (("train", "train", 60), ("val", "validation", 40), ("test", "test", 50)):
        write(folder / f"{name}.{source}.gz", FOUND[part].source[:count])
        write(folder / f"{name}.{target}.gz", FOUND[part].target[:count])
    return str(folder)


def texts(splits: Any) -> list[Pairs]:
    parts = (splits.train, splits.validation, splits.test)
    return [Pairs(part.source_text, part.target_text) for part in parts]


@pytest.mark.parametrize("name", NAMED)
def test_named_corpora(name: str, tmp_path: Path):
    _, *pair = name.split("-")
    folder = tmp_path / name.replace("-", "_")
    corpus(folder, *pair)
    task = create(name, data=str(tmp_path), train_size=30)
    first, other = task.splits(1), task.splits(2)
    assert [len(part) for part in texts(first)] == [30, 40, 50]
    assert first.preprocessing["source"] == pair[0]
    assert first.preprocessing["target"] == pair[1]
    assert texts(first)[1:] == texts(other)[1:]  # the official parts
    assert texts(first)[0] != texts(other)[0]
    assert texts(first)[2].source == FOUND["test"].source[:50]
    again = create(name, **task.options)
    assert texts(again.splits(1)) == texts(first)
    before = task.fingerprint()
    assert again.fingerprint() == before
    write(folder / f"val.{pair[0]}.gz", FOUND["validation"].source[1:41])
    assert task.fingerprint() != before
    assert task.metric == "bleu"
    assert {"epochs", "tokens", "learning_rate", "schedule", "model"} <= set(task.default_settings())
    assert task.optimizer_candidates()[0] == {}


@pytest.mark.parametrize("name", NAMED)
def test_data_that_are_not_there_get_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, source, target = name.split("-")
    with pytest.raises(UserError, match=f"Task '{name}' finds no data \\(neither --data nor LABO_DATA") as caught:
        create(name).splits(0)
    assert f"with the endings .{source} and .{target}" in str(caught.value)
    asks = name not in ("multi30k-fr-en", "multi30k-en-fr") and not name.startswith("tatoeba")
    assert ("give the option fetch" in str(caught.value)) == asks
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(data_files.VARIABLE, str(tmp_path / "empty"))
    with pytest.raises(UserError, match=f"Task '{name}' finds no data in '.*empty': put train, valid and test"):
        create(name, fetch=None if asks else True).fingerprint()
    with pytest.raises(UserError, match=r"No such file or folder: '.*nowhere', named by --data"):
        create(name, data=str(tmp_path / "nowhere")).splits(0)


def test_an_unknown_direction_gets_one_sentence():
    with pytest.raises(UserError, match="Unknown task 'iwslt14-de-xx'; the nearest is 'iwslt14-de-en'"):
        create("iwslt14-de-xx")


def test_the_vocabulary_is_of_the_training_part_alone_and_saved(tmp_path: Path):
    splits = create("multi30k-de-en", data=corpus(tmp_path)).splits(0)
    about = splits.preprocessing
    assert json.loads(json.dumps(about)) == about
    assert {key: about[key] for key in ("pad", "unk", "bos", "eos")} == {"pad": 0, "unk": 1, "bos": 2, "eos": 3}
    vocabulary = Vocabulary.from_bytes(splits.files, about["vocabulary_digest"])
    assert vocabulary.size == about["vocabulary_size"] == about["source_vocabulary_size"] < 8_000
    assert any(f"supports a vocabulary of {vocabulary.size} pieces" in note for note in splits.notes)
    expected = Vocabulary.train(*(getattr(FOUND["train"], side) for side in ("source", "target")), size=vocabulary.size)
    assert expected.to_bytes() == splits.files
    for part in (splits.train, splits.test):
        batch = part.__getitems__([3])
        assert batch["labels"].tolist() == [[*vocabulary.encode(part.target_text[3:4], "target")[0], 3]]
        assert batch["input_ids"].tolist() == [[*vocabulary.encode(part.source_text[3:4])[0], 3]]
    apart = create("multi30k-de-en", data=str(tmp_path), joint=False, vocabulary_kind="unigram").splits(0)
    assert sorted(apart.files) == ["source.sentencepiece.model", "target.sentencepiece.model"]
    assert apart.preprocessing["vocabulary_kind"] == "unigram"
    assert not apart.preprocessing["joint"]
    with pytest.raises(UserError, match=f"at most {vocabulary.size} pieces, .* but got 8000"):
        create("multi30k-de-en", data=str(tmp_path), vocabulary_size=8_000).splits(0)


def test_label_noise_leaves_the_test_part_and_the_vocabulary_clean(tmp_path: Path):
    data = corpus(tmp_path)
    clean, noisy = (create("multi30k-de-en", data=data, label_noise=noise).splits(5) for noise in (None, "0.25"))
    for before, after, wrong in zip(texts(clean), texts(noisy), (15, 10, 0), strict=True):
        assert before.source == after.source
        assert sum(one != other for one, other in zip(before.target, after.target, strict=True)) == wrong
    assert clean.files == noisy.files
    for part, right in ((noisy.train, clean.train), (noisy.validation, clean.validation)):
        assert part.before_noise.ids.tolist() == right.target.ids.tolist()
        assert part.target.ids.tolist() != right.target.ids.tolist()
    assert noisy.test.before_noise is None
    again = create("multi30k-de-en", data=data, label_noise="0.25").splits(5)
    assert texts(again) == texts(noisy)
    assert texts(create("multi30k-de-en", data=data, label_noise="0.25").splits(6)) != texts(noisy)


def test_what_is_left_out_is_told(tmp_path: Path):
    source, target = FOUND["train"].source[:30], FOUND["train"].target[:30]
    source[3], target[4] = " ", ""
    source[7] = "eins " * 20_000  # 100,000 characters
    target[9] = "one " * 60
    pairs = [f"{one}\t{other}" for one, other in zip(source, target, strict=True)]
    options = {"source": write(tmp_path / "all.tsv", pairs)}
    for part in ("validation", "test"):
        lines = [f"{one}\t{other}" for one, other in zip(FOUND[part].source, FOUND[part].target, strict=True)]
        options[f"{part}_source"] = write(tmp_path / f"{part}.tsv.gz", lines)
    splits = create("translation", **options, max_ratio=6).splits(0)
    assert "2 train pairs with an empty side are left out." in splits.notes
    assert "1 of 28 training pairs has a side of more than 128 pieces and is left out." in splits.notes
    assert "1 of 28 training pairs has sides that differ more than 6-fold and is left out." in splits.notes
    assert [len(part) for part in texts(splits)] == [26, 300, 500]
    lines = [i for i in range(30) if i not in (3, 4, 7, 9)]  # counted in the file, whatever was left out
    assert splits.train.origin.names() == [f"line {i + 1}" for i in lines]
    assert create("translation", **options).samples(splits.test, splits.preprocessing)[0] == {
        "source": FOUND["test"].source[0], "target": FOUND["test"].target[0]
    }  # fmt: skip
    with pytest.raises(
        UserError, match="No training pair is left: 28 of 28 training pairs have a side of more than 1 "
    ):
        create("translation", **options, max_length=1).splits(0)
    cut = [line.replace("hundred", "hun@@ dred") for line in FOUND["train"].target]
    write(tmp_path / "a.en", cut)
    files = {"source": write(tmp_path / "a.de", FOUND["train"].source), "target": str(tmp_path / "a.en")}
    assert any("split into subwords by '@@' already" in note for note in create("translation", **files).splits(0).notes)


@pytest.mark.parametrize("kind", ["files", "tsv", "data", "parquet", "folder"])
def test_pairs_of_ones_own(kind: str, tmp_path: Path):
    pairs = FOUND["train"].joined(FOUND["test"])
    if kind == "files":
        options = {
            "source": write(tmp_path / "mine.de.gz", pairs.source), "target": write(tmp_path / "mine.en", pairs.target)
        }  # fmt: skip
    elif kind == "parquet":
        pd.DataFrame({"de": pairs.source, "en": pairs.target}).to_parquet(tmp_path / "mine.parquet")
        options = {"data": str(tmp_path / "mine.parquet"), "source_language": "de", "target_language": "en"}
    elif kind == "folder":
        write(tmp_path / "train.de", pairs.source)
        write(tmp_path / "train.en", pairs.target)
        options = {"data": str(tmp_path), "source_language": "de", "target_language": "en"}
    else:
        lines = [f"{one}\t{other}" for one, other in zip(pairs.source, pairs.target, strict=True)]
        options = {"source" if kind == "tsv" else "data": write(tmp_path / "mine.tsv", lines)}
    task = create("translation", **options)
    splits = task.splits(0)
    assert [len(part) for part in texts(splits)] == [454, 50, 56]
    whole = Pairs([], [])
    for part in texts(splits):
        whole = whole.joined(part)
    assert sorted(zip(whole.source, whole.target, strict=True)) == sorted(zip(pairs.source, pairs.target, strict=True))
    assert splits.notes[:2] == (
        "The data have no test part: the seed draws 56 pairs.",
        "The data have no validation part: the seed draws 50 pairs.",
    )
    assert texts(task.splits(1)) != texts(splits)
    again = create("translation", **task.options)
    assert texts(again.splits(0)) == texts(splits)
    assert again.options == task.options
    assert again.fingerprint() == task.fingerprint()
    named = kind in ("files", "parquet", "folder")
    expected = ("de", "en") if named else ("source", "target")
    assert (splits.preprocessing["source"], splits.preprocessing["target"]) == expected


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (("a.src", "a.tgt.gz"), {}, ("src", "tgt")),
        (("de.txt", "en.txt"), {}, ("source", "target")),
        (("de", "en"), {}, ("source", "target")),
        (("de.txt", "en.txt"), {"source_language": "de", "target_language": "gsw"}, ("de", "gsw")),
    ],
)
def test_languages_are_the_endings_of_two_files(names: Any, options: Any, expected: Any, tmp_path: Path):
    source, target = (write(tmp_path / name, ["eins", "zwei"]) for name in names)
    assert create("translation", source=source, target=target, **options).languages == expected


def test_test_sentences_that_are_trained_on_too_are_told(tmp_path: Path):
    lines = [f"{one}\t{other}" for one, other in zip(FOUND["train"].source, FOUND["train"].target, strict=True)]
    task = create("translation", data=write(tmp_path / "twice.tsv", lines * 2))
    splits = task.splits(0)
    seen = sum(line in splits.train.source_text for line in splits.test.source_text)
    assert seen > 0
    assert f"{seen} of the 12 test sentences are trained on too." in splits.notes


def test_text_whose_scores_say_something_else_is_told(tmp_path: Path):
    source, target = FOUND["train"].source, FOUND["train"].target
    one = write(tmp_path / "a.de", source)
    both = create("translation", source=one, target=one, source_language="de", target_language="en").splits(0)
    assert "All train pairs have the same text on both sides: copying is scored, not translation." in both.notes
    moses = [f"{line} &apos;s" if place == 7 else line for place, line in enumerate(target)]
    notes = create("translation", source=one, target=write(tmp_path / "m.en", moses)).splits(0).notes
    told = "1 sentence has tokens of Moses such as '&apos;': BLEU is not that of plain text; detokenize them."
    assert told in notes
    for token in ("&quot;", "well @-@ known"):
        moses[3] = token
        notes = create("translation", source=one, target=write(tmp_path / "m.en", moses)).splits(0).notes
        assert any(note.startswith("2 sentences have tokens of Moses") for note in notes)
    plain = create("translation", source=one, target=write(tmp_path / "a.en", target), test_source=one, test_target=one)
    notes = plain.splits(0).notes
    kept = len(source) - len(source) // 10  # a tenth validates
    assert f"{kept} of the {len(source)} test sentences are trained on too." in notes
    assert not any("Moses" in note or "train pairs" in note for note in notes)
    assert "All test pairs have the same text on both sides: copying is scored, not translation." in notes


def test_options_of_ones_own_that_will_not_do(tmp_path: Path):
    source = write(tmp_path / "a.de", ["eins"] * 20)
    target, both = write(tmp_path / "a.en", ["one"] * 19), write(tmp_path / "both.tsv", ["eins\tone"] * 5)
    for options, said in (
        ({}, "needs --source FILE --target FILE"),
        ({"source": source}, "Option `source` needs `target` beside it"),
        ({"target": target, "data": str(tmp_path)}, "Option `target` needs `source` beside it"),
        ({"source": source, "data": both}, "either --data or --source"),
        ({"source": both, "target": target}, "holds both sides: leave `target` out"),
        ({"source": source, "target": target, "test_target": target}, "Option `test_target` needs `test_source`"),
        ({"data": source}, "to be a folder, a .tsv or a .parquet file"),
        (
            {"data": "owner/pairs"},
            "No such file or folder: 'owner/pairs'; a Hugging Face data set of this name is read",
        ),
        ({"data": both, "source_language": 4}, "`source_language` to be the ending of a file or the name of a column"),
        (
            {"source": source, "target": target, "validation_source": 5},
            "`validation_source` to be the path of a file, but",
        ),
        ({"source": source, "target": target}, "got 20 and 19: line 20 of '.*a.de' has no partner"),
        ({"source": source, "target": str(tmp_path / "b.en")}, r"No such file: '.*b\.en'"),
        ({"data": both}, "at least 10 pairs to draw a test part from, but got 5"),
        (
            {"data": str(tmp_path)},
            r"Cannot infer the languages of '.*'; pass --option source_language=… and target_language=…",
        ),
        ({"data": str(tmp_path), "source_language": "de", "target_language": "fr"}, "holds no train.de and train.fr"),
        ({"data": both, "max_length": 0}, "`max_length` to be a whole number above 0, but got 0"),
        ({"data": both, "train_size": 2.5}, "`train_size` to be a whole number above 0, but got 2.5"),
        ({"data": both, "vocabulary_size": "big"}, "`vocabulary_size` to be a whole number above 0, but got 'big'"),
        ({"data": both, "vocabulary_kind": "words"}, "Unknown vocabulary kind 'words'"),
        ({"data": both, "joint": 2}, "`joint` to be true or false, but got 2"),
        ({"data": both, "max_ratio": 0.5}, "`max_ratio` to be a number of at least 1, but got 0.5"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            create("translation", **options).splits(0)
        assert "\n" not in str(caught.value)


def test_a_train_size_above_what_there_is(tmp_path: Path):
    with pytest.raises(UserError, match=r"train size from 1 to 60 .*, but got 61"):
        create("multi30k-de-en", data=corpus(tmp_path), train_size=61).splits(0)
    with pytest.raises(UserError, match="train size from 1 to 100,000 for 'numbers', but got 0"):
        create("numbers", train_size=0)


def test_new_text_is_read_as_lines(tmp_path: Path):
    task = create("numbers", train_size=50)
    about = {"source": "de", "target": "en"}
    lines = Path(write(tmp_path / "new.de", ["eins", "", "drei"]))
    assert task.read_inputs(lines, about) == ["eins", "", "drei"]
    both = Path(write(tmp_path / "new.tsv", ["eins\tone", "zwei\ttwo"]))
    assert task.read_inputs(both, about) == ["eins", "zwei"]
    assert task.read_examples(both, about, (), None) == Pairs(["eins", "zwei"], ["one", "two"])
    answers = write(tmp_path / "new.en", ["one", "", "three"])
    assert task.read_examples(lines, about, (), answers) == Pairs(["eins", "", "drei"], ["one", "", "three"])
    with pytest.raises(UserError, match="or --target FILE with the translations of"):
        task.read_examples(lines, about, (), None)


def test_numbers():
    task = create("numbers", train_size=100)
    first, again, other = task.splits(1), create("numbers", **task.options).splits(1), task.splits(2)
    assert [len(part) for part in texts(first)] == [100, 300, 500]
    assert texts(first) == texts(again)
    assert first.files == again.files
    assert texts(first)[2] != texts(other)[2]
    assert len({line for part in texts(first) for line in part.source}) == 900
    assert task.fingerprint().startswith("num2words-")
    french = create("numbers", train_size=100, target_language="fr").splits(1)
    assert french.train.source_text == first.train.source_text
    assert french.preprocessing["target"] == "fr"


class Rows:
    """What `datasets` gives of a part, as far as it is used."""

    def __init__(self, pairs: Pairs, nested: bool) -> None:
        import datasets

        rows = [{"de": one, "en": other} for one, other in zip(pairs.source, pairs.target, strict=True)]
        self.rows = datasets.Dataset.from_list([{"translation": row} for row in rows] if nested else rows)


@pytest.mark.parametrize("nested", [False, True])
def test_the_hub_is_asked_only_when_the_user_asks(nested: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import datasets

    asked = []

    def load(name: str, **options: Any) -> Any:
        asked.append((name, options))
        parts = {"train": FOUND["train"], "validation": FOUND["validation"], "test": FOUND["test"]}
        found = {part: Rows(pairs, nested).rows for part, pairs in parts.items()}
        return {**found, "test": found["test"].select(range(100))}  # with indices of its own

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match="or give the option fetch"):
        create("wmt14-de-en").splits(0)
    local = create("wmt14-de-en", data=corpus(tmp_path), fetch=True)
    assert [len(part) for part in texts(local.splits(0))] == [60, 40, 50]  # what is here is not asked for
    assert not asked
    task = create("wmt14-de-en", fetch=True)
    splits = task.splits(0)
    assert asked[0] == ("wmt/wmt14", {"data_dir": "de-en", "revision": None})
    assert [len(part) for part in texts(splits)] == [60, 300, 100]
    assert texts(splits)[2] == FOUND["test"].take(range(100))
    assert texts(create("wmt14-de-en", **task.options).splits(0)) == texts(splits)  # in another process
    own = create("translation", data="owner/x", fetch=True, source_language="en", target_language="de").splits(0)
    assert own.test.source_text == FOUND["test"].target[:100]
    assert asked[-1][0] == "owner/x"
    with pytest.raises(UserError, match=r"Expected 'owner/x, train' to have a column 'fr', but got"):
        create("translation", data="owner/x", fetch=True, source_language="fr", target_language="de").splits(0)


def test_a_hub_that_cannot_be_reached_gets_one_sentence(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def load(name: str, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach it.\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"^Cannot read the data set 'wmt/wmt14': Couldn't reach it\.$"):
        create("wmt14-en-fr", fetch=True).splits(0)
    assert not datasets.are_progress_bars_disabled()


def test_parquet_files_as_the_hub_has_them(tmp_path: Path):
    folder = tmp_path / "wmt14" / "data"
    folder.mkdir(parents=True)
    for part in ("train", "validation", "test"):
        rows = [{"de": a, "en": b} for a, b in zip(FOUND[part].source, FOUND[part].target, strict=True)]
        half = len(rows) // 2
        for number, some in enumerate((rows[:half], rows[half:])):
            pd.DataFrame({"translation": some}).to_parquet(folder / f"{part}-0000{number}-of-00002.parquet")
    task = create("wmt14-de-en", data=str(tmp_path))
    assert texts(task.splits(0)) == [FOUND[part] for part in ("train", "validation", "test")]
    assert task.fingerprint() == task.fingerprint()


@pytest.mark.skipif(not (Path(REAL) / "multi30k").is_dir() or not REAL, reason="LABO_DATA has no multi30k")
@pytest.mark.parametrize("direction", ["de-en", "en-fr"])
def test_multi30k_as_published(direction: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(data_files.VARIABLE, REAL)
    splits = create(f"multi30k-{direction}", vocabulary_size=2_000).splits(0)
    assert [len(part) for part in texts(splits)] == [29_000, 1_014, 1_000]
    if direction == "de-en":
        assert splits.test.source_text[0] == "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt."
        assert splits.test.target_text[0] == "A man in an orange hat starring at something."
    vocabulary = Vocabulary.from_bytes(splits.files)
    lines = splits.test.target_text
    assert vocabulary.decode(vocabulary.encode(lines, "target")) == [" ".join(line.split()) for line in lines]
