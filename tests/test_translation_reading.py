"""Files of sentences: what is read, and what is said of files that will not do."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from labo.errors import UserError
from labo.tasks import data_files
from labo.tasks.translation import corpus_files, numbers, text_files
from labo.tasks.translation.dataset import wrong_translations
from labo.tasks.translation.text_files import Pairs, match_lines


def write(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["text.de", "text.de.gz"])
def test_lines_end_at_line_feeds_alone(tmp_path: Path, name: str):
    path = write(tmp_path / name, "\ufeffein\u2028Hund\r\n\r\nzwei\x0bKatzen\x85\nletzte")
    assert text_files.read_lines(path) == ["ein\u2028Hund", "", "zwei\x0bKatzen\x85", "letzte"]
    assert text_files.read_lines(write(tmp_path / "end", "a\nb\n")) == ["a", "b"]
    assert text_files.read_lines(write(tmp_path / "empty end", "a\n\n")) == ["a", ""]


def test_gzip_is_known_by_its_content(tmp_path: Path):
    path = tmp_path / "text.de"
    path.write_bytes(gzip.compress("Grüße\n".encode()))
    assert text_files.read_lines(path) == ["Grüße"]
    path.write_bytes(gzip.compress(b"word " * 10_000)[:-20])
    with pytest.raises(UserError, match=r"Cannot read '.*text\.de'"):
        text_files.read_lines(path)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_other_encodings_are_told_with_line_and_byte(tmp_path: Path, mark: str):
    path = write(tmp_path / "text.de", mark.encode() + "grün\nblau\n".encode() + "rot grün\n".encode("latin-1"))
    offset = len(mark.encode()) + len("grün\nblau\nrot gr".encode())
    with pytest.raises(UserError, match=rf"text.de' to be UTF-8 .* 0xfc at offset {offset}, line 3, byte 7 of it\.$"):
        text_files.read_lines(path)


def test_files_of_different_length_are_told_with_the_first_odd_line(tmp_path: Path):
    one, other = write(tmp_path / "a.de", "eins\nzwei\ndrei\n"), write(tmp_path / "a.en", "one\ntwo\n")
    with pytest.raises(UserError, match=r"got 3 and 2: line 3 of '.*a\.de' has no partner"):
        text_files.read_pairs(one, other, ("de", "en"))
    with pytest.raises(UserError, match=r"got 2 and 3: line 3 of '.*a\.de' has no partner"):
        text_files.read_pairs(other, one, ("en", "de"))


def test_empty_sides_are_refused_and_empty_lines_left_out(tmp_path: Path):
    with pytest.raises(UserError, match="'b' to hold sentences, but got 2 empty lines"):
        match_lines(["eins", "zwei"], ["", " \t"], "a", "b")
    pairs, empty = Pairs(["eins", "", "drei", "\u3000"], ["one", "two", " ", "four"]).without_empty()
    assert (pairs, empty) == (Pairs(["eins"], ["one"]), 3)
    with pytest.raises(UserError, match="is empty"):
        text_files.read_lines(write(tmp_path / "nothing", ""))
    with pytest.raises(UserError, match="No such file"):
        text_files.read_lines(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_two_columns(tmp_path: Path, name: str):
    path = write(tmp_path / name, "eins\tone\r\nzwei\ttwo\n")
    assert text_files.read_pairs(path, None, ("de", "en")) == Pairs(["eins", "zwei"], ["one", "two"])
    write(path, "eins\tone\nzwei\ttwo\tCC-BY\n")
    with pytest.raises(UserError, match=r"two columns divided by a tab in line 2 of '.*', but got 3"):
        text_files.read_pairs(path, None, ("de", "en"))


@pytest.mark.parametrize(
    ("header", "languages"),
    [
        ("source\ttarget", ("source", "target")),
        ("de\ten", ("source", "target")),
        ("German\tEnglish", ("de", "en")),
        ("sentence1\tsentence2", ("source", "target")),
        ("de-DE\ten_GB", ("source", "target")),
        ("Quelle\tZiel", ("Quelle", "Ziel")),
    ],
)
def test_a_header_is_no_pair(tmp_path: Path, header: str, languages: tuple[str, str]):
    path = write(tmp_path / "a.tsv", f"{header}\neins\tone\nzwei\ttwo\n")
    pairs = text_files.read_pairs(path, None, languages)
    assert pairs == Pairs(["eins", "zwei"], ["one", "two"])
    assert pairs.source_indices == [1, 2]
    first, second = header.split("\t")
    assert pairs.notes == (f"The first line of '{path}' is a header: '{first}' and '{second}' are no pair.",)
    assert pairs.without_empty()[0].notes == pairs.notes


def test_a_header_names_columns_among_others(tmp_path: Path):
    path = write(tmp_path / "a.tsv", "id\ten\tde\n1\tone\teins\n2\ttwo\tzwei\n")
    assert text_files.read_pairs(path, None, ("de", "en")) == Pairs(["eins", "zwei"], ["one", "two"])
    write(path, "id\ten\tde\n1\tone\teins\n2\ttwo\n")
    with pytest.raises(UserError, match=r"Expected 3 columns divided by tabs in line 3 of '.*', but got 2"):
        text_files.read_pairs(path, None, ("de", "en"))
    for line in ("ja\tyes", "Hund\tdog", "de\tde", "source\tspring"):
        pairs = text_files.read_pairs(write(path, f"{line}\neins\tone\n"), None, ("de", "en"))
        assert (len(pairs), pairs.notes) == (2, ())


@pytest.mark.parametrize("nested", [False, True])
def test_columns_of_parquet(tmp_path: Path, nested: bool):
    rows = [{"de": "eins\nund", "en": "one and"}, {"de": None, "en": "two"}]
    frame = pd.DataFrame({"translation": rows}) if nested else pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "p.parquet")
    read = text_files.read_pairs(tmp_path / "p.parquet", None, ("de", "en"))
    assert read == Pairs(["eins und", ""], ["one and", "two"])
    with pytest.raises(UserError, match="to have a column 'fr', but got de, en"):
        text_files.read_pairs(tmp_path / "p.parquet", None, ("fr", "en"))
    write(tmp_path / "torn.parquet", b"PAR1 no more")
    with pytest.raises(UserError, match="Cannot read"):
        text_files.read_pairs(tmp_path / "torn.parquet", None, ("de", "en"))


def test_a_line_of_100000_characters_is_one_sentence(tmp_path: Path):
    path = write(tmp_path / "long", "ä" * 100_000 + "\nkurz\n")
    assert [len(line) for line in text_files.read_lines(path)] == [100_000, 4]


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (("train", "val", "test_2016_flickr"), "multi30k"),
        (("train", "valid", "test"), "multi30k.tokenized.de-en"),
        (("train.de-en", "dev.de-en", "test.de-en"), "multi30k/de-en"),
        (("train", "newstest2013", "newstest2014"), "multi30k_en_de"),
    ],
)
@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Any, folder: str, zipped: str):
    for name in names:
        for language in ("de", "en"):
            write(tmp_path / folder / f"{name}.{language}{zipped}", f"{name} {language}\n")
    monkeypatch.setenv(data_files.VARIABLE, str(tmp_path))
    found = corpus_files.locate("task", ("multi30k",), "en", "de", None)
    assert found is not None
    assert list(found.parts) == ["train", "validation", "test"]
    for (files,), name in zip(found.parts.values(), names, strict=True):
        assert text_files.read_pairs(*files, ("en", "de")) == Pairs([f"{name} en"], [f"{name} de"])
    named = corpus_files.locate("task", ("multi30k",), "en", "de", str(tmp_path / folder))
    assert named is not None
    assert named.parts == found.parts
    assert corpus_files.locate("task", ("multi30k",), "fr", "en", None) is None
    for language in ("de", "en"):
        (tmp_path / folder / f"{names[1]}.{language}{zipped}").unlink()
    with pytest.raises(
        UserError, match=r"Task 'task' finds train in '.*', but no validation part: put files of one of"
    ):
        corpus_files.locate("task", ("multi30k",), "en", "de", None)


def test_a_corpus_of_another_name_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("train", "valid", "test"):
        for language in ("de", "en"):
            write(tmp_path / f"{name}.{language}", "x\n")
    monkeypatch.setenv(data_files.VARIABLE, str(tmp_path))
    assert corpus_files.locate("task", ("multi30k",), "de", "en", None) is None
    assert corpus_files.locate("task", ("multi30k",), "de", "en", str(tmp_path)) is not None


def published(folder: Path, year: str, sets: list[str]) -> None:
    for language in ("de", "en"):
        lines = [f"<url>http://{language}</url>", "<keywords>talks</keywords>", f"<title>title {language}</title>"]
        lines += [f" <i>sentence</i> {i} {language} " for i in range(50)]
        write(folder / f"train.tags.de-en.{language}", "\n".join([*lines, "</doc>"]) + "\n")
        for name in sets:
            segments = f'<doc docid="1"><talkid>1</talkid><seg id="1"> {name} &lt;{language}&gt; </seg>\n'
            path = folder / f"{year}.TED.{name}.de-en.{language}.xml"
            write(path, f'<?xml version="1.0"?>\n{segments}<seg id="2">two\nlines</seg></doc>')


def test_iwslt_as_published(tmp_path: Path):
    published(tmp_path / "14", "IWSLT14", ["dev2010", "tst2010", "tst2011"])
    found = corpus_files.in_folder(tmp_path / "14", "de", "en")
    read = found.read(("de", "en"))
    assert found.iwslt
    assert read["train"].source[:2] == ["title de", "<i>sentence</i> 0 de"]
    assert len(read["train"]) == 51
    assert "validation" not in read  # as in the recipe that is in use, dev tests too
    assert read["test"].target == [
        text for name in ("dev2010", "tst2010", "tst2011") for text in (f"{name} <en>", "two\nlines")
    ]
    train, validation = corpus_files.hold_out(read["train"])
    assert validation.source == [read["train"].source[22], read["train"].source[45]]
    assert len(train) == 49
    published(tmp_path / "17", "IWSLT17", ["dev2010", "tst2010"])
    parts = corpus_files.in_folder(tmp_path / "17", "en", "de").read(("en", "de"))
    assert parts["validation"].source[0] == "dev2010 <en>"
    assert parts["test"].target[0] == "tst2010 <de>"


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_exactly_the_share_of_translations_is_wrong(kind: str):
    target = [f"sentence {i % 90}" for i in range(100)]  # some are there twice
    wrong = wrong_translations(target, 0.37, kind, torch.Generator().manual_seed(0))
    changed = [i for i in range(100) if wrong[i] != target[i]]
    assert len(changed) == 37
    assert set(wrong) <= set(target)
    if kind == "pair":
        assert all(wrong[i] == target[(i + 1) % 100] for i in changed)
    else:
        assert len({(target.index(wrong[i]) - i) % 100 for i in changed}) > 10
    with pytest.raises(UserError, match="at least two different translations"):
        wrong_translations(["same"] * 5, 0.5, kind, torch.Generator())


def test_numbers_are_different_and_their_tests_stay():
    few, many = (numbers.draw(3, count, "en", "fr") for count in (20, 30))
    assert few["test"] == many["test"]
    assert few["validation"] == many["validation"]
    assert many["train"].source[:20] == few["train"].source
    everything = [line for pairs in many.values() for line in pairs.source]
    assert len(set(everything)) == 30 + numbers.VALIDATION + numbers.TEST
    assert numbers.draw(4, 20, "en", "fr")["train"] != few["train"]
    assert numbers.name(999_999, "fr").startswith("neuf cent quatre-vingt-dix-neuf mille")
    with pytest.raises(UserError, match="Unknown language 'deu'; the nearest is"):
        numbers.draw(0, 5, "deu", "en")
    with pytest.raises(UserError, match="two languages, but got 'de' twice"):
        numbers.draw(0, 5, "de", "de")
