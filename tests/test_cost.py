"""The cost of a sweep's points: FLOPs, assumed chip-hours without a topology, estimates with one."""

import dataclasses

import pytest

from flanx.plan import hardware
from flanx.sweep import cost
from tests.plan_case import RUN


def test_without_a_topology_the_utilisation_is_assumed() -> None:
    seconds, layout = cost.step_time(RUN, None)
    assert seconds == pytest.approx(RUN.flops_per_step / (0.4 * 275e12)) and layout == ""
    assert "40% of their 275 TFLOP/s, which is an assumption" in cost.basis(None)


def test_with_a_topology_it_is_the_estimate_of_the_plan() -> None:
    seconds, layout = cost.step_time(RUN, hardware.parse("v5e:2x2"))
    assert seconds > 0 and layout.startswith("data ")
    uneven = dataclasses.replace(RUN, batch_size=7)
    assert cost.step_time(uneven, hardware.parse("v5e:16x16"))[0] == 0.0


def test_hours_are_of_all_steps() -> None:
    assert cost.PointCost(1, 1800, 1.0, 2.0, "", 4).hours == 1.0
