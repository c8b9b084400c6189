"""Intervals of Student's t as scipy has them, means over seeds, paired differences, all without running anything."""

import pathlib

import numpy as np
import pytest
from scipy import stats

from flanx.errors import UserError
from flanx.sweep import results, statistics
from flanx.sweep.state import State
from tests import sweep_maker


@pytest.mark.parametrize("count", [2, 3, 12, 40])
def test_student_interval_is_scipys(count: int) -> None:
    values = np.random.default_rng(count).normal(40.0, 3.0, count)
    wanted = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert statistics.student_interval(values.tolist()) == pytest.approx(wanted)
    assert statistics.student_interval([1.0]) is None


def test_mean_scores_and_paired_differences_over_seeds(tmp_path: pathlib.Path) -> None:
    axes = {"size": {"d1": [], "d2": []}, "seed": {0: [], 1: []}}
    sweep = sweep_maker.make(tmp_path, axes=axes, scores={"s": "suite_rule"}, compare={"size": "d1"})
    scores = {"d1_0": 10.0, "d1_1": 14.0, "d2_0": 13.0, "d2_1": 18.0}
    for point in sweep.points():
        sweep_maker.leave(point.folder, {3: {"suite_rule": sweep_maker.entry(scores[point.name])}})
    outcomes = results.collect(sweep, State(tmp_path).statuses(sweep.points()))
    means = statistics.mean_scores(sweep, outcomes)
    assert {key[0]: mean.mean for key, mean in means.items()} == {("d1",): 12.0, ("d2",): 15.5}
    (difference,) = statistics.paired_differences(sweep, outcomes)
    assert (difference.against, difference.values, difference.mean) == ("size d1", (3.0, 4.0), 3.5)
    mean = means[("d2",), "s", "last"]
    assert mean.seeds == statistics.student_interval([13.0, 18.0]) and mean.items == (13.5, 17.5)
    wrong = sweep_maker.make(tmp_path, axes=axes, compare={"size": "d3"})
    with pytest.raises(UserError, match="axis 'size' has no 'd3'"):
        statistics.check_compare(wrong)
