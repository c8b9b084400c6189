"""Results of ballots against counts by hand and published figures."""

import dataclasses
import math

from flanx.compare import tally
from tests.compare_case import comparison, rater

MADE = comparison(10)
OURS, THEIRS = 0, 1


def rows(raters, what, made=MADE):
    return [row for row in tally.results(made, raters) if row["what"] == what]


def test_a_win_rate_counts_ties_and_both_bad_as_half_with_wilsons_interval():
    said = dict(zip(MADE.pairs, [OURS] * 8 + [THEIRS] * 2, strict=True))
    row = rows([rater("Ada", said)], "win_rate")[0]
    assert (row["a"], row["b"], row["raters"], row["task"]) == ("ours", "theirs", "people", "")
    assert (row["pairs"], row["a_wins"], row["b_wins"], row["win_rate"]) == (10, 8, 2, 80)
    assert (round(row["low"], 1), round(row["high"], 1)) == (49.0, 94.3)  # Wilson's of 8 in 10
    said = dict(zip(MADE.pairs, [OURS] * 5 + [THEIRS] * 2 + ["tie"] * 2 + ["bad"], strict=True))
    row = rows([rater("Ada", said)], "win_rate")[0]
    assert (row["ties"], row["both_bad"], row["win_rate"]) == (2, 1, 65)
    assert row["low"] < 65 < row["high"]


def test_a_pair_that_several_rated_counts_once_and_tasks_are_apart():
    pairs = [pair for pair in MADE.pairs if MADE.tasks[pair.prompt] == "planning"]
    raters = [rater("Ada", dict.fromkeys(pairs, OURS)), rater("Bob", {pairs[0]: THEIRS})]
    found = {row["task"]: row for row in rows(raters, "win_rate")}
    assert {*found} == {"", "planning"}
    assert (found["planning"]["pairs"], found["planning"]["ballots"]) == (5, 6)
    assert math.isclose(found[""]["win_rate"], 100 * 4.5 / 5)


def test_parts_of_the_open_ended_suite_are_rows_of_their_own():
    kinds = [kind + end for kind in ("complex_reasoning", "planning", "explanation") for end in ("", "_cot")]
    made = dataclasses.replace(comparison(6), tasks=tuple(kinds))
    said = {pair: OURS if made.tasks[pair.prompt].endswith("_cot") else THEIRS for pair in made.pairs}
    found = {row["task"]: row for row in rows([rater("Ada", said)], "win_rate", made)}
    assert [found[part]["win_rate"] for part in ("", "without_trigger", "cot_trigger")] == [50, 0, 100]
    assert found["cot_trigger"]["pairs"] == 3 and "zero_shot" not in found


def test_three_candidates_have_ratings_two_have_none():
    made = comparison(12, names=("a", "b", "c"))
    best = {pair: min(pair.sides) for pair in made.pairs}
    found = rows([rater("Ada", best)], "rating", made)
    assert [row["candidate"] for row in found] == ["a", "b", "c"]
    assert abs(sum(row["rating"] for row in found) / 3 - 1000) < 1e-6
    assert all(row["low"] <= row["rating"] <= row["high"] for row in found)
    assert not rows([rater("Ada", dict.fromkeys(MADE.pairs, OURS))], "rating")
    some = {pair: pair.left for pair in made.pairs if {*pair.sides} == {0, 1}}
    assert rows([rater("Ada", some)], "rating", made)[0]["missing"].startswith("candidates that were never compared")


def test_alpha_is_krippendorffs_of_a_published_example():
    # three coders, fifteen units with gaps: en.wikipedia.org/wiki/Krippendorff's_alpha, nominal 0.691
    data = {
        "A": [None, None, None, None, None, 3, 4, 1, 2, 1, 1, 3, 3, None, 3],
        "B": [1, None, 2, 1, 3, 3, 4, 3, None, None, None, None, None, None, None],
        "C": [None, None, 2, 1, 3, 4, 4, None, 2, 1, 1, 3, 3, None, 4],
    }
    labels = [(who, str(n), str(v)) for who, each in data.items() for n, v in enumerate(each) if v is not None]
    assert math.isclose(tally.alpha(labels), 0.691, abs_tol=5e-4)


def test_agreement_is_of_the_pairs_that_two_or_more_rated():
    ada = rater("Ada", dict(zip(MADE.pairs, [OURS, OURS, THEIRS, THEIRS, "tie"], strict=False)))
    bob = rater("Bob", dict(zip(MADE.pairs, [OURS, OURS, THEIRS, OURS], strict=False)))
    (row,) = rows([ada, bob], "agreement")
    assert (row["pairs"], row["equal"]) == (4, 75)
    # by hand: observed disagreement 1/4; of 8 labels 5 are ours and 3 theirs, expected 2 * 5 * 3 / (8 * 7)
    assert math.isclose(row["alpha"], 1 - (1 / 4) / (2 * 5 * 3 / 56))
    assert not rows([ada], "agreement")
    same = [rater(name, dict.fromkeys(MADE.pairs, OURS)) for name in "ab"]
    assert rows(same, "agreement")[0]["alpha"] is None


def test_position_bias_is_of_what_was_shown():
    left = rater("Ada", {pair: pair.left for pair in MADE.pairs})
    (row,) = rows([left], "position")
    assert (row["ballots"], row["left"], row["consistent"]) == (10, 100, None) and row["low"] > 50
    fair = rater("Ada", dict.fromkeys(MADE.pairs, OURS))
    assert rows([fair], "position")[0]["left"] == 50


def both_orders(name, said, again):
    judge = rater(name, said, kind="model")
    for ballot in rater(name, again, kind="model", swapped=True).ballots.values():
        judge.take(ballot)
    return judge


def test_a_judge_is_reported_apart_from_people_and_a_tie_where_its_orders_differ():
    people = rater("Ada", dict(zip(MADE.pairs, [OURS] * 5 + [THEIRS] * 5, strict=True)))
    said = dict(zip(MADE.pairs, [OURS] * 4 + [THEIRS] * 6, strict=True))
    again = said | {MADE.pairs[0]: THEIRS}
    judge = both_orders("judge x", said, again)
    found = {row["raters"]: row for row in rows([people, judge], "win_rate") if not row["task"]}
    assert (found["people"]["ballots"], found["people"]["win_rate"]) == (10, 50)
    assert (found["judge x"]["ballots"], found["judge x"]["ties"], found["judge x"]["win_rate"]) == (10, 1, 35)
    positions = {row["raters"]: row for row in rows([people, judge], "position")}
    assert positions["judge x"]["consistent"] == 90 and positions["people"]["ballots"] == 10
    (row,) = rows([people, judge], "judge_agreement")
    assert (row["raters"], row["pairs"], row["equal"]) == ("judge x", 10, 80)
    # by hand: people 5 ours, 5 theirs; the judge 3 ours, 6 theirs, 1 tie; chance 0.5 * 0.3 + 0.5 * 0.6
    assert math.isclose(row["kappa"], (0.8 - 0.45) / (1 - 0.45))


def test_a_judge_that_goes_by_position_says_tie_of_everything():
    judge = both_orders("judge x", {p: p.left for p in MADE.pairs}, {p: p.right for p in MADE.pairs})
    row = rows([judge], "win_rate")[0]
    assert (row["ties"], row["win_rate"]) == (10, 50)
    position = rows([judge], "position")[0]
    assert (position["left"], position["consistent"]) == (100, 0)


def test_pairs_on_which_people_are_split_are_no_measure_of_a_judge():
    people = [rater("Ada", {MADE.pairs[0]: OURS, MADE.pairs[1]: OURS}), rater("Bob", {MADE.pairs[0]: THEIRS})]
    judge = both_orders("judge x", dict.fromkeys(MADE.pairs, OURS), dict.fromkeys(MADE.pairs, OURS))
    (row,) = rows([*people, judge], "judge_agreement")
    assert (row["pairs"], row["equal"], row["kappa"]) == (1, 100, None)


def test_a_rater_is_counted_with_time_notes_and_changes():
    row = rows([rater("Ada", dict.fromkeys(MADE.pairs[:3], "tie"))], "rater")[0]
    assert (row["pairs"], row["of"], row["median_seconds"], row["notes"]) == (3, 10, 2.0, 0)
