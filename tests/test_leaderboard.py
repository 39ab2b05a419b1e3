"""Several tasks on one leaderboard; what tuning is worth; tables as CSV and LaTeX; the signature."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from browser import BROWSER, width_on_a_phone
from labo import cli, report
from labo.metrics.ranks import average_ranks, critical_difference, friedman_test, win_rate
from labo.records.comparison import Recorded, read
from labo.report import compose, leaderboard, provenance, sensitivity
from labo.report.export import as_csv, as_latex, write_tables
from labo.report.model import Cell, Table
from labo.report.rank_figures import cliques
from labo.report.verdict import summarize_records
from test_report_verdict import of, record, trials

RESULTS = Path(__file__).parents[1] / "results"


def copied(name: str, folder: Path) -> Path:
    """The records of a comparison in results/, without its report."""
    folder.mkdir(parents=True)
    for path in (RESULTS / name).glob("*.json*"):
        shutil.copy(path, folder)
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file with headings."""
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_ranks_and_friedman_are_scipys() -> None:
    scores = np.random.default_rng(0).random((6, 4)).round(1)  # with ties
    expected = np.mean([stats.rankdata(-row) for row in scores], axis=0)
    assert average_ranks(scores.tolist()) == pytest.approx(expected)
    assert friedman_test(scores.tolist()) == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    assert friedman_test([[1.0, 2.0]] * 5) is None
    assert friedman_test([[1.0, 1.0, 1.0]] * 2) == 1


@pytest.mark.parametrize(("methods", "quantile"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_demsars_table(methods: int, quantile: float) -> None:
    expected = quantile * np.sqrt(methods * (methods + 1) / (6 * 14))
    assert critical_difference(methods, 14) == pytest.approx(expected, rel=5e-4)


def test_wilsons_interval_by_its_formula() -> None:
    rate = win_rate(13, 7)
    assert rate is not None
    z, n, p = stats.norm.ppf(0.975), 20, 13 / 20
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = (p, (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n))
    assert rate == pytest.approx(expected)
    assert win_rate(0, 0) is None


def test_groups_that_do_not_differ() -> None:
    assert cliques([1.0, 1.2, 3.0, 3.1, 5.0], 0.5) == [(0, 1), (2, 3)]
    assert cliques([1.0, 2.0, 3.0], 5.0) == [(0, 2)]
    assert cliques([1.0, 2.0], 1.0) == []


def test_standings_by_hand() -> None:
    records = trials("a", label_smoothing=[0.5, 0.6], labo=[0.6, 0.6], none=[0.4, 0.7], focal=[0.9, 0.9])
    records += trials("b", label_smoothing=[0.5, 0.6], labo=[0.4, 0.7], none=[0.2, 0.3])
    ordered = leaderboard.standings(summarize_records(records))
    # Means on a: labo 0.60, label_smoothing and none 0.55; on b: label_smoothing and labo 0.55, none 0.25.
    found = {standing.method: (standing.rank, standing.wins, standing.losses) for standing in ordered}
    assert found["labo"] == (1.25, 2, 1)  # a tie does not count
    assert found["label_smoothing"] == (2.0, 0, 0)
    assert found["none"] == (2.75, 1, 3)
    assert [standing.method for standing in ordered] == ["labo", "label_smoothing", "none"]
    assert "focal" not in found


def test_tasks_of_one_name_are_told_by_their_folders() -> None:
    one = Recorded(Path("x/one"), trials("digits", none=[0.5]) + trials("iris", none=[0.5]))
    two = Recorded(Path("x/two"), trials("digits", none=[0.6]))
    assert leaderboard.merge([one, two]).tasks == ["digits (one)", "iris", "digits (two)"]
    same = Recorded(Path("y/one"), trials("digits", none=[0.6]))
    assert leaderboard.merge([one, same]).tasks == ["digits (x/one)", "iris", "digits (y/one)"]


def test_a_leaderboard_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [copied(name, tmp_path / name) for name in ("demo", "demo-clean")]
    arguments = ["report", *map(str, folders), "--output", str(tmp_path / "both"), "--csv", str(tmp_path / "csv")]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Average" in shown
    assert "Over 2 tasks none is worse than label_smoothing" in " ".join(shown.split())
    written = (tmp_path / "both" / "report.md").read_text(encoding="utf-8")
    assert "digits (demo-clean)" in written
    assert "figures/ranks.svg" in written
    assert (tmp_path / "both" / "figures" / "ranks.svg").exists()
    rows = read_csv(tmp_path / "csv" / "over-all-tasks-leaderboard-over-tasks.csv")
    assert {row["Method"] for row in rows} == {"none", "label_smoothing", "labo"}
    assert all(1 <= float(row["Average rank"]) <= 3 for row in rows)
    assert not (folders[0] / "report.md").exists()
    if BROWSER is not None:
        assert width_on_a_phone((tmp_path / "both" / "report.html").read_text(encoding="utf-8"), tmp_path) == 375


def test_options_that_do_not_fit_the_number_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(copied("demo", tmp_path / "demo"))
    assert cli.main(["report", folder, folder, "--shift", "noise"]) == 2
    assert "name one DIR" in capsys.readouterr().err
    assert cli.main(["report", folder, "--output", str(tmp_path)]) == 2
    assert "several DIR" in capsys.readouterr().err


def test_a_folder_with_several_tasks_has_a_leaderboard_too() -> None:
    records = [each for task in "ab" for each in trials(task, label_smoothing=[0.5, 0.6], labo=[0.6, 0.7])]
    summary = summarize_records(records)
    titles = [title for title, _ in compose.report(Recorded(Path("."), records), summary).tables()]
    assert titles[0] == "Over all tasks"


def test_the_expected_best_is_the_mean_over_all_orders() -> None:
    scores = [0.3, 0.9, 0.5, 0.7, 0.5]
    for tries in range(1, 6):
        best = [max(drawn) for drawn in itertools.combinations(scores, tries)]
        assert sensitivity.expected_best(scores, tries) == pytest.approx(np.mean(best))


def test_what_tuning_is_worth_by_hand() -> None:
    def line(alpha: float, seed: int, accuracy: float) -> dict:
        settings = {"epochs": 1, "alpha": alpha, "beta": 2.0}
        return {"task": "digits", "method": "labo", "seed": seed, "settings": settings,
                "validation": {"accuracy": accuracy}}  # fmt: skip

    tuning = [line(0.1, 1, 0.7), line(0.4, 1, 0.9), line(0.1, 2, 0.8), line(0.4, 2, 0.8)]
    records = trials(none=[0.5, 0.6], labo=[0.6, 0.7])
    recorded, task = Recorded(Path("."), records, tuning=tuning), summarize_records(records).tasks[0]
    (tried,) = sensitivity.candidates(recorded, task).values()
    assert [(each.options, each.scores) for each in tried] == [
        ({"alpha": 0.1}, (0.7, 0.8)),
        ({"alpha": 0.4}, (0.9, 0.8)),
    ]
    assert sensitivity.strength(tried) == "alpha"
    found = compose.report(recorded, summarize_records(records))
    table = next(table for _, table in found.tables() if table.name == "Tuning")
    assert [cell.text for cell in table.rows[0]] == ["labo", "2", "80.00%", "85.00%", "10.00", "alpha 0.4"]
    assert {"tries", "strength-1-labo"} <= {figure.name for figure in found.figures()}


def test_time_and_memory_stand_beside_the_scores() -> None:
    records = [record(method, seed, 0.5 + seed / 10) for method in ("none", "labo") for seed in range(2)]
    for each in records:
        slow = each["method"] == "labo"
        each |= {"seconds": (3.0 if slow else 2.0) + each["seed"], "peak_memory": 2_000_000 * (1 + slow)}
    summary = summarize_records(records, "none")
    assert of(summary, "labo").cost.seconds == pytest.approx(3.5)
    found = compose.report(Recorded(Path("."), records), summary)
    table = next(table for _, table in found.tables() if table.name == "Leaderboard")
    assert table.columns[-2:] == ("Time", "Memory")
    rows = {row[0].text: [(cell.text, cell.note) for cell in row[-2:]] for row in table.rows}
    assert rows == {"labo": [("3.5 s", "× 1.40"), ("4 MB", "× 2.00")], "none": [("2.5 s", ""), ("2 MB", "")]}
    assert {"cost-time", "cost-memory"} <= {figure.name for figure in found.figures()}
    for each in records:
        del each["seconds"], each["peak_memory"]
    found = compose.report(Recorded(Path("."), records), summarize_records(records, "none"))
    assert "Time" not in next(table for _, table in found.tables() if table.name == "Leaderboard").columns
    assert not any("cost" in figure.name for figure in found.figures())


def test_selective_prediction_has_a_table_of_its_own() -> None:
    records = [record(name, seed, 0.9, aurc=0.1 + seed / 100, ece_adaptive=0.2) for name in "ab" for seed in range(2)]
    summary = summarize_records(records, "a")
    assert [measure.key for measure in summary.tasks[0].measures] == ["accuracy"]
    tables = {table.name: table for _, table in compose.report(Recorded(Path("."), records), summary).tables()}
    assert tables["Selective prediction"].columns == ("Method", "AURC")
    assert tables["Selective prediction"].rows[1][1] == Cell("0.1050", "0.0635", "p 1.000")
    assert tables["Calibration in other bins"].columns == ("Method", "ECE, adaptive")


TABLE = Table(
    "Things",
    ("Method", "Accuracy", "p"),
    (
        (Cell("a_b"), Cell("97.50%", "0.25", emphasized=True), Cell("−0.1", note="p < 0.001")),
        (Cell("c"), Cell("–"), Cell("1")),
    ),
    "50% & more",
)


def test_csv_has_plain_numbers() -> None:
    assert as_csv(TABLE) == (
        "Method,Accuracy (%),Accuracy half-width of the 95% interval,p,p note\na_b,97.50,0.25,-0.1,p < 0.001\nc,,,1,\n"
    )


def test_latex_escapes_and_marks_the_best() -> None:
    assert as_latex(TABLE) == (
        "% Things\n% 50% & more\n\\begin{tabular}{lrr}\n\\toprule\nMethod & Accuracy & p \\\\\n\\midrule\n"
        "a\\_b & \\textbf{97.50\\%} $\\pm$ 0.25 & $-$0.1 (p $<$ 0.001) \\\\\nc & -- & 1 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def test_every_table_is_written(tmp_path: Path) -> None:
    recorded = read(RESULTS / "demo-clean")
    found = compose.report(recorded, report.summarize(recorded))
    paths = write_tables(found, csv_folder=tmp_path / "csv", latex_folder=tmp_path / "tex")
    assert len(paths) == 2 * len(list(found.tables()))
    rows = read_csv(tmp_path / "csv" / "the-verdict-leaderboard.csv")
    labo = next(row for row in rows if row["Method"] == "labo")
    lines = [json.loads(line) for line in (RESULTS / "demo-clean" / "results.jsonl").read_text().splitlines()]
    own = [line["metrics"]["accuracy"] for line in lines if line["method"] == "labo"]
    assert float(labo["Accuracy (%)"]) == pytest.approx(100 * np.mean(own), abs=0.005)


def test_the_signature_names_what_the_numbers_depend_on() -> None:
    records = trials(none=[0.5, 0.6, 0.7], labo=[0.5, 0.6, 0.7])
    for each in records:
        each["versions"] = {"labo": "0.1.0", "torch": "2.13.0"}
    config = {
        "task": "table", "task_options": {"data": "/home/someone/iris.csv", "label_noise": "0.2,pair"},
        "set": {"epochs": 3}, "data": "0123456789abcdef", "settings_per_method": 3, "tuning_seeds": 2,
        "checkpoint": "last",
    }  # fmt: skip
    recorded = Recorded(Path("."), [each for each in records if each["seed"] != 1], comparison=config)
    assert provenance.signature(recorded) == (
        "labo|task:digits|options:data=iris.csv;label_noise=0.2,pair|data:0123456789ab|set:epochs=3|methods:none+labo|"
        "seeds:0,2|tuning:3x2|checkpoint:last|labo:0.1.0|torch:2.13.0"
    )
    searched = {**config, "settings_per_method": 0, "tune": "optuna:8", "tuning_seeds": 1}
    assert "|tuning:optuna:8x1|" in provenance.signature(replace(recorded, comparison=searched))
    assert provenance.signature(Recorded(Path("."), records[:1])).startswith("labo|task:digits|methods:none|seeds:0|")
