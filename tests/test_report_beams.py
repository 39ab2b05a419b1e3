"""How BLEU moves with the beam, in a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labo import cli, report
from labo.experiment import post_hoc, run_trial, saved_run
from labo.records.comparison import BEAMS
from labo.records.measurements import beam_bleu, shift_scores
from labo.records.storage import read_lines
from test_report_translation import BASELINE, record, write
from translators import text_trial, two_files


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """Two methods on one seed, a few number names and a step or two each."""
    files, folder = two_files(tmp_path), tmp_path / "all"
    found = [
        run_trial.run(text_trial(files, method, set={"beam": 1}), folder / "translation" / method / "0")
        for method in (BASELINE, "labo")
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in found), encoding="utf-8")
    return folder


def test_every_run_is_measured_once(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(compared), "--beams", "1,3"]) == 0
    lines = read_lines(compared / BEAMS)
    assert [(line["method"], line["seed"]) for line in lines] == [(BASELINE, 0), ("labo", 0)]
    run = saved_run.load(compared / "translation" / "labo" / "0")
    assert lines[1]["scores"] == post_hoc.beam_scores(run, run.examples("test"), [1, 3])
    assert lines[1]["scores"]["1"]["bleu"] == pytest.approx(run.evaluate("test")["bleu"])
    assert list(lines[1]["scores"]) == ["1", "3"]
    assert cli.main(["report", str(compared), "--beams", "3,1,3"]) == 0
    assert read_lines(compared / BEAMS) == lines
    assert "2 of 2 trials are recorded already" in capsys.readouterr().err
    assert cli.main(["report", str(compared), "--beams", "2,3"]) == 0
    assert [list(line["scores"]) for line in read_lines(compared / BEAMS)[2:]] == [["2"], ["2"]]
    assert "| Beam 1 | Beam 2 | Beam 3 | 3 minus 1 |" in (compared / "report.md").read_text(encoding="utf-8")


def test_the_table_by_hand(tmp_path: Path) -> None:
    write(tmp_path, seeds=2, texts=False)
    found = {(BASELINE, 0): (30, 33, 32), (BASELINE, 1): (32, 34, 33), ("labo", 0): (31, 33.5, 33.25)}
    with (tmp_path / BEAMS).open("w") as file:
        for (method, seed), values in [*found.items(), (("none", 7), (1, 2, 3))]:  # no record has seed 7
            scores = {str(width): {"bleu": bleu} for width, bleu in zip((20, 1, 5), values, strict=True)}
            if seed:
                scores["50"] = {"bleu": 1.0}  # which not every run has
            file.write(json.dumps({"task": "numbers", "method": method, "seed": seed, "scores": scores}) + "\n")
    page = report.build(tmp_path).read_text(encoding="utf-8")
    rows = (
        (tmp_path / "report.md").read_text(encoding="utf-8").split("### How BLEU moves with the beam")[1].splitlines()
    )
    assert [row for row in rows if row.startswith("|")][:4] == [
        "| Method | Seeds | Beam 1 | Beam 5 | Beam 20 | 20 minus 1 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        # half of the 95% interval of two values that differ by d is 12.706 * d / 2
        f"| {BASELINE} | 2 | 33.50 ± 6.35 | 32.50 ± 6.35 | 31.00 ± 12.71 | −2.50 ± 6.35 |",
        "| labo | 1 | 33.50 | 33.25 | 31.00 | −2.50 |",
    ]
    assert "How BLEU moves with the beam" in page
    (tmp_path / BEAMS).unlink()
    assert "How BLEU moves with the beam" not in report.build(tmp_path).read_text(encoding="utf-8")


def test_damaged_lines_tell_nothing() -> None:
    good = {"task": "t", "method": "m", "seed": 0, "scores": {"5": {"bleu": 1.0}}}
    bad = [{**good, "scores": scores} for scores in (None, [1], {"x": {"bleu": 1}}, {"2": {}}, {"2": {"bleu": "nan"}})]
    assert beam_bleu([good, *bad, {"task": "t"}]) == {("t", "m", 0): {5: 1.0}}


def test_what_other_weights_scored_is_not_shown_beside_those_of_now() -> None:
    def line(weights: str | None, **bleu: float) -> dict[str, Any]:
        scores = {width.removeprefix("w"): {"bleu": value} for width, value in bleu.items()}
        found = {"task": "t", "method": "m", "seed": 0, "scores": scores}
        return found if weights is None else {**found, "weights": weights}

    before, now = line("x", w1=1.0, w20=2.0), line("y", w1=3.0)
    assert beam_bleu([before, now]) == {("t", "m", 0): {1: 3.0}}
    assert beam_bleu([before, line("x", w5=4.0)]) == {("t", "m", 0): {1: 1.0, 20: 2.0, 5: 4.0}}
    assert beam_bleu([line(None, w1=1.0), now, line("y", w5=2.0)]) == {("t", "m", 0): {1: 3.0, 5: 2.0}}
    shift = [{**each, "scores": {"blur": {width: {"accuracy": 0.5}}}} for each, width in ((before, "1"), (now, "2"))]
    assert list(shift_scores(shift)[("t", "m", 0)]) == [("blur", 2)]


@pytest.mark.parametrize("widths", ["0", "1,x", "", "-1", "2.5"])
def test_widths_that_are_none_are_told_before_anything_is_measured(
    tmp_path: Path, widths: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(write(tmp_path)), f"--beams={widths}"]) == 2
    assert "Expected --beams to be comma-separated whole numbers above 0" in capsys.readouterr().err
    assert not (tmp_path / BEAMS).exists()


def test_only_translators_have_beams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = {**record("none", 0, 1.0, "digits"), "metrics": {"accuracy": 0.5}}
    (tmp_path / "results.jsonl").write_text(json.dumps(digits) + "\n")
    assert cli.main(["report", str(tmp_path), "--beams", "1"]) == 2
    assert capsys.readouterr().err == "labo: Task 'digits' is not a translation task, so --beams does not apply.\n"
