"""Paired tests, correction and power, against scipy and statsmodels."""

import math

import numpy as np
import pytest
from scipy import stats

from flanx.evals import significance

PAIRS = [(0, 0), (0, 1), (1, 1), (3, 12), (12, 3), (7, 7), (0, 40), (150, 190)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_mcnemar_is_the_binomial_test_of_scipy(first, second):
    expected = stats.binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert significance.mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def smallest_difference(seeds: int, items: float, sd: float) -> float:
    """The least difference for which so many seeds are enough, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        needed = significance.seeds_needed(middle, items, sd)
        low, high = (low, middle) if needed is not None and needed <= seeds else (middle, high)
    return high


def test_mcnemar_and_holm_are_those_of_statsmodels():
    reason = "statsmodels is not among what flanx needs; pip install statsmodels"
    tables = pytest.importorskip("statsmodels.stats.contingency_tables", reason=reason)
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason=reason)
    power = pytest.importorskip("statsmodels.stats.power", reason=reason)
    for first, second in PAIRS[1:]:
        table = [[50, first], [second, 20]]
        assert significance.mcnemar(first, second) == pytest.approx(tables.mcnemar(table, exact=True).pvalue, rel=1e-9)
    random = np.random.default_rng(0)
    for count in (1, 2, 9, 40):
        values = (random.random(count) ** 3).tolist()
        assert significance.holm(values) == pytest.approx(multitest.multipletests(values, method="holm")[1].tolist())
    for seeds, sd in ((3, 2.0), (10, 4.0)):
        found = smallest_difference(seeds, math.inf, sd)
        exact = power.NormalIndPower().solve_power(nobs1=seeds, alpha=0.05, power=0.8, ratio=1.0)
        assert found / sd == pytest.approx(exact, rel=1e-3)


def test_holm_corrects_step_by_step():
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert significance.holm([]) == []
    assert significance.holm([0.6, 0.7]) == [1.0, 1.0]


def test_the_bootstrap_is_close_to_the_t_test_of_many_items():
    values = np.random.default_rng(1).normal(0.4, 3, 600)
    low, high, p = significance.paired_bootstrap({"one": values.tolist()})
    expected = stats.ttest_1samp(values, 0)
    interval = expected.confidence_interval()
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.03)
    assert p == pytest.approx(expected.pvalue, rel=0.3, abs=1e-3)


def test_the_bootstrap_is_of_the_mean_over_tasks():
    even, far = [0.0] * 990, [10.0, -10.0] * 5
    low, high, p = significance.paired_bootstrap({"many": even, "few": far})
    assert high == pytest.approx(0.5 * 1.96 * 10 / 10**0.5, abs=0.5) and low == pytest.approx(-high, abs=0.5)
    assert p > 0.8
    assert significance.paired_bootstrap({"all": [1.0] * 5}) == (1.0, 1.0, 1 / significance.DRAWS)
    assert significance.paired_bootstrap({"all": [0.0] * 5})[2] == 1.0


def test_power_says_how_many_seeds_and_items():
    for seeds, items in ((3, 400), (5, 2000)):
        points = smallest_difference(seeds, items, 2.5)
        assert significance.seeds_needed(points, items, 2.5) == seeds
        assert significance.items_needed(points * (1 + 1e-6), seeds, 2.5) == items  # it rounds up
    assert significance.seeds_needed(1, 250, 2.5) is None  # the items alone hide it
    assert significance.items_needed(1, 3, 2.5) is None
    random = np.random.default_rng(0)
    points = smallest_difference(5, math.inf, 2.0)
    drawn = random.normal(0, 2, (4000, 2, 5)) + np.array([0, points])[None, :, None]
    z = (drawn[:, 1].mean(-1) - drawn[:, 0].mean(-1)) / (2 * math.sqrt(2 / 5))
    assert (np.abs(z) > 1.96).mean() == pytest.approx(significance.POWER, abs=0.02)


def test_the_lines_of_a_dry_run():
    text = "\n".join(significance.power_lines(3, 2.0, "assumed"))
    assert "2 points (assumed;" in text and "no number of items suffices with 3 seeds" in text
    assert "10 points: 497 items with 3 seeds; seeds: 2 with 1,000 items" in text
