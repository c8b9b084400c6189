"""The noise floor of scores: pooled over recipes, and what it makes of a difference."""

import numpy as np
import pytest
from scipy import stats

from flanx.laws import noise
from flanx.laws.cell import Cell


def test_the_seeds_deviation_is_pooled_and_cells_at_the_ends_are_left_out():
    assert noise.pooled([(1.0, 3.0), (10.0, 12.0, 14.0)]) == (pytest.approx((10 / 3) ** 0.5), 3)
    assert noise.pooled([(1.0, 3.0), (0.0, 0.0, 0.0), (100.0, 100.0)]) == (pytest.approx(2**0.5), 1)
    assert noise.pooled([(5.0, 5.0)]) == (0.0, 1)  # that two seeds agree in mid-range does say something
    assert noise.pooled([(5.0,), (0.0, 0.0)]) == (None, 0)


def test_the_floor_is_that_of_the_t_test():
    random = np.random.default_rng(0)
    a, b = random.normal(0, 2, 4), random.normal(0, 2, 3)
    sd, degrees = noise.pooled([a.tolist(), b.tolist()])
    found = noise.floor(sd, degrees, 4, 3)
    shifted = b + a.mean() - b.mean()
    assert (
        stats.ttest_ind(a, shifted + 1.0001 * found).pvalue < 0.05 < stats.ttest_ind(a, shifted + 0.9999 * found).pvalue
    )


def test_the_noise_of_a_cell_is_of_its_seeds_and_its_items():
    cells = [Cell("a", {}, (10.0, 12.0), 3.0), Cell("b", {}, (20.0, 22.0, 24.0, 22.0), 0.0)]
    found = noise.noise(cells)
    variance = (2 + 8) / 4
    assert found.seeds == pytest.approx(variance**0.5)
    assert found.sd.tolist() == pytest.approx([(variance / 2 + 9) ** 0.5, (variance / 4) ** 0.5])
    assert not noise.noise([Cell("a", {}, (1.0,)), Cell("b", {}, (2.0,))]).is_known
