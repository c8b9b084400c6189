"""The paper's own averages come out of its per-task tables; intervals, means, F1 of passages."""

import collections
import csv
import importlib.resources

import numpy as np
import pytest

from flanx.errors import UserError
from flanx.evals import metrics
from flanx.evals.families import bbh, tydiqa

Key = tuple[str, str]  # model, benchmark


def published() -> tuple[dict[Key, float], dict[Key, dict[str, float]]]:
    """Table 5's figures, and the per-task values of tables 17 to 21."""
    whole: dict[Key, float] = {}
    tasks: dict[Key, dict[str, float]] = collections.defaultdict(dict)
    text = importlib.resources.files("flanx.evals").joinpath("published.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        key = (row["model"], row["benchmark"])
        if row["table"] == "5":
            whole[key] = float(row["value"])
        elif row["table"] in ("17-19", "20", "21") and row["task"]:
            tasks[key][row["task"]] = float(row["value"])
    return whole, tasks


# Where the paper disagrees with itself by more than rounding: (model, benchmark) -> (printed, mean of its own table).
SLIPS: dict[Key, tuple[float, float]] = {}


def test_published_averages_are_the_means_of_the_published_tasks() -> None:
    whole, tasks = published()
    assert len(tasks) == 12 + 15 + 15  # BBH of six models in two modes; TyDiQA and MGSM of fifteen
    off = {}
    for key, values in tasks.items():
        mean = metrics.mean(list(values.values()))
        if abs(mean - whole[key]) > 0.1:
            off[key] = (whole[key], round(mean, 2))
    assert off == SLIPS


@pytest.mark.parametrize(
    "model", ["Flan-T5-Small", "Flan-T5-Base", "Flan-T5-Large", "Flan-T5-XL", "Flan-T5-XXL", "T5-XXL"]
)
def test_published_normalized_averages_come_out(model: str) -> None:
    whole, tasks = published()
    scores = {name: whole[model, name] for name in metrics.HEADLINE}
    per_task = {name: tasks[model, name] for name in ("bbh_direct", "bbh_cot")}
    assert metrics.normalized_average(scores, per_task) == pytest.approx(whole[model, "normalized_average"], abs=0.1)


def test_bounds_cover_every_task_and_say_where_they_come_from() -> None:
    assert set(metrics.BBH_BOUNDS) == set(bbh.KIND)
    assert len(bbh.NLP) == 12 and len(bbh.ALG) == 15
    assert all(source for _, source in [*metrics.BBH_BOUNDS.values(), *metrics.BOUNDS.values()])
    assert len(tydiqa.LANGUAGES) == 8


def test_normalized_average_refuses_what_is_not_whole() -> None:
    scores = dict.fromkeys(metrics.HEADLINE, 50.0)
    with pytest.raises(UserError, match="all 27 sub-tasks"):
        metrics.normalized_average(scores, {"bbh_direct": {"navigate": 50.0}})
    with pytest.raises(UserError, match="missing: mgsm_cot"):
        metrics.normalized_average({k: v for k, v in scores.items() if k != "mgsm_cot"}, {})


def test_interval_holds_the_mean_and_shrinks_with_more_items() -> None:
    few = {"a": [1.0, 0.0] * 20, "b": [1.0] * 40}
    many = {"a": [1.0, 0.0] * 2000, "b": [1.0] * 4000}
    low, high = metrics.interval(few, "seed")
    assert low < 75 < high
    assert metrics.interval(few, "seed") == (low, high)
    narrow = metrics.interval(many, "seed")
    assert narrow[1] - narrow[0] < (high - low) / 5
    # The standard error of the mean of the two tasks: half of sqrt(0.25 / 40), in per cent.
    assert high - low == pytest.approx(2 * 1.96 * 100 * 0.5 * np.sqrt(0.25 / 40), rel=0.2)


def test_interval_depends_neither_on_the_order_of_tasks_and_items_nor_on_the_other_tasks() -> None:
    rng = np.random.default_rng(0)
    tasks = {name: rng.random(size).tolist() for name, size in (("a", 60), ("b", 30), ("c", 4))}
    wanted = metrics.interval(tasks, "seed")
    assert metrics.interval({task: tasks[task][::-1] for task in "cab"}, "seed") == wanted
    assert metrics.interval(tasks, "another seed") != wanted
    # tasks are resampled independently of each other: of two that have the same scores the mean varies less than one
    low, high = metrics.interval({"x": tasks["a"], "y": tasks["a"]}, "seed")
    one_low, one_high = metrics.interval({"x": tasks["a"]}, "seed")
    assert high - low < 0.85 * (one_high - one_low)


def test_mean_is_the_same_in_any_order() -> None:
    values = [0.1] * 10 + [1e16, 1.0, -1e16]
    assert metrics.mean(values) == metrics.mean(values[::-1]) == metrics.mean(sorted(values)) == 2.0 / 13
    assert metrics.mean([]) == 0.0


def test_passages_are_compared_in_normal_form() -> None:
    assert metrics.passage_form("“টোকিও।”", "bn") == metrics.passage_form("টোকিও", "bn")
    assert metrics.passage_form("The  Bank.", "en") == "bank" and metrics.passage_form("The Bank.", "fi") == "the bank"
    assert metrics.passage_f1("joessa ja meressä", "joessa", "fi") == 0.5
