"""Intervals, permutation tests and Holm's correction against scipy and numbers worked by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from labo.metrics.significance import holm, mean_interval, sign_flip_test, smallest_p, stratified_sign_flip_test

DIFFERENCES = [0.3, -0.1, 0.4, 0.15, 0.05, -0.02, 0.21]


def test_interval_is_students():
    mean, half = mean_interval(DIFFERENCES)
    low, high = stats.t.interval(0.95, len(DIFFERENCES) - 1, loc=mean, scale=stats.sem(DIFFERENCES))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert mean_interval([2.0]) == (2.0, math.inf)
    with pytest.raises(ValueError, match="values"):
        mean_interval([])


def test_sign_flips_are_scipys_permutation_test():
    theirs = stats.permutation_test(
        (DIFFERENCES,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=2**7, vectorized=True
    )
    assert sign_flip_test(DIFFERENCES) == pytest.approx(theirs.pvalue)


def test_sign_flips_by_hand():
    assert sign_flip_test([1, 1, 1]) == 2 / 8
    assert sign_flip_test([0.1, 0.2, -0.3]) == 1.0  # the sum is 0 but for rounding
    assert sign_flip_test([0.0, 0.0]) == 1.0
    assert sign_flip_test([1.0] * 8) == smallest_p(8) == 2 / 256
    assert smallest_p(0) == 1.0


def test_many_pairs_are_drawn_and_repeatable():
    many = [(-1) ** i * 0.1 + 0.03 for i in range(40)]
    p = sign_flip_test(many)
    assert p == sign_flip_test(many)
    assert p == pytest.approx(stats.ttest_1samp(many, 0)[1], abs=0.02)


def test_strata_count_alike_whatever_their_unit():
    assert stratified_sign_flip_test([[1, 2, 3], [100, 200, 300]]) == 2 / 64
    small, large = [0.1, 0.2, -0.1], [0.3, 0.1, 0.2]
    rescaled = [100 * d for d in large]
    assert stratified_sign_flip_test([small, large]) == stratified_sign_flip_test([small, rescaled])


def test_holm_by_hand():
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
