"""The specification of figures: what it refuses, and what becomes of axes that it does not name."""

import pytest

from flanx.errors import UserError
from flanx.sweep import figure_specs

AXES = {"size": ["8B", "62B"], "tasks": ["0", "9"], "prompt": ["plain", "trigger"]}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"x": "size", "seires": "tasks"}, "did you mean 'series'"),
        ({"series": "tasks"}, "has no 'x'"),
        ({"x": "sizes"}, "did you mean 'size'"),
        ({"x": "size", "scores": ["mmlo"]}, "did you mean 'mmlu'"),
        ({"x": "size", "kind": "pie"}, "neither 'line' nor 'bar'"),
        ({"x": "size", "where": {"tasks": [8]}}, "has no '8'"),
    ],
)
def test_a_wrong_figure_is_named(table, said):
    with pytest.raises(UserError, match=said):
        figure_specs.figure_specs({"one": table}, AXES, ["mmlu", "bbh"])


def test_a_figure_whose_name_is_no_file_is_named():
    with pytest.raises(UserError, match="its name is the name of its files"):
        figure_specs.figure_specs({"CoT / direct": {"x": "size"}}, AXES, ["mmlu"])


def test_axes_that_a_figure_does_not_name_become_series_and_are_never_mixed():
    (found,) = figure_specs.figure_specs({"one": {"x": "size", "series": "tasks"}}, AXES, ["mmlu", "bbh"])
    assert found.series == ("tasks", "prompt") and found.panels == "score"
    (found,) = figure_specs.figure_specs(
        {"one": {"x": "size", "panels": "tasks", "where": {"prompt": ["plain"]}}}, AXES, ["mmlu"]
    )
    assert found.series == () and found.panels == "tasks"
    assert [f.name for f in figure_specs.figure_specs({}, AXES, ["mmlu"])] == ["by_tasks", "by_size"]
    (alone,) = figure_specs.figure_specs({}, {}, ["mmlu"])
    assert alone.x == "score"
