"""The results of a sweep: the step that is chosen for each point."""

from flanx.sweep import results
from tests import sweep_maker
from tests.sweep_maker import entry


def test_points_of_one_model_share_the_step_that_is_best_for_their_mean(tmp_path):
    sweep = sweep_maker.make(tmp_path, choose_by=["suite_rule"], choose_per=["size"])
    curves = {"d1_2": {5: 10, 10: 20, 15: 90}, "d1_8": {5: 30, 10: 25}, "d2_2": {0: 3}, "d2_8": {5: 1, 10: 2}}
    for point in sweep.points():
        made = {step: {"suite_rule": entry(score)} for step, score in curves[point.name].items()}
        sweep_maker.leave(point.folder, made)
    # only one has step 15; 10 has the better mean; a parent that is only evaluated is a group of its own
    assert results.choices(sweep, sweep.points()) == {"d1_2": 10, "d1_8": 10, "d2_2": 0, "d2_8": 10}
