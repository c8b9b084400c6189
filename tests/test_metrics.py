"""The paper's own averages come out of its per-task tables; intervals, means, F1 of passages."""

import collections
import csv
import importlib.resources

import numpy as np
import pytest
import scipy.stats

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
    (low, high), narrow = whole(few), whole(many)
    assert low < 75 < high
    assert narrow[1] - narrow[0] < (high - low) / 5
    # The standard error of the mean of the two tasks: half of sqrt(0.25 / 40), in per cent.
    assert high - low == pytest.approx(2 * 1.96 * 100 * 0.5 * np.sqrt(0.25 / 40), rel=0.1)
    # tasks are independent of each other: of two that have the same scores the mean varies less than one
    assert high - low < 0.85 * (whole({"a": few["a"]})[1] - whole({"a": few["a"]})[0])


def whole(tasks: dict[str, list[float]]) -> tuple[float, float]:
    found = metrics.interval(tasks)
    assert found is not None
    return found


def test_interval_is_the_same_in_any_order() -> None:
    rng = np.random.default_rng(0)
    tasks = {name: rng.random(size).tolist() for name, size in (("a", 60), ("b", 30), ("c", 4))}
    assert metrics.interval({task: tasks[task][::-1] for task in "cab"}) == metrics.interval(tasks)


def test_an_interval_at_the_end_of_the_scale_ends_there() -> None:
    for items in range(10, 400):  # of 320 zeros the low end was rounded to 1e-16
        low, high = metrics.interval({"a": [0.0] * items}), metrics.interval({"a": [1.0] * items})
        assert low is not None and high is not None and (low[0], high[1]) == (0.0, 100.0)


def test_interval_of_one_task_is_wilsons_and_never_has_no_width() -> None:
    for right, items in ((0, 4), (1, 4), (4, 4), (7, 10), (250, 250), (0, 1319)):
        wanted = scipy.stats.binomtest(right, items).proportion_ci(0.95, "wilson")
        found = whole({"a": [1.0] * right + [0.0] * (items - right)})
        assert found == pytest.approx((100 * wanted.low, 100 * wanted.high), abs=1e-9)
        assert found[0] < found[1]
    low, high = whole({"a": [1.0] * 4, "b": [0.0] * 4})  # no spread within tasks
    assert high - low > 50
    assert metrics.interval({"a": [1.0, 0.0, 1.0]}) is None and metrics.interval({"a": [1.0] * 9, "b": [0.0]}) is None


@pytest.mark.parametrize("items", [4, 8, 40])
@pytest.mark.parametrize("count", [1, 2, 8, 27])
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (1, 9), (9, 1)])
def test_intervals_cover_what_they_say(items: int, count: int, shape: tuple[float, float]) -> None:
    """Tasks' true accuracies are drawn from Beta(shape), then items; the target is the mean over these tasks."""
    rng = np.random.default_rng(items * 1000 + count)
    covered, runs = 0, 600
    for _ in range(runs):
        accuracy = rng.beta(*shape, count)
        right = rng.binomial(items, accuracy)
        tasks = {str(i): [1.0] * int(n) + [0.0] * int(items - n) for i, n in enumerate(right)}
        low, high = whole(tasks)
        covered += bool(low <= 100 * accuracy.mean() <= high)
    noise = 2 * np.sqrt(0.95 * 0.05 / runs)
    assert 0.93 - noise <= covered / runs <= 0.97 + noise


def test_mean_is_the_same_in_any_order() -> None:
    values = [0.1] * 10 + [1e16, 1.0, -1e16]
    assert metrics.mean(values) == metrics.mean(values[::-1]) == metrics.mean(sorted(values)) == 2.0 / 13
    assert metrics.mean([]) == 0.0


# (prediction, gold, exact match, F1) as SQuAD 1.1's evaluation script, which TyDiQA's baseline calls, computes them.
OFFICIAL = [
    ("“টোকিও”", "টোকিও", 0.0, 0.000000),
    ("টোকিও।", "টোকিও", 0.0, 0.000000),
    ("The Bank", "bank", 1.0, 1.000000),
    ("a joki", "joki", 1.0, 1.000000),
    ("joessa ja meressä", "joessa", 0.0, 0.500000),
    ("1,234", "1234", 1.0, 1.000000),
    ("1.234", "1 234", 0.0, 0.000000),
    ("Москва — столица", "Москва", 0.0, 0.500000),
    ("«Москва»", "Москва", 0.0, 0.000000),
    ("القاهرة،", "القاهرة", 0.0, 0.000000),
    ("서울特別市", "서울", 0.0, 0.000000),
    ("Jakarta-Pusat", "jakarta pusat", 0.0, 0.000000),
    ("an 8 a", "8", 1.0, 1.000000),
    ("హైదరాబాద్.", "హైదరాబాద్", 1.0, 1.000000),
    ("tarehe 5 Mei", "5 Mei 1990", 0.0, 0.666667),
    ("", "joki", 0.0, 0.000000),
    ("the", "a", 1.0, 0.000000),
]


@pytest.mark.parametrize(("text", "gold", "exact", "f1"), OFFICIAL)
def test_passages_are_scored_as_by_the_official_script(text: str, gold: str, exact: float, f1: float) -> None:
    assert float(metrics.passage_form(text) == metrics.passage_form(gold)) == exact
    assert metrics.passage_f1(text, gold) == pytest.approx(f1, abs=1e-6)


def test_a_form_for_every_language() -> None:
    assert metrics.unicode_form("“টোকিও।”", "bn") == metrics.unicode_form("টোকিও", "bn")
    assert metrics.unicode_form("The  Bank.", "en") == "bank" and metrics.unicode_form("The Bank.", "fi") == "the bank"
