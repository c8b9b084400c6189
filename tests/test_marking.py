"""Grading: votes, rankings, likelihoods, passages; logits that are not finite are counted and never scored."""

from typing import Any

from flanx.evals import answers, marking
from flanx.evals.generations import Generation
from flanx.evals.spec import Spec


def generation(**changes: Any) -> Generation:
    """A generation of an item whose answer is 5."""
    fixed = {"shots": 0, "cut": False, "prompt_tokens": 4, "prompt_unknown": 0, "target_tokens": 2, "target_unknown": 0}
    item = {"id": "1", "task": "t", "prompt": "2 + 3?", "targets": ["5"], "kind": "number", "language": "en"}
    return Generation(**item | fixed | changes)


def test_vote_takes_the_most_frequent_answer_and_skips_silence() -> None:
    texts = ["no idea", "The answer is 4.", "The answer is 5.", "so 2 + 3 = 5. The answer is 5.0."]

    def winner(*texts: str) -> tuple[int, str | None]:
        return marking.vote([answers.read(text, "number", True) for text in texts])

    assert winner(*texts) == (2, "5")
    assert winner("The answer is 4.", "The answer is 5.") == (0, "4")  # a tie: the first
    assert winner("none", "nothing") == (0, None)
    assert winner("none", "nothing", "The answer is 5.") == (2, "5")
    grade = marking.grade_generated(texts, ["5"], "number", True, "en")
    assert (grade.exact, grade.failed) == (1.0, False)
    grade = marking.grade_generated(["none"], ["5"], "number", True, "en")
    assert (grade.exact, grade.failed) == (0.0, True)


def test_broken_logits_are_counted_and_not_scored() -> None:
    spec = Spec("s", "gsm8k")
    grade = marking.grade(spec, generation(outputs=["5"], broken=True))
    assert (grade.exact, grade.failed, grade.non_finite) == (0.0, False, True)
    assert marking.grade(spec, generation(outputs=["5"])).exact == 1.0
    grade = marking.grade_ranked([-1.0, None], ["A", "B"], ["A"], False)
    assert (grade.exact, grade.non_finite) == (0.0, True)
    grade = marking.grade_likelihood(float("-inf"), 3)
    assert (grade.exact, grade.non_finite) == (0.0, True)


def test_ranking_with_and_without_length() -> None:
    assert marking.grade_ranked([-2.0, -3.0], ["no", "certainly"], ["certainly"], False).exact == 0
    assert marking.grade_ranked([-2.0, -3.0], ["no", "certainly"], ["certainly"], True).exact == 1


def test_passages() -> None:
    grade = marking.grade_passage(["The Bank."], ["the bank"], "en")
    assert (grade.exact, grade.f1) == (1.0, 1.0)
    grade = marking.grade_passage(["joessa ja meressä"], ["joessa"], "fi")
    assert (grade.exact, grade.f1) == (0.0, 0.5)
    assert marking.grade_passage([""], ["joessa"], "fi").failed


def test_outputs_end_at_the_stop_text_before_they_are_graded() -> None:
    row = generation(outputs=["The answer is 5.\n\nThen 7? The answer is 7."])
    assert marking.grade(Spec("s", "gsm8k", cot=True, stop=("\n\nThen",)), row).exact == 1.0
    assert marking.grade(Spec("s", "gsm8k", cot=True), row).exact == 0.0


def test_each_way_of_scoring_reads_its_own_field() -> None:
    ranked = generation(options=["5", "7 or so"], option_scores=[-4.0, -9.0], targets=["7 or so"], target_tokens=4)
    assert marking.grade(Spec("s", "mmlu", scoring="rank"), ranked).exact == 0.0
    assert marking.grade(Spec("s", "mmlu", scoring="rank_normalized"), ranked).exact == 1.0
    assert marking.grade(Spec("s", "mmlu", scoring="likelihood"), ranked).exact == 2.718281828459045**-1.0


def test_passages_are_put_to_the_vote_by_their_normal_form() -> None:
    spec = Spec("tydiqa+sc5", "tydiqa", samples=5, metric="f1")
    change = {"targets": ["Turku"], "kind": "text", "language": "fi"}
    row = generation(outputs=["Oslo", "", "turku.", "Turku", "Oslo 2"], **change)
    grade = marking.grade(spec, row)
    assert (grade.exact, grade.f1, grade.answer, grade.failed) == (1.0, 1.0, "turku.", False)
    assert marking.grade(spec, generation(outputs=["", ""], **change)).failed


def test_a_fairer_form_of_passages_stands_in_columns_of_its_own() -> None:
    grade = marking.grade_passage(["«Москва»"], ["Москва"], "ru")
    assert (grade.exact, grade.f1, grade.unicode_exact, grade.unicode_f1) == (0.0, 0.0, 1.0, 1.0)
    grade = marking.grade_passage(["a joki"], ["joki"], "fi")  # "a" is not an article in Finnish
    assert (grade.exact, grade.unicode_exact) == (1.0, 0.0)
