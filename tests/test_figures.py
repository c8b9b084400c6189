"""The positions of labels along x."""

import pytest

from flanx.sweep import figures
from flanx.sweep.figure_specs import FigureSpec
from flanx.sweep.statistics import MeanScore


def test_positions_follow_numbers_parameters_or_order():
    assert figures.x_positions(["0", "9"], {}) == ({"0": 0.0, "9": 9.0}, True)
    assert figures.x_positions(["80M", "11B"], {}) == ({"80M": 8e7, "11B": 1.1e10}, True)
    assert figures.x_positions(["a", "b"], {"a": 10, "b": 20}) == ({"a": 10.0, "b": 20.0}, True)
    assert figures.x_positions(["x", "9"], {}) == ({"x": 0.0, "9": 1.0}, False)


def mean(score, low, high, **more):
    """A score of one run."""
    return MeanScore({}, "s", "last", score, (low, high), None, False, (), (), {}, None, **more)


def test_points_that_would_hide_one_another_are_drawn_side_by_side():
    apart = {"a": [(0.0, 10.0), (9.0, 50.0)], "b": [(0.0, 20.0), (9.0, 60.0)]}
    assert figures.side_by_side(apart) == {"a": 0.0, "b": 0.0}
    assert figures.side_by_side(apart | {"c": [(9.0, 60.5)]}) == {"a": -5.0, "b": 0.0, "c": 5.0}
    missing = {name: [(0.0, None)] for name in "ab"}  # their crosses are at the foot
    assert figures.side_by_side(missing) == {"a": -2.5, "b": 2.5}
    assert figures.side_by_side({"a": [(0.0, None)], "b": [(0.0, 5.0)]}) == {"a": 0.0, "b": 0.0}
    zeros = figures.side_by_side({name: [(0.0, 0.0)] for name in "abcdefghi"})
    assert list(zeros.values()) == sorted(zeros.values()) and (zeros["a"], zeros["i"]) == (-8.0, 8.0)
    assert figures.side_by_side({}) == {}


def test_equal_scores_have_places_of_their_own_and_bars_end_where_scores_do(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    kept = []
    monkeypatch.setattr(figures, "save", lambda canvas, path: kept.append(seen(canvas)))

    def seen(canvas):
        """((x, y) in pixels of every marker, the ends of the bars, the limits of y)."""
        canvas.canvas.draw()
        (spot,) = canvas.axes
        marked = [line for line in spot.lines if line.get_marker() in figures.MARKERS]
        bars = [[float(y) for _, y in bar] for each in spot.collections for bar in each.get_segments()]
        return [tuple(line.get_transform().transform(line.get_xydata())[0]) for line in marked], bars, spot.get_ylim()

    scores = {"a": mean(3.0, -9.0, 80.0, ends=(0.0, 100.0)), "b": mean(3.0, 1.0, 130.0, ends=(0.0, 100.0))}
    panel = figures.Panel("", {name: {"x": each} for name, each in scores.items()}, {"x": 0.0}, False)
    figures.draw(FigureSpec("f", "x", ("s",), None, ("s",)), [panel], "t", tmp_path / "f.svg")
    ((first, second), bars, (low, high)) = kept[0]
    assert bars == [[0.0, 80.0], [1.0, 100.0]]
    assert second[0] - first[0] == pytest.approx(5 / 72 * 100) and first[1] == second[1]
    assert low == 0 and 100 <= high < 110  # the bar of 80 and that of 100 are inside
    assert scores["a"].bar == (0.0, 80.0) and scores["a"].interval == (-9.0, 80.0)
    assert mean(-5.0, -9.0, 1.0).bar == (-9.0, 1.0)  # rescaled from chance
