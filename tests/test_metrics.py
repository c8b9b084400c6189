"""Scores from marks: the paper's own averages come out of its per-task tables; votes, rankings, intervals."""

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
    text = importlib.resources.files("flanx.sweep").joinpath("published.csv").read_text(encoding="utf-8")
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
    with pytest.raises(UserError, match="absent: mgsm_cot"):
        metrics.normalized_average({k: v for k, v in scores.items() if k != "mgsm_cot"}, {})


def test_vote_takes_the_most_frequent_answer_and_skips_silence() -> None:
    texts = ["no idea", "The answer is 4.", "The answer is 5.", "so 2 + 3 = 5. The answer is 5.0."]
    assert metrics.vote(texts, "number", True, "en")[1] == "5"
    assert metrics.vote(["The answer is 4.", "The answer is 5."], "number", True, "en")[1] == "4"  # a tie: the first
    assert metrics.vote(["none", "nothing"], "number", True, "en")[1] is None
    assert metrics.vote(["none", "nothing", "The answer is 5."], "number", True, "en")[1] == "5"
    mark = metrics.mark_generated(texts, ["5"], "number", True, "en", False, False)
    assert (mark.exact, mark.failed) == (1.0, False)
    mark = metrics.mark_generated(["none"], ["5"], "number", True, "en", False, False)
    assert (mark.exact, mark.failed) == (0.0, True)


def test_broken_logits_are_counted_and_not_scored() -> None:
    mark = metrics.mark_generated(["5"], ["5"], "number", False, "en", True, False)
    assert (mark.exact, mark.failed, mark.broken) == (0.0, False, True)
    mark = metrics.mark_ranked([-1.0, None], ["A", "B"], ["A"], False)
    assert (mark.exact, mark.broken) == (0.0, True)


def test_ranking_with_and_without_length() -> None:
    assert metrics.mark_ranked([-2.0, -3.0], ["no", "certainly"], ["certainly"], False).exact == 0
    assert metrics.mark_ranked([-2.0, -3.0], ["no", "certainly"], ["certainly"], True).exact == 1


def test_passages() -> None:
    mark = metrics.mark_generated(["  The Bank."], ["the bank"], "text", False, "en", False, True)
    assert (mark.exact, mark.f1) == (1.0, 1.0)
    mark = metrics.mark_generated(["joessa ja meressä"], ["joessa"], "text", False, "fi", False, True)
    assert (mark.exact, mark.f1) == (0.0, 0.5)
    assert metrics.mark_generated([""], ["joessa"], "text", False, "fi", False, True).failed
    assert metrics.passage_form("“টোকিও।”", "bn") == metrics.passage_form("টোকিও", "bn")


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
