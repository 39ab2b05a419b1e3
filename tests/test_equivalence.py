"""Practically the same or undecided: against scipy, tables of power, simulation and values by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from labo import cli, report
from labo.errors import UserError
from labo.metrics.equivalence import MAX_SEEDS, POWER, seeds_to_bound, seeds_to_tell, tost
from labo.report.equivalence import measure
from labo.report.verdict import BETTER, EQUIVALENT, UNDECIDED, finding, summarize_records
from test_report_verdict import of, trials

DIFFERENCES = [0.003, -0.001, 0.004, 0.0015, 0.0005, -0.0002, 0.0021, 0.001]


def test_tost_is_two_one_sided_t_tests() -> None:
    values, margin = np.array(DIFFERENCES), 0.005
    error = values.std(ddof=1) / np.sqrt(len(values))
    by_hand = max(
        stats.t.sf((values.mean() + margin) / error, len(values) - 1),
        stats.t.cdf((values.mean() - margin) / error, len(values) - 1),
    )
    assert tost(DIFFERENCES, margin) == pytest.approx(by_hand)
    # It rejects at 5% where the 90% interval lies within the margin, and only there.
    low, high = stats.t.interval(0.9, len(values) - 1, loc=values.mean(), scale=error)
    edge = max(-low, high)
    assert tost(DIFFERENCES, edge * 1.0001) < 0.05 < tost(DIFFERENCES, edge * 0.9999)


def test_tost_without_spread() -> None:
    assert tost([0.1], 1.0) == 1
    assert tost([0.0, 0.0], 0.1) == 0
    assert tost([0.3, 0.3, 0.3], 0.2) == 1
    with pytest.raises(ValueError, match="margin"):
        tost([0.1, 0.2], 0.0)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_to_tell_are_those_of_the_tables(effect: float, seeds: int) -> None:
    """The paired t-test at 5% with a power of 0.8, as G*Power has it."""
    assert seeds_to_tell(effect, 0.05) == seeds
    assert seeds_to_tell(-effect, 0.05) == seeds


def test_seeds_to_bound_have_the_power_by_simulation() -> None:
    margin, effect = 1.2, 0.3
    seeds = seeds_to_bound(effect, margin, 0.05)
    assert seeds is not None
    draw = np.random.default_rng(0)

    def power(count: int) -> float:
        values = draw.standard_normal((40_000, count)) + effect
        error, quantile = values.std(1, ddof=1) / np.sqrt(count), stats.t.ppf(0.95, count - 1)
        within = (values.mean(1) + margin > quantile * error) & (margin - values.mean(1) > quantile * error)
        return within.mean()

    assert power(seeds - 1) < POWER + 0.01
    assert power(seeds) > POWER - 0.01
    assert seeds_to_bound(1.3, margin, 0.05) is None
    assert seeds_to_tell(1e-4, 0.05) is None
    assert seeds_to_tell(50.0, 0.05) == 2
    assert MAX_SEEDS == 1000


def test_holm_is_over_the_methods_here_too() -> None:
    found = measure([DIFFERENCES, [value * 10 for value in DIFFERENCES]], 0.005, 0.05)
    assert found[0].p_holm == pytest.approx(2 * tost(DIFFERENCES, 0.005))
    assert found[1].p_holm == pytest.approx(max(found[1].p, found[0].p_holm))


def test_practically_the_same_within_the_margin() -> None:
    base = [0.9 + 0.01 * seed for seed in range(8)]
    records = trials(label_smoothing=base, labo=[a + b for a, b in zip(base, DIFFERENCES, strict=True)])
    found = of(summarize_records(records), "labo")
    assert found.verdict == EQUIVALENT
    p = tost(DIFFERENCES, 0.005)
    assert f"The difference is within ±0.5 points (TOST, p = {p:.3f} after Holm)." in found.sentence.replace(
        "p < 0.001", f"p = {p:.3f}"
    )
    assert finding(summarize_records(records).tasks[0]).endswith("labo is practically the same.")
    assert of(summarize_records(records, margin=0.1), "labo").verdict == UNDECIDED


def test_undecided_says_how_many_more_seeds() -> None:
    differences = [0.02, -0.01, 0.015, -0.005, 0.01, 0.0, 0.02, -0.01]
    base = [0.5] * 8
    records = trials(label_smoothing=base, labo=[a + b for a, b in zip(base, differences, strict=True)])
    found = of(summarize_records(records), "labo")
    assert found.verdict == UNDECIDED
    effect = abs(np.mean(differences)) / np.std(differences, ddof=1)
    total = next(n for n in range(2, 999) if stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, effect * n**0.5) >= 0.8)
    assert f"About {total - 8} more seeds would tell a difference of the size seen." in found.sentence
    assert "told apart" not in found.sentence


def test_seeds_are_enough_for_the_sign_flip_test() -> None:
    """Three seeds with the same large gain need no power, but the test's smallest p asks for six."""
    found = of(summarize_records(trials(label_smoothing=[0.5] * 3, labo=[0.9] * 3)), "labo")
    assert found.verdict == UNDECIDED
    assert "About 3 more seeds would tell a difference of the size seen." in found.sentence  # 2 / 2**6 = 0.031


def test_better_by_less_than_the_margin_is_said() -> None:
    gains = [0.001 + 0.0001 * seed for seed in range(8)]
    records = trials(label_smoothing=[0.9] * 8, labo=[0.9 + gain for gain in gains])
    found = of(summarize_records(records), "labo")
    assert found.verdict == BETTER
    assert found.sentence.endswith("The difference is small, though: within ±0.5 points (TOST, p < 0.001 after Holm).")


def test_the_margin_of_the_command_and_of_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [0.9 + 0.01 * seed for seed in range(8)]
    records = trials(label_smoothing=base, labo=[a + b for a, b in zip(base, DIFFERENCES, strict=True)])
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    assert of(report.summarize(tmp_path), "labo").verdict == EQUIVALENT
    assert of(report.summarize(tmp_path, margin=0.1), "labo").verdict == UNDECIDED
    (tmp_path / "compare.json").write_text('{"margin": 0.1}')
    assert of(report.summarize(tmp_path), "labo").verdict == UNDECIDED
    assert cli.main(["report", str(tmp_path), "--margin", "0.4"]) == 0
    assert "within ±0.4 points" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="--margin"):
        report.summarize(tmp_path, margin=-1.0)
