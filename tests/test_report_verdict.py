"""The verdict and the tables on records small enough to work out by hand."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from labo import report
from labo.errors import UserError
from labo.records.comparison import Recorded
from labo.report import compose, render
from labo.report.model import Report, Section
from labo.report.verdict import (
    BASELINE,
    BETTER,
    EQUIVALENT,
    NOT_COMPARED,
    UNDECIDED,
    WORSE,
    MethodSummary,
    Summary,
    finding,
    summarize_records,
)
from launch import run_python


def record(method: str, seed: int, accuracy: float | None, task: str = "digits", **more: float) -> dict:
    base = {"task": task, "method": method, "seed": seed, "settings": {}, "seconds": 1.0, "versions": {}}
    if accuracy is None:
        return base | {"metrics": {}, "failed": {"step": 7, "reason": "the loss became NaN"}}
    return base | {"metrics": {"accuracy": accuracy, **more}}


def trials(task: str = "digits", /, **methods: Sequence[float | None]) -> list[dict]:
    return [
        record(method, seed, value, task) for method, values in methods.items() for seed, value in enumerate(values)
    ]


def of(summary: Summary, method: str, task: int = 0) -> MethodSummary:
    return next(found for found in summary.tasks[task].methods if found.method == method)


def leaderboard(summary: Summary) -> list[str]:
    """The lines of the first task's table in Markdown."""
    task = summary.tasks[0]
    table = compose.leaderboard(task, task.measures)
    text = render.markdown(Report("", "", (Section("", (table,)),)))
    return [line for line in text.splitlines() if line.startswith("|")]


def test_mean_and_interval_by_hand() -> None:
    found = of(summarize_records(trials(none=[0.90, 0.92, 0.94])), "none").estimates["accuracy"]
    assert found.mean == pytest.approx(0.92)
    # Student t with 2 degrees of freedom, 97.5%: 4.302653; standard deviation 0.02
    assert found.half_width == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-6)


def test_better_by_all_eight_seeds() -> None:
    base = [0.90 + 0.001 * seed for seed in range(8)]
    summary = summarize_records(
        trials(label_smoothing=base, labo=[value + 0.01 + 0.001 * index for index, value in enumerate(base)])
    )
    difference = of(summary, "labo").differences["accuracy"]
    assert difference.p == pytest.approx(2 / 256)
    assert difference.smallest_p == pytest.approx(2 / 256)
    assert difference.mean == pytest.approx(0.0135)
    assert of(summary, "labo").verdict == BETTER
    sentence = of(summary, "labo").sentence
    assert sentence.startswith("labo is better than label_smoothing: accuracy 91.70% against 90.35%, ")
    assert "+1.35 points (95% interval +1.15 to +1.55) over 8 seeds; p = 0.008 after Holm." in sentence
    assert of(summary, "label_smoothing").verdict == BASELINE


def test_lower_is_better_for_nll() -> None:
    records = [record("label_smoothing", seed, 0.9, nll=0.30) for seed in range(8)]
    records += [record("labo", seed, 0.9, nll=0.20 + 0.001 * seed) for seed in range(8)]
    found = of(summarize_records(records), "labo")
    assert found.differences["nll"].verdict == BETTER
    assert found.differences["nll"].mean < 0
    assert found.verdict == EQUIVALENT  # the accuracy is the same on every seed
    assert "labo is practically the same as label_smoothing: accuracy 90.00% against 90.00%" in found.sentence
    assert found.differences["accuracy"].p == 1


def test_holm_is_over_the_methods() -> None:
    base = [0.9] * 8
    up, down = [0.91 + 0.001 * seed for seed in range(8)], [0.89 - 0.001 * seed for seed in range(8)]
    summary = summarize_records(trials(label_smoothing=base, labo=up, none=down, confidence_penalty=base))
    assert of(summary, "labo").differences["accuracy"].p_holm == pytest.approx(6 / 256)
    assert of(summary, "none").differences["accuracy"].p_holm == pytest.approx(6 / 256)
    assert of(summary, "none").verdict == WORSE
    assert of(summary, "none").differences["accuracy"].smallest_p_holm == pytest.approx(6 / 256)


def test_three_seeds_can_tell_nothing_and_it_is_said() -> None:
    summary = summarize_records(trials(label_smoothing=[0.5, 0.5, 0.5], labo=[0.9, 0.91, 0.92]))
    assert of(summary, "labo").verdict == UNDECIDED
    assert "the smallest p they can reach is 0.250" in of(summary, "labo").sentence


def test_one_seed_has_no_interval() -> None:
    found = of(summarize_records(trials(label_smoothing=[0.5], labo=[0.9])), "labo")
    assert found.estimates["accuracy"].half_width is None
    assert found.differences["accuracy"].half_width is None
    assert "over 1 seed;" in found.sentence
    assert "One seed shows no spread" in found.sentence
    assert "nan" not in found.sentence


def test_failed_trials_are_counted_and_paired_seeds_only_are_compared() -> None:
    summary = summarize_records(trials(label_smoothing=[0.5, 0.6, 0.7, None], labo=[0.6, None, 0.9, 0.9]))
    found = of(summary, "labo")
    assert found.finished == 3
    assert [failure["seed"] for failure in found.failures] == [1]
    assert found.failures[0] == {"seed": 1, "step": 7, "reason": "the loss became NaN"}
    assert found.differences["accuracy"].seeds == (0, 2)
    assert found.differences["accuracy"].values == pytest.approx((0.1, 0.2))
    assert "Failed and not in these figures: 1 of its 4 trials." in found.sentence


def test_a_method_that_only_failed_is_not_compared() -> None:
    found = of(summarize_records(trials(label_smoothing=[0.5, 0.6], labo=[None, None])), "labo")
    assert found.verdict == NOT_COMPARED
    assert "it has no finished trial" in found.sentence


def test_a_failed_baseline_leaves_the_rest_uncompared() -> None:
    summary = summarize_records(trials(label_smoothing=[None, None], labo=[0.5, 0.6]))
    assert of(summary, "labo").verdict == NOT_COMPARED
    assert of(summary, "label_smoothing").sentence.startswith("label_smoothing is the baseline, and has no finished")


def test_values_that_are_not_finite_are_not_measured() -> None:
    records = [record("label_smoothing", seed, 0.9, nll=math.inf if seed else 0.3) for seed in range(2)]
    assert of(summarize_records(records), "label_smoothing").estimates["nll"].values == {0: 0.3}


def test_the_last_record_of_a_trial_counts() -> None:
    summary = summarize_records([record("labo", 0, None), record("labo", 0, 0.9)])
    assert of(summary, "labo").finished == 1
    assert not of(summary, "labo").failures


def test_baseline_default_and_choice() -> None:
    both = trials(none=[0.5, 0.6], label_smoothing=[0.5, 0.6], labo=[0.5, 0.6])
    assert summarize_records(both).baseline == "label_smoothing"
    assert summarize_records(both, preferred="none").baseline == "none"
    assert summarize_records(both, "labo", preferred="none").baseline == "labo"
    assert summarize_records(trials(none=[0.5], labo=[0.6]), preferred="label_smoothing").baseline == "none"
    with pytest.raises(UserError, match="nearest is 'labo'"):
        summarize_records(both, "lab")


def test_several_tasks_are_tested_together() -> None:
    base, up = [0.5] * 5, [0.51, 0.52, 0.53, 0.54, 0.55]
    records = trials("a", label_smoothing=base, labo=up) + trials("b", label_smoothing=base, labo=up)
    summary = summarize_records(records)
    assert [task.task for task in summary.tasks] == ["a", "b"]
    assert of(summary, "labo").verdict == UNDECIDED  # five seeds reach 0.0625
    (overall,) = summary.overall
    assert overall.better_on == ("a", "b")
    assert overall.worse_on == ()
    assert overall.p == pytest.approx(2 / 2**10)
    assert overall.verdict == BETTER
    assert overall.sentence.startswith("Over 2 tasks labo is better than label_smoothing: its mean is better on 2 and")


def test_a_baseline_missing_on_one_task() -> None:
    records = trials("a", label_smoothing=[0.5, 0.6], labo=[0.5, 0.7]) + trials("b", labo=[0.5, 0.6])
    summary = summarize_records(records)
    assert of(summary, "labo", 1).verdict == NOT_COMPARED
    assert summary.overall == ()


def test_translation_measures() -> None:
    records = [
        {"task": "t", "method": m, "seed": s, "metrics": {"bleu": 30.0 + s, "nll": 2.0}} for m in "ab" for s in range(2)
    ]
    task = summarize_records(records).tasks[0]
    assert task.main.key == "bleu"
    assert "BLEU 30.50" in task.methods[0].sentence


def test_no_records_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No results\.jsonl"):
        report.summarize(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"task": "digi')
    with pytest.raises(UserError, match="No finished trial"):
        report.build(tmp_path)
    with pytest.raises(UserError):
        summarize_records([])


def test_summarize_takes_the_baseline_of_the_comparison(tmp_path: Path) -> None:
    lines = trials(label_smoothing=[0.5, 0.6], none=[0.5, 0.6])
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"task": "cut')
    assert report.summarize(tmp_path).baseline == "label_smoothing"
    (tmp_path / "compare.json").write_text('{"baseline": "none"}')
    assert report.summarize(tmp_path).baseline == "none"
    assert report.summarize(tmp_path, "label_smoothing").baseline == "label_smoothing"


def test_markdown_ranks_and_marks_the_best() -> None:
    summary = summarize_records(trials(none=[0.5, 0.5], label_smoothing=[0.9, 0.9], labo=[0.7, 0.7]))
    rows = leaderboard(summary)
    assert [row.split(" ")[1] for row in rows[2:]] == ["label_smoothing", "labo", "none"]
    assert rows[2] == "| label_smoothing | 2 | **90.00%** ± 0.00 |"
    text = render.markdown(compose.report(Recorded(Path("."), []), summary))
    assert "| labo | 2 (p ≥ 1.000) | −20.00 ± 0.00 (p 1.000) |" in text


def test_console_table() -> None:
    from rich.console import Console

    out = io.StringIO()
    summary = summarize_records(trials(label_smoothing=[0.5, 0.6], **{"[red]labo": [0.5, None]}))
    Console(file=out, width=160).print(render.terminal(compose.brief(summary)))
    assert "[red]labo" in out.getvalue()
    assert "1 (1 failed)" in out.getvalue()
    assert "55.00%" in out.getvalue()
    assert "±63.53" in out.getvalue()


def test_console_table_fits_eighty_columns() -> None:
    from rich.console import Console

    measures = ("nll", "nll_scaled", "brier", "ece", "ece_scaled")
    records = trials(confidence_penalty=[0.90, 0.91], label_smoothing=[0.90, 0.91])
    for found in records:
        found["metrics"] |= dict.fromkeys(measures, 0.1)
    out = io.StringIO()
    Console(file=out, width=80).print(render.terminal(compose.brief(summarize_records(records, "label_smoothing"))))
    assert "…" not in out.getvalue()
    assert "confidence_penalty" in out.getvalue()
    assert "±0.0000" in out.getvalue()


@pytest.mark.parametrize("width", [24, 40, 60])
def test_a_narrow_terminal_cuts_no_number(width: int) -> None:
    from rich.console import Console

    measures = ("nll", "nll_scaled", "brier", "ece", "ece_scaled")
    records = trials(confidence_penalty=[0.90, 0.91], label_smoothing=[0.90, 0.91], labo=[0.91, 0.94])
    for found in records:
        found["metrics"] |= dict.fromkeys(measures, 0.1234)
    out = io.StringIO()
    Console(file=out, width=width).print(render.terminal(compose.brief(summarize_records(records, "label_smoothing"))))
    shown = out.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    table = shown.split("Left out")[0]
    assert "92.50%" in table
    assert f"±{19.06:.2f}" in table  # t with one degree of freedom, 12.706, of a standard error of 1.5 points
    left_out = " ".join(shown.split()).split("Left out of this narrow terminal: ")[1].split(".")[0]
    if width == 40:
        assert "+2.00" in table
        assert left_out == "Seeds; NLL; NLL, scaled; ECE; ECE, scaled"
    if width == 60:
        assert "0.1234" in table
    if width == 24:
        assert left_out.endswith("Minus baseline")


def shift_line(method: str, seed: int, **kinds: dict[int, float]) -> dict:
    scores = {kind: {str(at): {"accuracy": value} for at, value in found.items()} for kind, found in kinds.items()}
    return {"task": "digits", "method": method, "seed": seed, "scores": scores}


def write_shifts(folder: Path, lines: Sequence[dict]) -> None:
    records = trials(none=[0.9, 0.8], labo=[0.8, 0.9])
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    (folder / "shift.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_accuracy_on_shifted_inputs_is_a_measure_like_any_other(tmp_path: Path) -> None:
    write_shifts(
        tmp_path,
        [
            shift_line("none", 0, noise={1: 0.5, 2: 0.3}),
            shift_line("none", 1, noise={1: 0.6, 2: 0.4}),
            shift_line("labo", 0, noise={1: 0.7, 2: 0.5}),
            {"task": "digits", "method": "labo", "scores": "damaged"},
            shift_line("labo", 1, noise={1: 0.6, 2: 0.4}),
            shift_line("gone", 1, blur={1: 0.6}),  # of a trial that is not among the records
        ],
    )
    summary = report.summarize(tmp_path, "none")
    assert summary.tasks[0].main.key == "accuracy"
    assert of(summary, "labo").estimates["accuracy_shifted"].values == pytest.approx({0: 0.6, 1: 0.5})
    difference = of(summary, "labo").differences["accuracy_shifted"]
    assert difference.values == pytest.approx((0.2, 0.0))
    report.build(tmp_path, baseline="none")
    markdown = (tmp_path / "report.md").read_text()
    assert "Accuracy, shifted" in markdown
    assert "| labo | 2 | 85.00% ± 63.53 | 55.00% ± 63.53 | 55.00% ± 63.53 |" in markdown
    assert "noise, at severities 1, 2 of 5" in markdown


def test_methods_are_measured_by_the_same_shifts_and_kinds_count_alike(tmp_path: Path) -> None:
    lines = [
        shift_line("none", 0, noise={1: 0.5, 2: 0.3}, blur={2: 0.1}),
        shift_line("labo", 0, noise={2: 0.5, 3: 0.2}),
        shift_line("labo", 0, blur={2: 0.3, 1: 0.9}),
    ]
    write_shifts(tmp_path, lines)
    summary = report.summarize(tmp_path, "none")  # both have noise 2 and blur 2
    assert of(summary, "none").estimates["accuracy_shifted"].values == pytest.approx({0: 0.2})
    assert of(summary, "labo").estimates["accuracy_shifted"].values == pytest.approx({0: 0.4})
    summary = report.summarize(tmp_path, "none", shifts=[("noise", 1)])
    assert of(summary, "none").estimates["accuracy_shifted"].values == pytest.approx({0: 0.5})
    assert of(summary, "labo").estimates["accuracy_shifted"].values == {}
    write_shifts(tmp_path, [shift_line("none", 0, noise={1: 0.5, 2: 0.3}, blur={3: 0.1})])
    summary = report.summarize(tmp_path, "none")  # no severity that both kinds have: the better measured kind
    assert of(summary, "none").estimates["accuracy_shifted"].values == pytest.approx({0: 0.4})
    write_shifts(tmp_path, [shift_line("none", 0, noise={1: 0.5}), shift_line("labo", 0, blur={1: 0.5})])
    assert "accuracy_shifted" not in of(report.summarize(tmp_path, "none"), "none").estimates


def test_records_from_before_top5_and_with_it_go_together() -> None:
    records = [record("none", 0, 0.5), record("none", 1, 0.5, top5=0.9), record("labo", 1, 0.5, top5=0.95)]
    summary = summarize_records(records, "none")
    assert [measure.key for measure in summary.tasks[0].measures] == ["accuracy", "top5"]
    assert of(summary, "none").estimates["top5"].values == {1: 0.9}
    assert of(summary, "labo").differences["top5"].seeds == (1,)
    assert "| **50.00%** | 90.00% |" in "\n".join(leaderboard(summary)).replace(" ± 0.00", "")


@pytest.mark.parametrize("shifted", [False, True])
def test_the_terminals_table_fits_into_80_columns(shifted: bool) -> None:
    from rich.console import Console

    keys = ["top5", "nll", "nll_scaled", "brier", "ece", "ece_scaled", *(["accuracy_shifted"] if shifted else [])]
    records = [
        record(method, seed, 0.5 + seed / 10, "digits", **{key: 0.5 + seed / 7 for key in keys})
        for method in ("label_smoothing", "confidence_penalty")
        for seed in range(3)
    ]
    out = io.StringIO()
    Console(file=out, width=80).print(render.terminal(compose.brief(summarize_records(records))))
    rows = [line for line in out.getvalue().splitlines() if "confidence_penalty" in line or "p=1" in line]
    assert rows[0].split()[-1] == "+0.00"
    assert "p=1.000" in rows[1]
    assert "Top-5" not in out.getvalue()
    assert ("shifted" in out.getvalue()) == shifted


def test_the_terminals_table_breaks_no_word_where_trials_failed() -> None:
    from rich.console import Console

    measures = dict.fromkeys(("nll", "nll_scaled", "brier", "ece", "ece_scaled"), 0.1234)
    records = [record(name, seed, 0.9 + seed / 50) for name in ("label_smoothing", "x" * 20) for seed in range(3)]
    for each in records:
        each["metrics"] |= measures
    out = io.StringIO()
    summary = summarize_records([*records, record("label_smoothing", 3, None)])
    Console(file=out, width=80).print(render.terminal(compose.brief(summary)))
    table = out.getvalue().split("label_smoothing is")[0]
    assert {"x" * 20, "failed)", "baseline", "±0.0000", "p=1.000", "0.1234"} <= set(table.split())


def test_importing_the_report_brings_in_no_plotting() -> None:
    heavy = "('matplotlib', 'rich', 'torch', 'scipy')"
    code = f"import sys, labo.report; print([name for name in {heavy} if name in sys.modules])"
    assert run_python("-c", code).stdout.strip() == "[]"


def accuracies(by_method: dict[str, float], seeds: int = 8) -> list[dict[str, Any]]:
    return [
        {"task": "t", "method": method, "seed": seed, "metrics": {"accuracy": accuracy + 0.001 * (seed % 3)}}
        for method, accuracy in by_method.items()
        for seed in range(seeds)
    ]


def test_the_finding_is_one_sentence():
    (task,) = summarize_records(accuracies({"a": 0.8, "b": 0.9, "c": 0.95, "d": 0.7}), "a").tasks
    assert finding(task) == (
        "On t c (95.09%) and b (90.09%) are better than a (80.09%), by 15.00 and 10.00 points (p ≤ 0.023 after Holm, "
        "8 seeds)."
    )
    (task,) = summarize_records(accuracies({"a": 0.8, "b": 0.9}), "a").tasks
    assert (
        finding(task) == "On t b (90.09%) is better than a (80.09%), by 10.00 points (p = 0.008 after Holm, 8 seeds)."
    )
    (task,) = summarize_records(accuracies({"a": 0.8, "b": 0.7}), "a").tasks
    assert finding(task) == "On t no method is significantly better than a (80.09%)."
