"""The commands that use a translator: translate and evaluate."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import pytest

from labo import cli, tasks
from labo.cli import options
from labo.cli import translate as lines_of
from labo.experiment import run_trial
from labo.experiment.evaluators.translation import TranslationEvaluator
from labo.metrics.translation import signatures
from labo.records import trial as trials
from labo.tasks.translation import decoding, numbers
from launch import start_labo
from test_translation_models import saved
from translators import PAIRS, text_trial, trained_in, two_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return two_files(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]) -> Path:
    return trained_in(tmp_path_factory.mktemp("run"), files)


class Piped:
    """Standard input from bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BufferedReader(io.BytesIO(content))

    def isatty(self) -> bool:
        return False


def translate(monkeypatch: pytest.MonkeyPatch, capsys: Any, run: Path, content: bytes, *more: str) -> Any:
    monkeypatch.setattr(sys, "stdin", Piped(content))
    status = cli.main(["translate", str(run), *more])
    told = capsys.readouterr()
    return SimpleNamespace(status=status, out=told.out, err=told.err)


def test_translate_keeps_the_numbers_of_lines(trained, monkeypatch, capsys):
    long = b"einundzwanzig " * 4000
    content = b"einundzwanzig\n\nsieben \xff\n" + long + b"\nzweihundert"
    found = translate(monkeypatch, capsys, trained, content)
    assert found.status == 0
    lines = found.out.split("\n")
    assert len(lines) == 6
    assert lines[1] == ""
    assert "Line 3 is not UTF-8 (byte 8)" in found.err
    assert "Line 4 is longer than the limit of 1,024 tokens, and was truncated." in found.err
    one_by_one = translate(monkeypatch, capsys, trained, content, "--together", "1", "--beam", "2")
    assert one_by_one.out == found.out
    assert translate(monkeypatch, capsys, trained, b"").out == ""


def test_translate_takes_a_file(trained, tmp_path, monkeypatch, capsys):
    content = "einundzwanzig\n\nsieben\nzweihundert\n"
    piped = translate(monkeypatch, capsys, trained, content.encode())
    (tmp_path / "a.de").write_text(content)
    (tmp_path / "a.de.gz").write_bytes(gzip.compress(content.encode()))
    (tmp_path / "a.tsv").write_text("".join(f"{line}\tx\n" for line in content.splitlines()))
    for name in ("a.de", "a.de.gz", "a.tsv"):
        found = translate(monkeypatch, capsys, trained, b"", str(tmp_path / name), "--together", "3")
        assert (found.status, found.out, found.err) == (0, piped.out, "")
    (tmp_path / "odd.de").write_bytes(b"sieben\nsieben \xff\n")
    for name, told in (("nowhere", "No such file: "), ("odd.de", "to be UTF-8 text, but got the byte 0xff")):
        found = translate(monkeypatch, capsys, trained, b"", str(tmp_path / name))
        assert (found.status, found.out) == (2, "")
        assert told in found.err


def test_the_first_of_many_lines_that_are_cut_is_told(trained, monkeypatch, capsys):
    monkeypatch.setattr(decoding, "_positions", lambda model: (4, 4))
    found = translate(
        monkeypatch, capsys, trained, b"sieben\n" * 2 + b"sieben sieben sieben sieben\n" * 3, "--together", "2"
    )
    assert found.err.splitlines() == [
        "2 lines are longer than the limit of 4 tokens, and were truncated; the first is line 3.",
        "Line 5 is longer than the limit of 4 tokens, and was truncated.",
    ]


def test_translations_are_utf_8_whatever_the_locale(trained, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(TranslationEvaluator, "translated", lambda *args, **options: ["fünf"])
    monkeypatch.setattr(sys, "stdin", Piped(b"five\n"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert cli.main(["translate", str(trained)]) == 0
    assert written.getvalue().decode() == "fünf\n"


@pytest.mark.skipif(sys.platform == "win32", reason="whether a pipe can be read is not told there")
def test_lines_are_taken_as_they_come():
    read, write = os.pipe()
    with open(read, "rb") as stream:
        chunks = lines_of._chunks(stream, 2)
        os.write(write, b"a\nb")
        assert next(chunks) == [b"a"]
        os.write(write, b"c\n\nd\n")
        assert next(chunks) == [b"bc", b""]
        assert next(chunks) == [b"d"]
        os.write(write, b"e")
        os.close(write)
        assert list(chunks) == [[b"e"]]
    assert list(lines_of._chunks(io.BufferedReader(io.BytesIO(b"x\n" * 5)), 2)) == [[b"x", b"x"], [b"x", b"x"], [b"x"]]


@pytest.mark.skipif(sys.platform == "win32", reason="whether a pipe can be read is not told there")
def test_who_waits_for_a_translation_gets_it_and_may_leave(trained):
    with start_labo("translate", trained, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        watch = threading.Timer(60, process.kill)
        watch.start()
        for line in (b"sieben\n", b"\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline().endswith(b"\n")
        process.stdout.close()
        process.stdin.write(b"sieben\n")
        process.stdin.close()
        process.wait()
        assert process.stderr.read() == b""
        watch.cancel()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["predict", "RUN", "x.csv"], "see labo translate"),
        (["labels", "RUN"], "see labo translate"),
        (["evaluate", "RUN", "--per-class"], "has no classes"),
        (["evaluate", "RUN", "--beams", "1,x"], "Expected --beams to be comma-separated whole numbers above 0"),
        (["evaluate", "RUN", "--shift", "noise"], "has no shifts"),
        (["translate", "RUN", "--beam", "0"], "Expected --beam to be a whole number above 0"),
    ],
    ids=" ".join,
)
def test_commands_that_do_not_fit_are_refused(trained, capsys, arguments, told):
    assert cli.main([str(trained) if part == "RUN" else part for part in arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tsv", "folder"])
def test_a_run_translates_when_its_data_and_its_networks_configuration_have_gone(
    tmp_path, files, kind, monkeypatch, capsys
):
    pairs = numbers.draw(0, PAIRS, "de", "en")["train"]
    home = tmp_path / "data"
    home.mkdir()
    given: dict[str, Any] = {"data": str(home), "max_length": 40, "source_language": "de", "target_language": "en"}
    if kind == "tsv":
        given["data"] = str(home / "mine.tsv")
        lines = (f"{one}\t{other}\n" for one, other in zip(pairs.source, pairs.target, strict=True))
        (home / "mine.tsv").write_text("".join(lines), encoding="utf-8")
    else:
        for side in ("source", "target"):
            ending = given[f"{side}_language"]
            (home / f"train.{ending}").write_bytes(Path(files[side]).read_bytes())
    model = saved("bart" if kind == "tsv" else "marian", tmp_path / "configuration")
    run_trial.run(text_trial(given, set={"steps": 2, "model": model}), tmp_path / "run")
    before = translate(monkeypatch, capsys, tmp_path / "run", b"sieben\n")
    assert before.status == 0
    about = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert about["files"] == ["config.json", "sentencepiece.model"]
    assert str(tmp_path) not in (tmp_path / "run" / "config.json").read_text(encoding="utf-8")
    shutil.rmtree(home)
    shutil.rmtree(tmp_path / "configuration")
    assert translate(monkeypatch, capsys, tmp_path / "run", b"sieben\n").out == before.out
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 2
    assert "No such file or folder" in capsys.readouterr().err


def test_evaluate_shows_how_bleu_moves_with_the_beam(trained, capsys):
    assert cli.main(["evaluate", str(trained), "--beams", "1,2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["beams"]) == {"1", "2"}
    assert found["beams"]["2"]["bleu"] == pytest.approx(found["metrics"]["bleu"])
    signed = json.loads((trained / trials.RECORD).read_text())["signatures"]
    assert found["signatures"] == signed
    assert cli.main(["evaluate", str(trained), "--beams", "1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-2:] == [f"BLEU: {signed['bleu']}", f"chrF: {signed['chrf']}"]


def test_a_tuning_record_has_the_signature_of_what_it_is_chosen_by(tmp_path, files):
    record = run_trial.run(text_trial(files, tuning=True, set={"steps": 1}), tmp_path / "run")
    assert set(record["validation"]) == {"bleu", "nll", "nll_scaled", "ece"}
    assert record["signatures"] == {"bleu": signatures()["bleu"]}


def test_evaluate_on_files_of_ones_own(trained, files, capsys):
    arguments = ["evaluate", str(trained), "--data", files["source"], "--target", files["target"], "--json"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["nll"] > 0


def test_a_damaged_vocabulary_is_told(trained, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for file in trained.iterdir():
        if file.is_file():
            (run / file.name).write_bytes(file.read_bytes())
    content = (run / "sentencepiece.model").read_bytes()
    (run / "sentencepiece.model").write_bytes(content[: len(content) // 2])
    assert cli.main(["evaluate", str(run)]) == 2
    assert "the file was cut or changed" in capsys.readouterr().err
    (run / "sentencepiece.model").write_bytes(content)
    weights = (run / trials.WEIGHTS).read_bytes()
    (run / trials.WEIGHTS).write_bytes(weights[: len(weights) // 2])
    assert cli.main(["evaluate", str(run)]) == 2
    assert "are damaged" in capsys.readouterr().err


def test_options_that_are_texts_are_read_as_texts():
    texts = ["source_language=no", "target_language=nan", "validation_source=5", "joint=no", "max_length=40"]
    assert options.task("translation", texts)[1] == {
        "source_language": "no", "target_language": "nan", "validation_source": "5", "joint": False, "max_length": 40
    }  # fmt: skip


def test_the_embedded_task_is_registered():
    assert tasks.describe("numbers")
