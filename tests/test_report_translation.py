"""The report of translators: BLEU as the main measure, the paired bootstrap, labels of sentences."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from browser import BROWSER, width_on_a_phone
from experiments import trial
from labo import cli, report, tasks
from labo.errors import UserError
from labo.experiment import paired_bootstrap, run_trial
from labo.metrics import translation as metric
from labo.records import lock
from labo.records import trial as trials
from labo.records.comparison import BOOTSTRAP, read
from labo.records.measurements import BootstrapResult, bootstrap_results
from labo.report import compose, render
from labo.report.measures import MAIN
from labo.report.verdict import summarize_records
from labo.tasks.translation import numbers

BASELINE, NASTY = "label_smoothing", "<script>alert('x')</script> & \"q\""
METHODS = (BASELINE, "none", "labo")
SIGNATURES = {"bleu": "nrefs:1|case:mixed|version:2.6.0", "chrf": "nrefs:1|nc:6|version:2.6.0"}
REFERENCES = [f"the dog number {place} runs in the park by the old river" for place in range(24)]


def place(reference: str, mass: float, *top: tuple[str, float]) -> dict[str, Any]:
    return {"reference": reference, "mass": mass, "top": [list(pair) for pair in top]}


LABO = {
    "source": f"ein Hund {NASTY}",
    "target": "a dog",
    "places": [
        place("▁a", 0.5, ("▁a", 0.5), ("▁the", 0.25), ("▁one", 0.125)),
        place("▁dog", 0.1, ("▁cat", 0.4), (NASTY, 0.2), ("▁wolf", 0.15), ("▁fox", 0.125)),
        place("</s>", 0.0001, (".", 0.3), ("</s>", 0.0001)),
    ],
}
EVEN = {**LABO, "places": [place(piece, 0.002, ("▁x", 0.002), ("▁y", 0.002)) for piece in ("▁a", "▁dog", "</s>")]}
UNIGRAM = {
    **LABO,
    "places": [place(piece, mass, ("▁der", 0.3), ("▁a", 0.2)) for piece, mass in (("▁a", 0.2), ("▁dog", 0.1))],
}


def spoiled(every: int) -> list[str]:
    """Translations that are wrong in one of so many sentences."""
    return [line if number % every else f"a cat {number}" for number, line in enumerate(REFERENCES)]


def record(method: str, seed: int, bleu: float, task: str = "numbers") -> dict[str, Any]:
    metrics = {"bleu": bleu, "chrf": 50 + bleu / 10, "nll": 2.0, "perplexity": 7.39, "ece": 0.1}
    metrics |= {"nll_scaled": 1.9, "ece_scaled": 0.05, "temperature": 1.1}
    base = {"task": task, "method": method, "seed": seed, "settings": {"epochs": 3}, "seconds": 1.0}
    return {**base, "metrics": metrics, "signatures": SIGNATURES, "versions": {"torch": "2.13.0"}}


def write(folder: Path, *, seeds: int = 2, methods: tuple[str, ...] = METHODS, texts: bool = True) -> Path:
    """A made-up comparison: labo errs in one sentence of 12, the baseline in one of 3, none as the baseline does."""
    sentences = {"labo": [LABO], BASELINE: [EVEN], "unigram_smoothing": [UNIGRAM], "none": []}
    folder.mkdir(exist_ok=True)
    lines = [record(method, seed, 20 + len(method) + seed) for method in methods for seed in range(seeds)]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    bins = [{"confidence": 0.5, "accuracy": 0.4, "count": 9}]
    for method in methods:
        for seed in range(seeds):
            run = folder / "numbers" / method / str(seed)
            run.mkdir(parents=True)
            figures = {"classes": [], "temperature": 1.1, "reliability": {"raw": bins, "scaled": bins}, "labels": None}
            (run / "figures.json").write_text(json.dumps({**figures, "sentences": sentences.get(method, [])}))
            if texts:
                trials.write_translations(run, spoiled(12 if method == "labo" else 3), REFERENCES)
    asked = {"command": ["labo", "compare"], "task": "numbers", "baseline": BASELINE, "settings_per_method": 3}
    (folder / "compare.json").write_text(json.dumps({**asked, "tuning_seeds": 1, "checkpoint": "last"}))
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / BOOTSTRAP).read_text().splitlines()]


def html(folder: Path, **options: Any) -> str:
    return report.build(folder, **options).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    return page.split(heading)[1].split("<h3>")[0]


def test_the_verdict_is_about_the_metric_of_every_task() -> None:
    assert {tasks.create(name).metric for name in ("digits", "numbers")} == {"accuracy", "bleu"}
    assert {"accuracy", "bleu"} <= set(MAIN)
    found = summarize_records([record(method, seed, 20.0 + seed) for method in METHODS for seed in range(2)])
    assert found.tasks[0].main.key == "bleu"
    assert [measure.key for measure in found.tasks[0].measures] == [
        "bleu", "chrf", "nll", "nll_scaled", "ece", "ece_scaled", "perplexity"
    ]  # fmt: skip


def test_nothing_speaks_of_classes(tmp_path: Path) -> None:
    page = html(write(tmp_path))
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (page, markdown):
        for word in ("label map", "True class", "accuracy in points", "test examples", "Brier", "Top-5", "pictures"):
            assert word not in text
        assert "tokens of the test references" in text
        assert "sacreBLEU" in text
        assert "the learning rate, the dropout and the weight decay" in text
    assert SIGNATURES["bleu"] in page
    assert SIGNATURES["chrf"].replace("|", r"\|") in markdown


def test_signatures_that_differ_are_told(tmp_path: Path) -> None:
    write(tmp_path)
    other = {**record("labo", 1, 24.0), "signatures": {"bleu": "nrefs:1|tok:zh"}}
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps(other) + "\n")
    page = html(tmp_path)
    assert f"BLEU {SIGNATURES['bleu']} and nrefs:1|tok:zh; chrF" in page
    assert "Scores with other signatures do not compare" in page


def test_both_kinds_of_tasks_in_one_report(tmp_path: Path) -> None:
    write(tmp_path)
    digits = {**record("labo", 0, 0.0, "digits"), "metrics": {"accuracy": 0.9, "nll": 0.3}}
    del digits["signatures"]
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps(digits) + "\n" + json.dumps({**digits, "method": BASELINE}) + "\n")
    page = html(tmp_path)
    assert "On numbers, BLEU and chrF are" in page
    assert "Accuracy, Brier score and expected" in page
    assert page.count("The label maps are left out") == 1
    assert page.count("The paired bootstrap over test sentences is left out") == 1


def test_the_terminal_has_room() -> None:
    names = (BASELINE, "confidence_penalty", "unigram_smoothing")
    found = summarize_records([record(name, seed, 31.25 - seed * 9) for name in names for seed in range(3)])
    out = io.StringIO()
    Console(file=out, width=80).print(render.terminal(compose.brief(found)))
    rows = out.getvalue().splitlines()
    first = next(line for line in rows if "confidence_penalty" in line)
    assert first.split()[-1] == "+0.00"
    assert any(line.endswith("p=1.000") for line in rows)
    assert "Perplexity" not in out.getvalue()


def test_the_bootstrap_is_sacrebleus_and_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 0
    found = lines(tmp_path)
    assert [(line["method"], line["seed"], line["baseline"]) for line in found] == [
        (method, seed, BASELINE) for method in ("none", "labo") for seed in range(2)
    ]
    expected = metric.paired_bootstrap(spoiled(3), spoiled(12), REFERENCES, n=1000)
    assert found[2]["p"] == expected["p"] < 0.05
    assert found[2]["difference"] == expected["difference"] == found[2]["bleu"] - found[2]["baseline_bleu"]
    assert (found[0]["difference"], found[0]["p"]) == (0.0, 1.0)
    assert "bs:1000" in found[2]["signature"]
    before, page = (tmp_path / BOOTSTRAP).read_bytes(), (tmp_path / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(metric, "paired_bootstrap", lambda *args, **options: pytest.fail("measured twice"))
    assert cli.main(["report", str(tmp_path)]) == 0
    assert (tmp_path / BOOTSTRAP).read_bytes() == before
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert "Other test sentences" in page
    assert "Other test sentences" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_what_has_changed_is_measured_again(tmp_path: Path) -> None:
    assert cli.main(["report", str(write(tmp_path, seeds=1))]) == 0
    trials.write_translations(tmp_path / "numbers/labo/0", spoiled(3), REFERENCES)
    with (tmp_path / BOOTSTRAP).open("a") as file:
        file.write('{"task": "numbers", "cut')
    assert cli.main(["report", str(tmp_path)]) == 0
    found = lines(tmp_path)
    assert [line["method"] for line in found] == ["none", "labo", "labo"]
    assert bootstrap_results(found)["numbers", BASELINE, "labo", 0].difference == 0.0
    assert cli.main(["report", str(tmp_path), "--baseline", "none"]) == 0
    assert [(line["method"], line["baseline"]) for line in lines(tmp_path)[3:]] == [
        (BASELINE, "none"),
        ("labo", "none"),
    ]


@pytest.mark.parametrize("spoil", ["missing", "other", "shorter", "failed"])
def test_pairs_that_do_not_fit_are_left_out(tmp_path: Path, spoil: str) -> None:
    write(tmp_path, seeds=1, methods=(BASELINE, "labo"))
    run = tmp_path / "numbers/labo/0"
    if spoil == "missing":
        (run / trials.REFERENCES).unlink()
    elif spoil == "failed":
        line = {**record("labo", 0, 24.0), "metrics": {}, "failed": {"step": 1, "reason": "the loss became NaN"}}
        with (tmp_path / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    else:
        kept = REFERENCES[1:] if spoil == "shorter" else [*REFERENCES[1:], "another"]
        (run / trials.REFERENCES).write_text("\n".join(kept) + "\n")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert not (tmp_path / BOOTSTRAP).exists()
    assert "The paired bootstrap over test sentences is left out" in html(tmp_path)


def test_a_folder_in_use_gets_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, seeds=1)
    with lock.hold(tmp_path):
        assert cli.main(["report", str(tmp_path)]) == 0
    assert "The paired bootstrap over test sentences is left out: " in capsys.readouterr().err
    assert (tmp_path / "report.html").exists()


def test_without_sacrebleu_the_report_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*arguments: str) -> Any:
        raise UserError("Scoring translations needs sacreBLEU.")

    monkeypatch.setattr(metric, "_metric", absent)
    assert cli.main(["report", str(write(tmp_path, seeds=1))]) == 0
    assert "needs sacreBLEU" in capsys.readouterr().err


def test_the_table_by_hand(tmp_path: Path) -> None:
    write(tmp_path, seeds=4, methods=(BASELINE, "labo"), texts=False)
    drawn = [(0.5, 0.01), (-0.25, 0.05), (0.75, 0.2), (1.0, 0.0005)]
    with (tmp_path / BOOTSTRAP).open("w") as file:
        for seed, (difference, p) in [*enumerate(drawn), (9, (5.0, 0.01))]:  # no record has seed 9
            line = {"task": "numbers", "method": "labo", "baseline": BASELINE, "seed": seed, "difference": difference}
            file.write(json.dumps({**line, "p": p, "draws": 1000, "digest": "x"}) + "\n")
    report.build(tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    row = next(line for line in markdown.splitlines() if "p &lt;0.001" in line)
    # better on seeds 0 and 3, worse on 1; the median of 0.0005, 0.01, 0.05 and 0.2 is 0.03
    assert row == (
        "| labo | 2 | 1 | 1 | 0.030 | +0.50 (p 0.010) | −0.25 (p 0.050) | +0.75 (p 0.200) | +1.00 (p &lt;0.001) |"
    )


def test_damaged_lines_tell_nothing() -> None:
    good = {
        "task": "t",
        "baseline": "b",
        "method": "m",
        "seed": 0,
        "difference": 1.0,
        "p": 0.5,
        "draws": 9,
        "digest": "x",
    }
    bad = [{**good, "p": 2.0}, {**good, "difference": float("nan")}, {**good, "seed": None}, {"task": "t"}]
    assert bootstrap_results([good, *bad]) == {("t", "b", "m", 0): BootstrapResult(1.0, 0.5, 9, "x")}


def test_sentences_are_kept_on_their_lines(tmp_path: Path) -> None:
    trials.write_translations(tmp_path, ["a\u2028b", "", " c  d "], ["x", "y\r", "z\x85"])
    assert trials.read_translations(tmp_path) == (["a b", "", "c d"], ["x", "y", "z"])
    (tmp_path / trials.HYPOTHESES).write_bytes(b"\xff\n\n\n")
    assert trials.read_translations(tmp_path) is None


def test_labels_of_sentences(tmp_path: Path) -> None:
    shown = section(html(write(tmp_path)), "What the labels look like, word by word")
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 2  # the source, and a piece
    boxes = re.findall(r"<li>(.*?)</li>", shown)
    assert len(boxes) == 3
    texts = [re.findall(r"<small>(.*?)</small>(.*?)<i style=\"width: (\d+)%", box) for box in boxes]
    assert [(mass, width) for mass, _, width in texts[0]] == [(".500", "100"), (".250", "50"), (".125", "25")]
    assert [mass for mass, _, _ in texts[1]] == [".100", ".400", ".200", ".150"]  # the reference is not among the top
    assert [mass for mass, _, _ in texts[2]] == ["&lt;.001", ".300"]
    assert [re.sub("<[^>]+>", "", text) for _, text, _ in texts[0]] == ["␣a", "␣the", "␣one"]
    assert "▁" not in shown
    assert "all pieces share alike, .002 each" in shown
    assert "No label is shown for none:" in shown
    assert shown.index(BASELINE) < shown.index("labo")


def test_a_label_that_is_the_same_everywhere_is_told_once(tmp_path: Path) -> None:
    shown = section(html(write(tmp_path, methods=(BASELINE, "unigram_smoothing"))), "word by word")
    assert "its largest shares:" in shown
    assert shown.count("der") == 1
    assert [re.findall(r"<small>(.*?)</small>", box) for box in re.findall(r"<li>(.*?)</li>", shown)] == [
        [".200"],
        [".100"],
    ]


def test_no_samples_leaves_sentences_out(tmp_path: Path) -> None:
    page = html(write(tmp_path), samples=False)
    assert "Made without samples" in page
    for text in ("word by word", "ein Hund", "wolf", "script"):
        assert text not in page
    assert "wolf" in html(tmp_path)


def test_the_first_seed_with_whole_sentences_is_shown(tmp_path: Path) -> None:
    write(tmp_path, methods=(BASELINE, "labo"))
    bad: list[Any] = [None, {"source": 1}, {**LABO, "places": []}, {**LABO, "places": [place("a", 0.1)]}]
    bad += [{**LABO, "places": [{"reference": "a", "mass": None, "top": [["a", 0.1]]}]}, {**LABO, "places": [3]}]
    path = tmp_path / "numbers/labo/0/figures.json"
    path.write_text(json.dumps({"sentences": bad}))
    assert "seed 1," in section(html(tmp_path), "word by word").split("labo <small>")[1]
    path.write_text(json.dumps({"sentences": [*bad, LABO]}))
    assert "seed 0," in section(html(tmp_path), "word by word").split("labo <small>")[1]
    for folder in (tmp_path / "numbers").glob("*/*"):
        (folder / "figures.json").write_text(json.dumps({"sentences": "x"}))
    assert "word by word" not in html(tmp_path)


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
def test_the_page_is_no_wider_than_a_phone(tmp_path: Path) -> None:
    write(tmp_path / "demo", methods=(*METHODS, "unigram_smoothing"))
    assert width_on_a_phone(html(tmp_path / "demo"), tmp_path) == 375


def test_real_runs(tmp_path: Path) -> None:
    pairs = numbers.draw(0, 40, "de", "en")["train"]
    for name, side in (("a.de", pairs.source), ("a.en", pairs.target)):
        (tmp_path / name).write_text("\n".join(side) + "\n", encoding="utf-8")
    files = {"source": str(tmp_path / "a.de"), "target": str(tmp_path / "a.en")}
    folder, records = tmp_path / "runs", []
    for method in ("none", "labo"):
        asked = trial(method, task="translation", task_options=files, set={"beam": 1, "tokens": 200}, epochs=1)
        records.append(run_trial.run(asked, folder / "translation" / method / "0"))
    (folder / "results.jsonl").write_text("".join(json.dumps(found) + "\n" for found in records), encoding="utf-8")
    assert cli.main(["report", str(folder)]) == 0
    (found,) = lines(folder)
    assert (found["method"], found["baseline"]) == ("labo", "none")
    scores = found["baseline_bleu"], found["bleu"]
    assert scores == pytest.approx(tuple(known["metrics"]["bleu"] for known in records))
    shown = section((folder / "report.html").read_text(encoding="utf-8"), "word by word")
    assert "labo <small>seed 0" in shown
    assert shown.count("<b>") == shown.count("<li>") > 3
    assert paired_bootstrap.missing(read(folder), "none", {"translation"}) == []
