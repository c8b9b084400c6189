"""Bradley-Terry ratings: the equations that they solve, what they recover, and when there are none."""

import numpy as np
import pytest

from flanx.compare import rating

STRENGTHS = np.log([4.0, 2.0, 1.0])


def drawn(prompts: int, seed: int = 0) -> np.ndarray:
    """f64[P, 3, 3]: one comparison of every two candidates on each prompt, by known strengths."""
    random, wins = np.random.default_rng(seed), np.zeros((prompts, 3, 3))
    s = np.exp(STRENGTHS)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        won = random.random(prompts) < s[i] / (s[i] + s[j])
        wins[:, i, j], wins[:, j, i] = won, ~won
    return wins


def test_expected_wins_are_the_wins_that_were_counted():
    wins = np.array([[0, 7, 9.5], [3, 0, 6], [0.5, 4, 0]])
    s = np.exp(rating.strengths(wins))
    with_prior = wins + 0.5 * (1 - np.eye(3))
    games = with_prior + with_prior.T
    expected = (games * s[:, None] / (s[:, None] + s)).sum(axis=1)
    np.testing.assert_allclose(expected, with_prior.sum(axis=1), rtol=1e-6)
    assert abs(np.log(s).sum()) < 1e-9


def test_a_logistic_regression_finds_the_same():
    api = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed")
    wins = np.array([[0, 7, 9], [3, 0, 6], [1, 4, 0]])
    rows, won = [], []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        sides = np.eye(3)[i] - np.eye(3)[j]
        rows.append(sides[1:])  # the first is the reference
        won.append([wins[i, j] + 0.5, wins[j, i] + 0.5])
    fitted = api.GLM(np.array(won), np.array(rows), family=api.families.Binomial()).fit()
    ours = rating.strengths(wins)
    np.testing.assert_allclose(ours[1:] - ours[0], fitted.params, atol=1e-6)


def test_many_comparisons_recover_the_strengths_within_their_intervals():
    found = rating.ratings(drawn(600), draws=200)
    truth = rating.MEAN + rating.SCALE * (STRENGTHS - STRENGTHS.mean()) / np.log(10)
    for each, value in zip(found, truth, strict=True):
        assert each.low < value < each.high and each.low < each.points < each.high
        assert each.high - each.low < 80
    assert rating.ratings(drawn(600), draws=200) == found
    wide = rating.ratings(drawn(30), draws=200)[0]
    assert wide.high - wide.low > 2 * (found[0].high - found[0].low)


def test_odds_of_ten_to_one_are_400_points():
    wins = np.zeros((3, 3))
    wins[0, 1], wins[1, 0] = 9999.5, 999.5  # and half a tie each
    wins[1, 2] = wins[2, 1] = 9999
    ours = rating.strengths(wins) * rating.SCALE / np.log(10)
    assert abs(ours[0] - ours[1] - 400) < 0.5 and abs(ours[1] - ours[2]) < 0.5


def test_one_that_never_lost_has_a_rating_and_separate_groups_have_none():
    wins = np.array([[0, 5.0, 5], [0, 0, 3], [0, 2, 0]])
    assert np.isfinite(rating.strengths(wins)).all()
    apart = np.zeros((4, 4))
    apart[0, 1] = apart[2, 3] = 1
    with pytest.raises(ValueError, match="never compared"):
        rating.strengths(apart)
