"""Votes that are decided early are the votes of all samples."""

import json
import pathlib
from collections import Counter
from typing import Any

import numpy as np
import pytest

from flanx.decoding import row_block
from flanx.evals import early_vote, marking
from flanx.evals.answers import DIRECT, Answer
from flanx.evals.early_vote import EarlyVote
from flanx.evals.generations import Generation
from flanx.evals.spec import Spec
from tests import test_decode
from tests.echo_case import lines, score


def test_a_decided_vote_has_the_answer_and_the_sample_of_the_whole_one() -> None:
    draws, sizes = np.random.default_rng(0), Counter[bool]()
    for _ in range(2000):
        count, kinds = int(draws.integers(2, 12)), int(draws.integers(1, 5))
        votes = [None if each == 0 else "abcd"[each - 1] for each in draws.integers(0, kinds + 1, count)]
        whole = marking.vote([Answer(each, DIRECT) for each in votes])
        known: dict[int, str | None] = {}
        for name in map(int, draws.permutation(count)):
            known[name] = votes[name]
            if early_vote.is_decided(known, count):
                break
        names = sorted(known)
        index, winner = marking.vote([Answer(known[each], DIRECT) for each in names])
        assert (names[index] if winner else 0, winner) == whole, (votes, known)
        sizes[len(known) < count] += 1
    assert sizes[True] > 400  # and it does end early


def test_it_is_decided_as_soon_as_nothing_can_change_it() -> None:
    assert early_vote.is_decided({0: "a", 1: "a"}, 4)  # a tie with a later answer is won
    assert not early_vote.is_decided({0: "b", 1: "a", 2: "a"}, 4)  # an earlier answer would win it
    assert early_vote.is_decided({0: "b", 1: "a", 2: "a", 3: "a"}, 5)
    assert not early_vote.is_decided({0: "b", 1: "b", 2: "a", 3: "a"}, 6)
    assert not early_vote.is_decided({1: "a", 2: "a", 3: "a"}, 4)  # sample 0 may stand for the same answer
    assert not early_vote.is_decided({0: None, 1: None}, 3)


@pytest.mark.parametrize("metric", ["exact_match", "f1", "task", "truthfulqa"])
def test_the_grade_is_that_of_all_samples(metric: str) -> None:
    """For every metric that votes: of texts that read alike, differently, or not at all."""
    texts = ["The answer is 4.", "4", "so it is 5", "", "The answer is 5. Q: 4", "twelve 12", "answer: 4"]
    kind = "number" if metric == "exact_match" else "squad" if metric == "task" else "text"
    spec = Spec("s", "f", "test", "t", metric=metric, cot=metric == "exact_match", stop=("Q:",), samples=6)
    row = Generation("0", "t", "p", ["4"], kind, "en", 0, False, 1, 0, 1, 0, options=["4", "5"])
    draws, early = np.random.default_rng(1), 0
    for turn in range(60):
        row.outputs = [texts[each] for each in draws.integers(0, len(texts) if turn % 2 else 2, spec.samples)]
        row.ended = [bool(each) for each in draws.integers(0, 2, spec.samples)]
        whole, vote, known = marking.grade(spec, row), EarlyVote(spec, [row]), dict[int, tuple[str, bool]]()
        for name in map(int, draws.permutation(spec.samples)):
            known[name] = row.outputs[name], row.ended[name]
            if vote.decided(0, known):
                break
        early += len(known) < spec.samples
        row.outputs, row.ended = map(list, zip(*(known[name] for name in sorted(known)), strict=True))
        assert marking.grade(spec, row) == whole
    assert early > 5


def test_decoding_leaves_the_other_samples_out() -> None:
    """The outputs of a prompt that is decided are a part of those that it has with all samples, and it is left."""
    options: dict[str, Any] = {"given": test_decode.prompts(3), "samples": 12, "max_new": 40}
    options |= {"method": test_decode.SAMPLED}
    whole = test_decode.run(**options)
    asked: dict[int, dict[int, list[int]]] = {}

    def decided(number: int, samples: Any) -> bool:
        asked[number] = {name: tokens for name, (tokens, _) in samples.items()}
        return number == 1 and len(samples) >= 3

    found = test_decode.run(decided=decided, **options)
    assert [found[n].tokens for n in (0, 2)] == [whole[n].tokens for n in (0, 2)]
    assert 3 <= len(found[1].tokens) < 12
    assert found[1].tokens == [whole[1].tokens[name] for name in sorted(asked[1])]


def test_an_evaluation_has_the_same_scores_and_says_what_it_left_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_block, "on_one_cpu", lambda: True)  # samples take turns
    names = ("bbh_direct[word_sorting]", "tydiqa")
    whole = score(tmp_path / "whole", *names, self_consistency=10)["suites"]
    early = score(tmp_path / "early", *names, self_consistency=10, early_vote=True)["suites"]
    keys = ("score", "low", "high", "f1", "n", "extraction_failed", "tasks", "spec")
    for name in whole:
        assert {k: _plain(whole[name].get(k)) for k in keys} == {k: _plain(early[name].get(k)) for k in keys}, name
    left = 0
    for path in sorted((tmp_path / "early" / "generations").glob("*.jsonl")):
        wholes = {row["id"]: row for row in lines(tmp_path / "whole" / "generations" / path.name)[1:]}
        for row in lines(path)[1:]:
            every = wholes[row["id"]]["outputs"]
            assert len(row["outputs"]) + row.get("undrawn", 0) == len(every) == 10
            assert not Counter(row["outputs"]) - Counter(every)
            left += row.get("undrawn", 0)
    assert left and "undrawn" not in json.dumps(list(wholes.values()))


def _plain(value: Any) -> Any:
    """A part of scores without the shares of outputs, which are of those that are kept."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key not in ("unfinished", "looping", "flagged")}
    return value
