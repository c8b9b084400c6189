"""Fits of laws: parameters that are known come back, with intervals that hold them as often as they say."""

import dataclasses

import numpy as np
import pytest

from flanx.laws import fit
from flanx.laws.cell import Cell, gather
from flanx.laws.form import FORMS
from tests import law_maker


@pytest.mark.parametrize("name", law_maker.TRUE)
def test_a_law_without_noise_is_recovered(name):
    cells = [
        dataclasses.replace(c, loss=law_maker.loss(c.at["size"], c.at["tasks"]))
        for c in law_maker.draw(name, np.random.default_rng(0), sd=0.0)
    ]
    found = fit.fit(FORMS[name], gather(cells))
    assert not found.problem
    assert dict(zip(found.names, found.values, strict=True)) == pytest.approx(law_maker.TRUE[name], rel=1e-3)
    beyond = [law_maker.cell(256e6, 5000)]
    assert found.predict(beyond)[0] == pytest.approx(law_maker.truth(name, 256e6, 5000), rel=1e-3)


def coverage(name: str, trials: int, draws: int, seeds: int) -> dict[str, float]:
    """How often the 95% interval of each parameter, and of a new cell's score, holds the truth."""
    random = np.random.default_rng(5)
    hits = dict.fromkeys([*law_maker.TRUE[name], "new cell"], 0)
    for trial in range(trials):
        found = fit.fit(FORMS[name], gather(law_maker.draw(name, random, seeds)))
        assert not found.problem
        drawn = fit.bootstrap(found, draws, trial)
        for parameter, value in law_maker.TRUE[name].items():
            low, high = drawn.interval(parameter)
            hits[parameter] += low <= value <= high
        new = law_maker.truth(name, 256e6, 1836) + random.standard_normal() / seeds**0.5
        low, high = fit.quantiles(drawn.measured([law_maker.cell(256e6, 1836)])[:, 0])
        hits["new cell"] += low <= new <= high
    return {parameter: count / trials for parameter, count in hits.items()}


@pytest.mark.parametrize("seeds", [3, 1])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    shares = coverage("log", 200, 200, seeds)  # the one form whose fit is a product of matrices: quick
    assert all(0.90 <= share <= 0.99 for share in shares.values()), shares


@pytest.mark.slow
@pytest.mark.parametrize("name", law_maker.TRUE)
def test_intervals_of_every_form_hold_the_truth_in_200_trials(name):
    shares = coverage(name, 200, 200, 3)
    of_new = shares.pop("new cell")
    assert all(0.90 <= share <= 0.98 for share in shares.values()), shares
    assert of_new >= 0.90


def test_what_cannot_be_fitted_says_why():
    random = np.random.default_rng(1)
    rising = law_maker.draw("log", random, sd=0.0)  # a logarithm in the number of tasks saturates nowhere near
    straight = [dataclasses.replace(c, values=(c.at["tasks"] / 100,)) for c in rising]
    assert "no saturation in sight" in fit.fit(FORMS["saturating"], gather(straight)).problem
    assert fit.fit(FORMS["two_step"], gather([dataclasses.replace(c, loss=None) for c in rising])).problem == (
        "not every cell has a validation loss"
    )
    one_count = [c for c in rising if c.at["tasks"] == 9]
    assert fit.fit(FORMS["saturating"], gather(one_count)).problem == "the number of tasks does not vary"
    assert fit.fit(FORMS["power"], gather(rising[:6])).problem == "6 cells for 5 parameters; it needs 7"
    losses = gather(rising, is_loss=True)
    assert fit.fit(FORMS["logistic"], losses).problem == "of scores in percent only"
    flat = [dataclasses.replace(c, values=(0.0,)) for c in rising]
    assert fit.fit(FORMS["logistic"], gather(flat)).problem.startswith("degenerate")
    assert fit.fit(FORMS["log"], gather(flat)).problem == ""
    assert fit.fit(FORMS["power"], gather(flat)).problem.startswith("degenerate")
    assert (
        fit.fit(FORMS["log"], gather([Cell("a", {"size": 1e6}, (1.0,))] * 9)).problem
        == "nothing varies between the cells"
    )


def test_a_law_that_misses_by_more_than_the_seeds_has_wider_intervals():
    random = np.random.default_rng(3)
    cells = law_maker.draw("logistic", random, sd=0.1)
    right, wrong = (fit.bootstrap(fit.fit(FORMS[name], gather(cells)), 100) for name in ("logistic", "log"))
    assert np.median(right.scale) < 2 < 10 < np.median(wrong.scale)


def test_the_same_seed_draws_the_same():
    found = fit.fit(FORMS["saturating"], gather(law_maker.draw("saturating", np.random.default_rng(0))))
    first, second = (fit.bootstrap(found, 20, seed=4).interval("T_half") for _ in range(2))
    assert first == second != fit.bootstrap(found, 20, seed=5).interval("T_half")
