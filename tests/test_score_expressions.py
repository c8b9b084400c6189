"""Scores as expressions over what an evaluation wrote: groups, alternatives, lower bounds."""

import math

import pytest

from flanx.errors import UserError
from flanx.evals import metrics
from flanx.sweep import score_expressions
from tests.sweep_maker import entry


def test_terms_take_groups_alternatives_and_lower_bounds():
    tasks = {name: entry(bound + (100 - bound) / 2) for name, (bound, _) in metrics.BBH_BOUNDS.items()}
    suites = {"bbh_cot": entry(61.0, tasks=tasks), "mmlu_cot": entry(40.0, half=3.0, flagged=True)}
    assert score_expressions.value(["normalized mmlu_cot"], suites) == score_expressions.Estimate(
        20.0, 16.0, 24.0, True
    )
    found = score_expressions.value(["normalized bbh_direct | normalized bbh_cot"], suites)
    assert found.score == pytest.approx(50.0) and found.score < found.high < 50.0 + 4
    alg = score_expressions.value(["bbh_cot:alg"], suites)
    assert alg.score == pytest.approx(sum(tasks[t]["score"] for t in dict(report_groups())["alg"]) / 15)
    assert score_expressions.value(["mmlu_direct"], suites) == "mmlu_direct not run"
    assert score_expressions.value([score_expressions.AVERAGE], suites) == "mmlu_direct not run"
    del tasks["navigate"], tasks["snarks"]
    assert score_expressions.value(["normalized bbh_cot"], suites | {"bbh_cot": entry(61.0, tasks=tasks)}) == (
        "bbh_cot without navigate and 1 more"
    )
    six = {name: entry(50.0, tasks=tasks | dict.fromkeys(metrics.BBH_BOUNDS, entry(50.0))) for name in metrics.HEADLINE}
    wanted = metrics.normalized_average(
        dict.fromkeys(six, 50.0), dict.fromkeys(six, dict.fromkeys(metrics.BBH_BOUNDS, 50.0))
    )
    assert score_expressions.value([score_expressions.AVERAGE], six).score == pytest.approx(wanted)


def test_a_group_has_its_own_interval_where_its_scores_keep_one():
    tasks = {name: entry(60.0, half=9.0) for name in metrics.BBH_BOUNDS}
    old = entry(60.0, tasks=tasks) | {"groups": {"alg": 60.0}}
    combined = score_expressions.value(["bbh_cot:alg"], {"bbh_cot": old})
    assert combined.combined and combined.high - 60 == pytest.approx(9 / 15**0.5)
    kept = old | {"group_intervals": {"alg": {"low": 58.0, "high": 61.5}}}
    own = score_expressions.value(["bbh_cot:alg"], {"bbh_cot": kept})
    assert (own.score, own.low, own.high, own.combined) == (60.0, 58.0, 61.5, False)
    none = kept | {"group_intervals": {"alg": {"low": None, "high": None}}}  # too few items: nothing is ruled out
    assert score_expressions.value(["bbh_cot:alg"], {"bbh_cot": none}).high == 100.0
    other = kept | {"groups": {"alg": 55.0}}  # of other tasks than the group has now
    assert score_expressions.value(["bbh_cot:alg"], {"bbh_cot": other}) == combined
    assert score_expressions.value(["bbh_cot:alg", "bbh_cot:alg"], {"bbh_cot": kept}).combined  # a mean has none


def test_scores_end_where_they_can_be():
    assert score_expressions.ends(["mmlu_cot", "bbh_cot:alg"]) == (0.0, 100.0)
    assert score_expressions.ends(["normalized mmlu_cot"]) == (-math.inf, 100.0)
    assert score_expressions.ends([score_expressions.AVERAGE]) == (-math.inf, 100.0)
    assert score_expressions.ends(["mmlu_cot", "muffin_stsb:validation"]) == (-math.inf, math.inf)  # a correlation


def report_groups():
    from flanx.evals import registry

    return registry.resolve("bbh_cot").groups


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mmlu_cit", "did you mean 'mmlu_cot'"),
        ("mmlu cot", "is not a score of a suite"),
        ("bbh_cot:algebra", "has no group 'algebra'"),
        ("normalized gsm8k_cot", "have lower bounds"),
    ],
)
def test_a_wrong_term_is_named(text, said):
    with pytest.raises(UserError, match=said):
        score_expressions.parse(text)


def test_the_interval_of_a_mean_is_that_of_independent_scores():
    found = score_expressions.mean(
        [score_expressions.Estimate(50.0, 47.0, 56.0), score_expressions.Estimate(60.0, 56.0, 68.0)]
    )
    assert (found.score, found.low, found.high) == (55.0, 55.0 - 5.0 / 2, 55.0 + 10.0 / 2)  # 3, 4 -> 5; 6, 8 -> 10
