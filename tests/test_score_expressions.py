"""Scores as expressions over what an evaluation wrote: groups, alternatives, lower bounds."""

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
