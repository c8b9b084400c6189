"""A model as judge: both orders of every pair, resumed, apart from people."""

import dataclasses
import types

import numpy as np
import pytest

from flanx.compare import ballot, judge, tally
from flanx.data import vocabulary
from flanx.errors import UserError
from tests.compare_case import HOSTILE, comparison, rater

MADE = comparison(6)


class Stand:
    """A predictor that prefers by the text that it reads: `choose` gives the two log-probabilities of a prompt."""

    def __init__(self, choose, longest=4096):
        self.choose, self.vocabulary, self.lengths = choose, vocabulary.load("byte"), {"inputs": longest, "targets": 8}
        self.asked = []

    def score(self, prompts, options):
        assert all(each == judge.LETTERS for each in options)
        texts = [self.vocabulary.decode(tokens[:-1]) for tokens in prompts]
        self.asked += texts
        return [np.array(self.choose(text)) for text in texts]


def prefers_ours(text):
    return (-1.0, -2.0) if text.index("0 to") < text.index("1 to") else (-2.0, -1.0)


def test_every_pair_is_asked_in_both_orders(tmp_path):
    stand = Stand(prefers_ours)
    assert judge.judge(MADE, tmp_path, "judge x", stand) == {"judged": 6, "too long": 0, "before": 0}
    (found,) = ballot.read(tmp_path, MADE)
    assert (found.kind, len(found.ballots)) == (ballot.MODEL, 12)
    assert tally.verdicts(MADE, found) == dict.fromkeys(MADE.by_id, 0)
    for pair in MADE.pairs:
        plain, swapped = judge.prompt_of(MADE, pair, False), judge.prompt_of(MADE, pair, True)
        assert f"Answer A: {pair.left} to" in plain and f"Answer A: {pair.right} to" in swapped
        assert {plain, swapped} <= {*stand.asked} and plain.endswith("is")


def test_a_judge_that_says_a_always_decides_nothing(tmp_path):
    judge.judge(MADE, tmp_path, "judge x", Stand(lambda text: (-1.0, -2.0)))
    (found,) = ballot.read(tmp_path, MADE)
    assert tally.verdicts(MADE, found) == dict.fromkeys(MADE.by_id, "tie")


def test_a_judge_resumes_with_the_pairs_that_it_has_not_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "BATCH", 2)
    stand = Stand(prefers_ours)
    stand.score = types.MethodType(
        lambda self, *given: Stand.score(self, *given) if len(self.asked) < 4 else 1 / 0, stand
    )
    with pytest.raises(ZeroDivisionError):
        judge.judge(MADE, tmp_path, "judge x", stand)
    again = Stand(prefers_ours)
    assert judge.judge(MADE, tmp_path, "judge x", again) == {"judged": 4, "too long": 0, "before": 2}
    assert len(again.asked) == 8 and not {*again.asked} & {*stand.asked}


def test_pairs_that_do_not_fit_are_counted_and_nan_is_refused(tmp_path):
    longest = max(len(judge.prompt_of(MADE, pair, False)) for pair in MADE.pairs)
    assert judge.judge(MADE, tmp_path / "a", "judge x", Stand(prefers_ours, longest))["too long"] == 6
    assert not ballot.read(tmp_path / "a", MADE)
    with pytest.raises(UserError, match="NaN or an infinity"):
        judge.judge(MADE, tmp_path / "b", "judge x", Stand(lambda text: (np.nan, 0.0)))
    assert not ballot.read(tmp_path / "b", MADE)


def test_a_judge_never_takes_the_name_of_a_person(tmp_path):
    said = rater("Ada", dict.fromkeys(MADE.pairs, 0))
    ballot.Writer(tmp_path, MADE, "Ada").add([*said.ballots.values()])
    with pytest.raises(UserError, match="name of a person"):
        judge.judge(MADE, tmp_path, "Ada", Stand(prefers_ours))


def test_texts_with_braces_stay_as_they_are():
    made = dataclasses.replace(MADE, answers=((HOSTILE[3], "{second}"),) * 6)
    text = judge.prompt_of(made, made.pairs[0], False)
    assert HOSTILE[3].strip() in text and "{second}" in text


def test_two_checkpoints_do_not_judge_under_one_name(tmp_path):
    judge.judge(MADE, tmp_path, "judge x", Stand(prefers_ours), "runs/a")
    assert judge.judge(MADE, tmp_path, "judge x", Stand(prefers_ours), "runs/a")["before"] == 6
    with pytest.raises(UserError, match="judged before as runs/a: give runs/b a name of its own"):
        judge.judge(MADE, tmp_path, "judge x", Stand(prefers_ours), "runs/b")
