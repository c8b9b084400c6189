"""Which sample of an open-ended answer is kept."""

import pytest

from flanx.evals import sample_choice
from flanx.evals.generations import Generation


@pytest.mark.parametrize(
    "scores, kept",
    [
        ([-20.0, -3.0, -25.0, -18.0, -30.0], 3),  # the paper's example: a median of -20 drops -3
        ([-20.0, -10.0, -25.0, -18.0, -30.0], 1),  # half of it is no better than half of it
        ([-20.0, -9.9, -25.0, -18.0, -30.0], 3),
        ([-4.0, -4.0, -4.0], 0),
        ([-1.0], 0),
        ([0.0, 0.0, -5.0], 0),  # a median of nothing drops nothing
        ([-2.0, -100.0], 1),  # the median lies between them
        ([-100.0, -90.0, -80.0, -3.0, -2.0], 2),
    ],
)
def test_the_best_is_kept_that_is_not_better_than_half_the_median(scores, kept):
    assert sample_choice.choose(scores) == kept


def row(scores):
    return Generation("i", "t", "p", [""], "exact", "en", 0, False, 1, 0, 0, 0, outputs=["a"] * 3, option_scores=scores)


def test_a_sample_without_a_finite_log_probability_is_never_kept():
    assert sample_choice.kept(row([None, -9.0, -8.0])) == 2
    assert sample_choice.kept(row([None, None, None])) == sample_choice.kept(row([])) == 0


def test_repetitions_are_counted():
    assert sample_choice.dropped(row([-20.0, -3.0, -25.0])) == 1
    assert sample_choice.dropped(row([None, -3.0, -25.0])) == 1 and sample_choice.dropped(row([])) == 0
