"""The noise floor in reports: what seeds alone do, and the differences that are not more than that."""

import pytest
from scipy import stats

from flanx.sweep import difference_section, document, results, statistics
from flanx.sweep.state import State
from tests import sweep_maker
from tests.sweep_maker import entry

SCORES = {"small": (40.0, 42.0, 44.0), "alike": (41.0, 42.5, 45.0), "large": (60.0, 62.0, 64.0)}


@pytest.fixture
def swept(tmp_path):
    """Three sizes of three seeds: one is like the first, one is far above it."""
    axes = {"size": {name: [] for name in SCORES}, "seed": {seed: [] for seed in range(3)}}
    sweep = sweep_maker.make(tmp_path, axes=axes, compare={"size": "small"})
    for point in sweep.points():
        score = SCORES[point.labels["size"]][int(point.labels["seed"])]
        sweep_maker.leave(point.folder, {5: {"held_out": entry(score)}})
    outcomes = results.collect(sweep, State(tmp_path).statuses(sweep.points()))
    return sweep, statistics.mean_scores(sweep, outcomes), statistics.paired_differences(sweep, outcomes)


def test_the_floor_is_that_of_seeds_pooled_over_cells(swept):
    sweep, means, _ = swept
    found = difference_section.floors(sweep, means)["held_out"]
    groups = list(SCORES.values())
    sd = (sum(2 * stats.tvar(group) for group in groups) / 6) ** 0.5
    assert (found.sd, found.degrees, found.seeds) == (pytest.approx(sd), 6, 3)
    assert found.of(3, 3) == pytest.approx(stats.t.ppf(0.975, 6) * sd * (2 / 3) ** 0.5)
    [section] = difference_section.noise_sections({"held_out": found})
    assert section.tables[0].rows[0][3] == f"{found.of(3, 3):.1f} (3 seeds each)"


def test_a_difference_below_it_is_grey_and_says_so(swept):
    sweep, means, differences = swept
    found = difference_section.floors(sweep, means)
    [section] = difference_section.difference_sections(sweep, differences, found)
    page = document.page(document.Document("t", [], [section], sweep_maker.pathlib.Path()))
    assert '<td class="faint">alike</td>' in page and '<td class="faint">+0.8 (within noise)</td>' in page
    assert "<td>large</td>" in page and "<td>+20.0</td>" in page
    [plain] = difference_section.difference_sections(sweep, differences, {})
    assert "within noise" not in str(plain)


def test_single_runs_have_no_floor(swept):
    sweep, means, _ = swept
    single = {key: statistics.dataclasses.replace(each, values=each.values[:1]) for key, each in means.items()}
    assert difference_section.floors(sweep, single) == {}
    assert difference_section.noise_sections({}) == []
