"""The written report: files, figures, escaping, and what a headless browser sees of the page."""

from __future__ import annotations

import html as markup
import json
import math
import os
import random
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from browser import BROWSER, browse, width_on_a_phone
from labo import report
from labo.errors import UserError
from labo.records.comparison import read
from labo.report import compose, render
from labo.report.model import Block, Details, Figures, Properties, Section, Table, Text, Verdicts

METHODS = {"none": 0.0, "label_smoothing": 0.018, "confidence_penalty": 0.006, "labo": 0.024}
CLASSES = [str(index) for index in range(10)]


def _write_lines(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _bins(shift: float, dice: random.Random) -> list[dict]:
    bins = []
    for index in range(15):
        confidence = (index + 0.5) / 15
        count = round(700 * math.exp((index - 14) / 2)) if index > 3 else 0
        accuracy = min(1.0, max(0.0, confidence + shift * (1 - confidence) * 2 + dice.gauss(0, 0.02)))
        known = {"confidence": confidence, "accuracy": accuracy} if count else {"confidence": None, "accuracy": None}
        bins.append({**known, "count": count})
    return bins


def _labels(method: str, dice: random.Random) -> list[list[float]] | None:
    if method == "label_smoothing":
        return [[0.1] * 10 for _ in range(10)]
    if method != "labo":
        return None
    rows = []
    for true in range(10):
        row: list[float] = [0.05 * (2.2 if {true, other} in ({3, 8}, {4, 9}, {1, 7}) else 1) for other in range(10)]
        row = [value * math.exp(dice.gauss(0, 0.15)) for value in row]
        row[true] = 0.5
        rows.append([value / sum(row) for value in row])
    return rows


def _run_folder(folder: Path, method: str, seed: int, dice: random.Random) -> None:
    shift = {"none": -0.12, "label_smoothing": 0.15, "labo": 0.2}.get(method, 0.05)
    figures = {
        "classes": CLASSES,
        "temperature": 1 - shift,
        "reliability": {"raw": _bins(shift, dice), "scaled": _bins(0.0, dice)},
        "labels": _labels(method, dice),
        "targets": None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    floor = 0.05 + METHODS.get(method, 0) * 20
    curve = [
        {
            "epoch": epoch,
            "step": 7 * epoch,
            "loss": floor + 2.2 * math.exp(-epoch / 6) + dice.gauss(0, 0.01),
            "learning_rate": 2e-3,
            "validation_nll": 0.16 - METHODS.get(method, 0) + 1.8 * math.exp(-epoch / 5) + dice.gauss(0, 0.004),
            "validation_accuracy": 0.95 + METHODS.get(method, 0) - 0.6 * math.exp(-epoch / 4) + dice.gauss(0, 0.002),
        }
        for epoch in range(1, 41)
    ]
    _write_lines(folder / "curve.jsonl", curve)


def write_folder(directory: Path, *, task: str = "digits", methods: tuple[str, ...] = tuple(METHODS), seeds: int = 8,
                 runs: bool = True, failed: bool = True) -> Path:  # fmt: skip
    """A made-up comparison on disk, as `labo compare` leaves it; one trial of confidence_penalty failed."""
    dice, records = random.Random(1), []
    for seed in range(seeds):
        hard = dice.gauss(0, 0.004)
        for method in methods:
            gain = METHODS.get(method, 0.01)
            accuracy = 0.952 + gain + hard + dice.gauss(0, 0.0015)
            metrics = {
                "accuracy": round(accuracy, 4), "nll": 0.2 + gain * 6 + dice.gauss(0, 0.01),
                "nll_scaled": 0.15 - gain * 2.6 + dice.gauss(0, 0.004), "brier": 0.07 - gain + dice.gauss(0, 0.002),
                "ece": 0.02 + gain * 9 + dice.gauss(0, 0.004), "ece_scaled": 0.012 + dice.gauss(0, 0.002),
                "brier_scaled": 0.06, "temperature": 1.0,
            }  # fmt: skip
            settings = {"learning_rate": 2e-3 if method != "none" else 1e-3, "weight_decay": 0.01, "epochs": 60}
            settings |= {"alpha": 0.8, "beta": 4.0} if method == "labo" else {}
            record = {"task": task, "method": method, "seed": seed, "settings": settings, "metrics": metrics,
                      "seconds": 2.4, "versions": {"torch": "2.13.0", "python": "3.11.2"}}  # fmt: skip
            if failed and method == "confidence_penalty" and seed == 5:
                record |= {"metrics": {}, "failed": {"step": 211, "reason": "the loss became NaN"}}
            records.append(record)
            if runs:
                _run_folder(directory / task / method / str(seed), method, seed, dice)
    existing = directory / "results.jsonl"
    before = [json.loads(line) for line in existing.read_text().splitlines()] if existing.exists() else []
    _write_lines(existing, before + records)
    asked = {"command": ["labo", "compare", task, "--methods", ",".join(methods), "--output", "demo dir"], "task": task,
             "methods": list(methods), "baseline": "label_smoothing", "seeds": seeds, "settings_per_method": 3,
             "tuning_seeds": 3, "checkpoint": "last", "versions": {"torch": "2.13.0"}}  # fmt: skip
    (directory / "compare.json").write_text(json.dumps(asked), encoding="utf-8")
    return directory


def test_everything_is_written(tmp_path: Path) -> None:
    page = report.build(write_folder(tmp_path))
    assert page == tmp_path / "report.html"
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"seeds-accuracy", "seeds-nll-scaled", "curve-loss", "curve-validation-nll"} <= names
    assert {"labels-1-label-smoothing", "labels-3-labo", "reliability-3-labo"} <= names
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\(figures/([\w-]+)\.svg\)", markdown))
    assert linked == names
    for path in (tmp_path / "figures").iterdir():
        ElementTree.fromstring(path.read_text(encoding="utf-8"))
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == len(names)
    for text in (
        "labo is better than label_smoothing",
        "the loss became NaN",
        "&#39;demo dir&#39;",
        "2.13.0",
        "Holm",
    ):
        assert text in html


def strings(blocks: Sequence[Block]) -> Iterator[str]:
    """Every string of a report that is for all formats."""
    for block in blocks:
        if isinstance(block, Section | Details) and not block.html_only:
            yield block.title if isinstance(block, Section) else block.summary
            yield from strings(block.blocks)
        elif isinstance(block, Text):
            yield from filter(None, (block.term, block.text))
        elif isinstance(block, Verdicts):
            yield from (sentence for _, sentence in block.items)
        elif isinstance(block, Table):
            yield from (*block.columns, block.caption)
            yield from (part for row in block.rows for cell in row for part in (cell.text, cell.spread, cell.note))
        elif isinstance(block, Figures):
            yield from (block.caption, *(figure.description for figure in block.figures))
        elif isinstance(block, Properties):
            yield from (part for item in block.items for part in item)


def test_page_and_markdown_lose_nothing_of_the_report(tmp_path: Path) -> None:
    recorded = read(write_folder(tmp_path))
    found = compose.report(recorded, report.summarize(recorded))
    page = markup.unescape(re.sub("<[^>]+?>", "", render.html(found)))
    page += " ".join(figure.description for figure in found.figures())  # which are attributes there
    text = markup.unescape(render.markdown(found)).replace("\\", "")
    known = list(strings(found.sections))
    assert len(known) > 200
    assert [each for each in known if each not in page] == []
    assert [each for each in known if each not in text] == []


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    html = report.build(write_folder(tmp_path)).read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href|url|@import)\s*[=(]?\s*["']?\s*(?:https?:)?//""", html)
    assert "<script" not in html
    assert '<link rel="stylesheet"' not in html
    without_names = html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    without_names = without_names.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    assert "http" not in without_names.replace("http-equiv", "")
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html


def test_ids_are_unique_and_references_meet_one(tmp_path: Path) -> None:
    html = report.build(write_folder(tmp_path)).read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_figures_carry_theme_colours_only(tmp_path: Path) -> None:
    report.build(write_folder(tmp_path, seeds=3))
    for path in (tmp_path / "figures").iterdir():
        drawn = path.read_text(encoding="utf-8").split("</style>")[1]
        assert not re.findall(r"#[0-9a-f]{6}\b", drawn), path.name


def test_same_records_same_bytes(tmp_path: Path) -> None:
    first = report.build(write_folder(tmp_path, seeds=3)).read_bytes()
    assert report.build(tmp_path).read_bytes() == first


def test_without_run_folders_the_figures_are_left_out_with_a_word(tmp_path: Path) -> None:
    html = report.build(write_folder(tmp_path, runs=False)).read_text(encoding="utf-8")
    assert "The reliability diagrams are left out" in html
    assert "The training curves are left out" in html
    assert "seeds-accuracy" in html


def test_damaged_run_folders_do_not_stop_the_report(tmp_path: Path) -> None:
    write_folder(tmp_path, seeds=3)
    (tmp_path / "digits/labo/0/figures.json").write_text("{", encoding="utf-8")
    broken = {
        "classes": 3,
        "reliability": {"raw": [None, {"count": 2}, 3]},
        "labels": [[1], [2, 3]],
        "temperature": "x",
    }
    (tmp_path / "digits/labo/1/figures.json").write_text(json.dumps(broken), encoding="utf-8")
    (tmp_path / "digits/labo/2/curve.jsonl").write_text('{"epoch": 1, "loss": NaN}\n{"epo', encoding="utf-8")
    assert "labo" in report.build(tmp_path).read_text(encoding="utf-8")


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    nasty = "_<script>alert(1)</script>|`*$x_{$"
    write_folder(tmp_path, task="data & co", methods=("label_smoothing", nasty), seeds=3, runs=False)
    record = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])
    record |= {"seed": 9, "failed": {"step": 1, "reason": '"><img src=x onerror=alert(1)>'}, "metrics": {}}
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    html = report.build(tmp_path).read_text(encoding="utf-8")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (
        html,
        markdown.split("## How to reproduce it")[0],
    ):  # the command is an indented block, which is literal
        assert "<script" not in text
        assert "<img" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "data &amp; co" in html
    for path in (tmp_path / "figures").iterdir():
        ElementTree.fromstring(path.read_text(encoding="utf-8"))


def test_several_tasks_stand_one_by_one_and_together(tmp_path: Path) -> None:
    write_folder(tmp_path, task="digits", seeds=4)
    write_folder(tmp_path, task="wine", seeds=4, runs=False)
    html = report.build(tmp_path).read_text(encoding="utf-8")
    assert "Over all tasks" in html
    assert "stratified" in html
    assert (tmp_path / "figures/0-digits-seeds-accuracy.svg").exists()
    assert (tmp_path / "figures/1-wine-seeds-accuracy.svg").exists()


def test_names_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    write_folder(tmp_path, task="secret", seeds=2)
    inside.mkdir()
    write_folder(inside, task="../secret", seeds=2, runs=False)
    assert "The reliability diagrams are left out" in report.build(inside).read_text(encoding="utf-8")


def test_samples_are_promised_away(tmp_path: Path) -> None:
    assert "Made without samples" in report.build(write_folder(tmp_path, seeds=2), samples=False).read_text()


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    write_folder(tmp_path, seeds=2, runs=False)
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(UserError, match="Cannot write the report"):
        report.build(tmp_path)


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 5200), (375, 9000)], ids=["desktop", "phone"])
def test_a_browser_shows_the_page_without_a_complaint(tmp_path: Path, width: int, height: int, dark: bool) -> None:
    page = report.build(write_folder(tmp_path / "demo" if (tmp_path / "demo").mkdir() is None else tmp_path))
    # Headless Chromium has no window narrower than 500 pixels, so the phone is a frame of its width.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="{page.as_uri()}" style="border:0;width:{width}px;height:{height}px">'
    )
    shot = tmp_path / "shot.png"
    scheme = (
        ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]
        if dark
        else ["--blink-settings=preferredColorScheme=1"]
    )
    done = browse(
        tmp_path / "profile",
        *scheme,
        f"--window-size={max(width, 500)},{height}",
        f"--screenshot={shot}",
        frame.as_uri(),
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    assert shot.exists()
    assert shot.stat().st_size > 20_000
    keep = os.environ.get("LABO_SCREENSHOTS")
    if keep:
        shutil.copy(shot, Path(keep) / f"{'phone' if width < 500 else 'desktop'}-{'dark' if dark else 'light'}.png")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
def test_the_page_is_no_wider_than_a_phone(tmp_path: Path) -> None:
    html = report.build(write_folder(tmp_path, seeds=2, methods=(*METHODS, "a_rather_long_name_" * 4))).read_text()
    assert width_on_a_phone(html, tmp_path) == 375
