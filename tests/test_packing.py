"""Packing: nothing lost, nothing over the limit, always the same number of rows, little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanx.data.pipeline import packing
from flanx.errors import UserError

LIMITS = (64, 16)


def sample(n: int, seed: int = 0, limits: tuple[int, ...] = LIMITS) -> tuple[np.ndarray, np.ndarray]:
    """(sizes, source) of three kinds of examples: long inputs, long targets, both short."""
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 3, n)
    means = np.array([[0.5, 0.1], [0.1, 0.4], [0.1, 0.1]])[source][:, : len(limits)]
    sizes = np.ceil(rng.gamma(4, means / 4) * np.array(limits)).astype(np.int64)
    return np.clip(sizes, 1, limits), source


ENDLESS = np.full(3, 1 << 40)  # epochs of the three kinds


def check(sizes: np.ndarray, limits: tuple[int, ...], rows: packing.Rows) -> None:
    np.testing.assert_array_equal(np.sort(rows.order), np.arange(len(sizes)))
    assert rows.starts[0] == 0 and rows.starts[-1] == len(sizes)
    for first, last in zip(rows.starts, rows.starts[1:], strict=False):
        members = rows.order[first:last]
        assert (np.diff(members) > 0).all()  # as drawn
        assert (sizes[members].sum(axis=0) <= limits).all()


@pytest.mark.parametrize("rule", sorted(packing.RULES))
@given(n=st.integers(1, 300), window=st.integers(1, 80), seed=st.integers(0, 2**32), sides=st.integers(1, 2))
@settings(deadline=None, max_examples=40)
def test_rules_keep_the_limits_and_use_consecutive_rows(rule, n, window, seed, sides):
    sizes, _ = sample(n, seed, LIMITS[:sides])
    row, used = packing.RULES[rule](sizes, LIMITS[:sides], window)
    for w, count in enumerate(used):
        here = slice(w * window, (w + 1) * window)
        np.testing.assert_array_equal(np.unique(row[here]), np.arange(count))
        for r in range(count):
            assert (sizes[here][row[here] == r].sum(axis=0) <= LIMITS[:sides]).all()


@given(n=st.integers(40, 400), spare=st.integers(0, 60), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_a_chunk_fills_exactly_its_rows(n, spare, seed):
    sizes, _ = sample(n, seed)
    row, used = packing.largest_first(sizes, LIMITS)
    several = int((np.bincount(row) > 1).sum()) if len(used) == 1 else 0  # rows that can be divided
    recipe = packing.Recipe("largest_first", int(used.sum()) + min(spare, several))
    rows = packing.pack(sizes, LIMITS, recipe, seed)
    assert len(rows.starts) == recipe.rows + 1
    check(sizes, LIMITS, rows)
    assert (np.diff(rows.starts) > 0).all()


def test_rows_of_single_examples_leave_the_spare_rows_empty():
    sizes = np.full((50, 2), LIMITS)
    rows = packing.pack(sizes, LIMITS, packing.Recipe("largest_first", 53), 0)
    check(sizes, LIMITS, rows)
    assert np.count_nonzero(np.diff(rows.starts) == 0) == 3


def test_other_chunks_of_the_same_mixture_fit_the_rows_of_the_first():
    recipe, _ = packing.plan(*sample(20_000), ENDLESS, LIMITS)
    for seed in range(1, 6):
        sizes, _ = sample(20_000, seed)
        rows = packing.pack(sizes, LIMITS, recipe, seed)
        assert len(rows.starts) == recipe.rows + 1


def test_a_source_that_comes_round_whole_needs_less_reserve():
    """Whole epochs have no variance; only the broken ones at both ends of a chunk have."""
    sizes, source = sample(20_000)
    rows = [packing.plan(sizes, source, np.full(3, n), LIMITS)[0].rows for n in (1, 100, 1 << 40)]
    needed = int(packing.best_match(sizes, LIMITS)[1].sum())
    assert needed < rows[0] < rows[1] < rows[2] < 1.02 * needed


def test_a_chunk_that_needs_too_many_rows_is_packed_better_and_then_refused():
    sizes, _ = sample(20_000)
    needed = int(packing.largest_first(sizes, LIMITS)[1].sum())
    check(sizes, LIMITS, packing.pack(sizes, LIMITS, packing.Recipe("largest_first", needed - 1), 0))
    with pytest.raises(UserError, match=r"needs .* rows .* were reserved"):
        packing.pack(sizes, LIMITS, packing.Recipe("largest_first", needed // 2), 0)


def test_the_rule_is_chosen_by_what_fills_the_rows():
    sizes, source = sample(packing.SAMPLE * packing.WINDOW)
    assert packing.plan(sizes, source, ENDLESS, LIMITS)[0].rule == "best_match"
    assert packing.plan(sizes[:, 1:], source, ENDLESS, LIMITS[1:])[0].rule == "largest_first"


@pytest.mark.parametrize("sides", [1, 2])
def test_padding_is_below_three_percent_of_the_side_that_fills_first(sides):
    sizes, source = sample(1 << 17, 0, (512, 128)[:sides])
    recipe, fit = packing.plan(sizes, source, ENDLESS, (512, 128)[:sides])
    rows = packing.pack(sizes, (512, 128)[:sides], recipe, 1, fit)
    filled = np.add.reduceat(sizes[rows.order], rows.starts[:-1], axis=0) / (512, 128)[:sides]
    assert filled.max(axis=1).mean() > 0.97


def test_rows_come_in_seeded_random_order():
    sizes, _ = sample(2000)
    recipe = packing.Recipe("largest_first", int(packing.largest_first(sizes, LIMITS)[1].sum()))
    a, b, c = (packing.pack(sizes, LIMITS, recipe, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.order, b.order)
    assert not np.array_equal(a.order, c.order)
    largest = np.array([sizes[a.order[x:y]].max() for x, y in zip(a.starts, a.starts[1:], strict=False)])
    halves = largest[: len(largest) // 2].mean(), largest[len(largest) // 2 :].mean()
    assert abs(halves[0] - halves[1]) < 0.1 * largest.mean()  # large examples do not come first
