"""Cells of laws: variables that vary, coordinates, and what a user writes for them."""

import math

import numpy as np
import pytest

from flanx.errors import UserError
from flanx.laws import cell
from flanx.laws.cell import Cell


def test_a_variable_that_others_explain_or_that_hardly_varies_is_left_out():
    cells = [
        Cell(f"{n}_{t}", {"size": n, "tasks": t, "cot": 0.1, "tokens": 2e6 * (1 + 0.01 * t / 1836)}, (n / 1e6 + t,))
        for n in (1e6, 4e6)
        for t in (0, 9, 1836)
    ]
    assert cell.gather(cells).variables == ("size", "tasks")
    twice = [Cell(c.name, {**c.at, "tokens": 20 * c.at["size"]}, c.values) for c in cells]
    assert cell.gather(twice).variables == ("size", "tasks")  # tokens are 20 a parameter: they say nothing of their own
    assert cell.gather(twice, over=("tokens", "tasks")).variables == ("tokens", "tasks")
    nested = [Cell(c.name, {**c.at, "cot": {0: 0.0, 9: 1.0, 1836: 0.03}[c.at["tasks"]]}, c.values) for c in cells]
    assert cell.gather(nested).variables == ("size", "tasks")  # the share follows from the tasks
    crossed = [Cell(f"{c.name}_{r}", {**c.at, "cot": r}, c.values) for c in cells for r in (0.0, 0.5)]
    assert cell.gather(crossed).variables == ("size", "tasks", "cot")
    unknown = [*cells, Cell("x", {"tasks": 5.0}, (1.0,))]
    assert cell.gather(unknown).variables == ("tasks",)
    assert len(cell.gather([*cells, Cell("not run", {"size": 1e6, "tasks": 5})]).cells) == 6
    with pytest.raises(UserError, match="'task' is not a variable of a law; did you mean 'tasks'"):
        cell.gather(cells, over=("task",))


def test_coordinates_are_logarithms_about_the_geometric_mean():
    data = cell.gather([Cell("a", {"size": 1e6, "tasks": 0}, (1.0,)), Cell("b", {"size": 4e6, "tasks": 99}, (2.0,))])
    inputs = data.inputs()
    assert data.variables == ("size",)  # with two cells the tasks say what the sizes say
    np.testing.assert_allclose(inputs.u[:, 0], [-math.log(2), math.log(2)])
    assert cell.coordinate("tasks", 99) == math.log(100)
    with pytest.raises(UserError, match="tasks=-1: a law needs 0 or more"):
        cell.coordinate("tasks", -1)
    with pytest.raises(UserError, match="c: no size is known"):
        data.inputs([Cell("c", {"tasks": 5.0})])


@pytest.mark.parametrize(
    ("text", "value"),
    [("1836", 1836), ("540B", 540e9), ("0.5", 0.5), ("1.2M", 1.2e6), ("1e9", 1e9), ("d96", None), ("1e", None)],
)
def test_numbers_are_read_as_labels_have_them(text, value):
    assert cell.number(text) == value


def test_a_target_is_read_or_refused_with_what_is_wrong():
    assert cell.parse_target("size=540B, tasks=1836") == {"size": 540e9, "tasks": 1836}
    for text, message in {
        "sizes=5": "did you mean 'size'",
        "size=big": "'big' is not a number",
        "": "no variable ''",
    }.items():
        with pytest.raises(UserError, match=message):
            cell.parse_target(text)
    assert [cell.quantity(v) for v in (1836, 540e9, 74_112, 0.5, 8e9, 0)] == [
        "1,836",
        "540B",
        "74.1k",
        "0.5",
        "8B",
        "0",
    ]
