"""The choice of a form: by what it predicts of held-out cells; honest of errors to come."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from flanx.laws import choice, fit, law
from flanx.laws.cell import gather
from tests import law_maker


def trials(name: str, count: int) -> tuple[Counter, list[float], list[bool]]:
    """(forms chosen, error of a new largest cell over the error on held-out ones, whether its interval held it)."""
    random, chosen = np.random.default_rng(7), Counter()
    ratios, inside = [], []
    for trial in range(count):
        found = choice.choose(gather(law_maker.draw(name, random)))
        chosen[found.chosen] += 1
        new = law_maker.truth(name, 256e6, 1836) + random.standard_normal() / 3**0.5
        drawn = fit.bootstrap(found.fit, 100, trial)
        [predicted] = choice.predict(found, drawn, [law_maker.cell(256e6, 1836)], choice.widening(found, trial))
        ratios.append(abs(predicted.value - new) / found.check.error)
        inside.append(predicted.low <= new <= predicted.high)
    return chosen, ratios, inside


def test_the_form_that_was_drawn_is_chosen():
    chosen, ratios, inside = trials("logistic", 3)
    assert chosen["logistic"] == 3 and all(inside) and max(ratios) < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", law_maker.TRUE)
def test_the_right_form_is_chosen_in_most_trials_and_its_error_is_honest(name):
    chosen, ratios, inside = trials(name, 30)
    assert chosen[name] > 15, chosen
    assert sum(inside) >= 26
    assert 0.3 < float(np.median(ratios)) < 2.0


def test_a_wrong_form_alone_knows_that_it_is_wrong():
    data = gather(law_maker.draw("logistic", np.random.default_rng(2)))
    wrong, right = choice.choose(data, ["log"]), choice.choose(data)
    assert right.chosen == "logistic"
    assert wrong.check.error > 3 * right.check.error
    new = [law_maker.cell(256e6, 1836)]
    widths = [
        each.high - each.low
        for found in (wrong, right)
        for each in choice.predict(found, fit.bootstrap(found.fit, 100), new, choice.widening(found))
    ]
    assert widths[0] > 2 * widths[1]


def test_intervals_grow_with_the_errors_on_held_out_cells():
    """A bend that shows only at the end: below it the law fits to the noise, and its own intervals are narrow."""
    cells = [
        law_maker.cell(
            size, tasks, (40 + 5 * np.log(size / 1e6) - 8 * (size > 5e7) + wobble for wobble in (-0.2, 0, 0.2))
        )
        for size in law_maker.SIZES
        for tasks in (9, 89)
    ]
    assert choice.widening(choice.choose(gather(cells), ["log"])) > 3
    straight = [dataclasses.replace(c, values=tuple(v + 8 * (c.at["size"] > 5e7) for v in c.values)) for c in cells]
    assert choice.widening(choice.choose(gather(straight), ["log"])) == 1.0


def test_a_law_that_predicts_no_better_than_the_nearest_cell_says_so():
    random = np.random.default_rng(3)
    flat_at_last = [
        law_maker.cell(n, t, ((40, 50, 60, 60)[i] + 0.1 * random.standard_normal(2)).tolist())
        for i, n in enumerate(law_maker.SIZES)
        for t in (9, 89)
    ]
    found = law.make("score", gather(flat_at_last), ["log"], 20)
    assert found.choice.check.error > found.choice.nearest.error
    assert law.chosen_text(found) == "log (no better than no law)" and not found.is_useful
    assert law.undrawn_text(found).startswith("no figure, as on held-out cells the law (log) is ")
    steady = law.make("score", gather(law_maker.draw("log", random)), ["log"], 20)
    assert law.chosen_text(steady) == "log" and steady.is_useful


def held_out(data) -> int:
    """The place of the corner."""
    return [c.name for c in data.cells].index("6.4e+07_1836")


def test_a_choice_is_by_the_largest_cells_never_by_the_fit():
    data = gather(law_maker.draw("log", np.random.default_rng(0)))
    held = {
        fold.name: {c.name for c, out in zip(data.cells, fold.held, strict=True) if out} for fold in choice.folds(data)
    }
    assert held == {
        "size 64M": {f"6.4e+07_{t}" for t in law_maker.TASKS},
        "tasks 1,836": {f"{n:g}_1836" for n in law_maker.SIZES},
        "corner": {"6.4e+07_1836"},
    }
    small = [c for c in data.cells if c.name != "6.4e+07_1836"]
    terms = [[1.0, np.log(c.at["size"]), np.log1p(c.at["tasks"])] for c in (*small, law_maker.cell(64e6, 1836))]
    law = np.linalg.lstsq(np.array(terms[:-1]), np.array([c.mean for c in small]), rcond=None)[0]
    missed = choice.check(fit.FORMS["log"], data).errors["corner"]
    assert missed == pytest.approx([data.y[held_out(data)] - np.array(terms[-1]) @ law], rel=1e-9)
    found = choice.choose(data)
    errors = {name: check.error for name, check in found.checks.items() if not found.fits[name].problem}
    noise = 3**-0.5 / len(data.cells[0].values) ** 0.5  # of a mean of errors, less than of one
    assert errors[found.chosen] <= choice.TIE * min(errors.values()) + noise
    assert found.nearest.error > found.check.error


def test_with_two_levels_of_each_only_the_corner_is_held_out():
    cells = [
        c for c in law_maker.draw("log", np.random.default_rng(0)) if c.at["size"] < 5e6 and c.at["tasks"] in (9, 89)
    ]
    assert [fold.name for fold in choice.folds(gather(cells))] == ["corner"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda cells: cells[:3], "3 cells have a score"),
        (lambda cells: [], "0 cells have a score"),
        (lambda cells: [dataclasses.replace(c, values=(0.0,)) for c in cells], "every cell scores 0"),
        (lambda cells: [dataclasses.replace(c, values=(40.0, 40.0)) for c in cells], "every cell scores 40"),
        (lambda cells: [dataclasses.replace(c, at={"size": 1e6, "tasks": 9}) for c in cells], "one size, one number"),
        (lambda cells: [dataclasses.replace(c, values=(float("nan"),)) for c in cells], "not a finite number"),
        (
            lambda cells: [dataclasses.replace(c, values=(40 + i % 3, 45 - i % 2)) for i, c in enumerate(cells)],
            "within the noise of the seeds",
        ),
    ],
)
def test_where_nothing_can_be_fitted_a_sentence_says_so(change, sentence):
    found = choice.choose(gather(change(law_maker.draw("log", np.random.default_rng(0)))))
    assert sentence in found.reason and found.chosen == ""


def test_predictions_end_where_scores_end():
    cells = [
        law_maker.cell(n, t, [3 + 4 * np.log(n / 1e6) + w for w in (-1, 1)]) for n in law_maker.SIZES for t in (9, 89)
    ]
    wanted = [law_maker.cell(1e3, 9), law_maker.cell(1e40, 9)]
    found = choice.choose(gather(cells), ["log"])
    low, high = choice.predict(found, fit.bootstrap(found.fit, 50), wanted, 1.0)
    assert (low.value, low.low, high.value, high.high) == (0, 0, 100, 100)
    rescaled = choice.choose(gather(cells, ends=(-np.inf, 100.0)), ["log"])
    assert choice.predict(rescaled, fit.bootstrap(rescaled.fit, 50), wanted, 1.0)[0].low < -10


def test_errors_are_listed_by_how_far_they_reached():
    data = gather(law_maker.draw("multiplicative", np.random.default_rng(0), sd=0.0))
    found = choice.reaches(fit.FORMS["log"], data)
    sizes = [each for each in found if each.variable == "size"]
    assert {each.factor for each in sizes} == {4.0, 16.0}
    near, far = (np.mean([each.error for each in sizes if each.factor == factor]) for factor in (4, 16))
    assert far > near > 0
