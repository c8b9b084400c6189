"""Problems of graded depth: right, a function of their program alone, and without what is held out in the corpus."""

import collections
import itertools

import pytest

from flanx import procedural
from flanx.errors import UserError
from flanx.procedural import problem

TEXTS = [procedural.example("corpus.letters", "train", i) for i in range(400)]


@pytest.mark.parametrize(
    ("codes", "x", "answer", "rationale"),
    [
        ("rev rol", "dcba", "bcda", "rev abcd rol bcda"),
        ("ror", "dcba", "adcb", "ror adcb"),
        ("end", "dcba", "acbd", "end acbd"),
        ("swa swz mid hal", "dcba", "dbca", "swa cdba swz cdab mid cadb hal dbca"),
        ("nxt", "lkab", "albc", "nxt albc"),
        ("prv", "albc", "lkab", "prv lkab"),
        ("srt dwn", "badc", "dcba", "srt abcd dwn dcba"),
        ("2413", "dcba", "cadb", "2413 cadb"),
        ("+5 -3", "7", "9", "+5 2 -3 9"),
    ],
)
def test_operations_compute_what_they_say(codes: str, x: str, answer: str, rationale: str) -> None:
    assert problem.run(tuple(codes.split()), x) == (answer, rationale)


def test_example_is_a_function_of_program_split_and_index() -> None:
    # Written down once: a change of a generator changes every result that was measured with it.
    assert procedural.example("ask.0 rev rol", "test", 0) == {
        "x": "edfi", "do": "reverse, first to end", "answer": "fdei", "rationale": "rev ifde rol fdei",
    }  # fmt: skip
    assert list(procedural.examples("ask.other nxt", "validation"))[7] == procedural.example(
        "ask.other nxt", "validation", 7
    )
    assert next(iter(procedural.examples("corpus.digits", "train")))["rationale"] == "-3 1 +5 6"


def test_words_are_those_of_the_wording() -> None:
    said = [procedural.example(f"ask.{wording} -4", "train", 0)["do"] for wording in problem.WORDINGS]
    assert said == ["take 4", "minus 4", "down 4", "4 fewer", "mo 4"]
    assert procedural.example("ask.unseen 3142", "train", 0)["do"] == "arrange 3142"


def test_every_operation_has_five_ways_to_ask_and_none_means_two_things() -> None:
    said = [
        problem.say(code, w) for code in (*problem.LETTERS, *problem.MOVES, *problem.RULES) for w in problem.WORDINGS
    ]
    assert len(said) == len(set(said))


def test_starts_are_those_of_the_split_and_differ() -> None:
    starts = {
        split: {procedural.example("ask.1 swa mid", split, i)["x"] for i in range(200)} for split in procedural.SIZES
    }
    assert all(procedural.split_of(x) == split for split, found in starts.items() for x in found)
    assert all(len(set(x)) == problem.LENGTH for found in starts.values() for x in found)
    assert {procedural.example("ask.0 +1 -2", "test", i)["x"] for i in range(10)} == set("0123456789")


def test_a_walk_has_two_routes_to_its_answer() -> None:
    routes = collections.Counter()
    for i in range(40):
        fields = procedural.example("ask.0 +1 -2 +5", "train", i)
        assert fields["answer"] == str((int(fields["x"]) + 4) % 10) == fields["rationale"][-1]
        routes[fields["rationale"].split()[0]] += 1
    assert set(routes) == {"+1", "+5"} and min(routes.values()) > 5


def test_the_corpus_has_no_pair_and_no_rule_that_is_held_out() -> None:
    assert len(problem.HELD_RULES) == 5
    held = {(a, b) for a, b in itertools.permutations(problem.LETTERS, 2) if problem.is_held(a, b)}
    assert len(held) == 20
    for text in TEXTS:
        codes = text["rationale"].split()[::2]
        assert not held & set(itertools.pairwise(codes)), text
        assert not set(codes) & set(problem.HELD_RULES), text


def test_a_mixed_data_set_has_many_problems_of_one_depth_and_wording() -> None:
    found = [procedural.example("mixed.0 letters 3 a", "train", i) for i in range(60)]
    lists = {tuple(fields["rationale"].split()[::2]) for fields in found}
    assert len(lists) > 50 and {len(codes) for codes in lists} == {3}
    assert not any(problem.has_held(codes) or set(codes) & set(problem.HELD_RULES) for codes in lists)
    words = {problem.say(code, "0") for codes in lists for code in codes}
    assert {word for fields in found for word in fields["do"].split(", ")} == words
    assert found[0] != procedural.example("mixed.0 letters 3 b", "train", 0)
    assert sum(1 for _ in procedural.examples("mixed.0 digits 4 a", "train")) == problem.MIXED


def test_the_corpus_has_every_depth_both_languages_and_rules() -> None:
    depths = collections.Counter(len(text["rationale"].split()) // 2 for text in TEXTS)
    assert set(depths) == {1, 2, 3, 4} and min(depths.values()) > 20
    others = {problem.say(code, "other") for code in problem.LETTERS}
    assert 40 < sum(bool(set(text["do"].split(", ")) & others) for text in TEXTS) < 120
    assert any(text["do"].startswith("arrange ") for text in TEXTS)
    once = [procedural.example("corpus.once", "train", i) for i in range(40)]
    assert {len(text["answer"]) for text in once} == {1, 4} and {len(text["rationale"].split()) for text in once} == {2}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ask.3 rev", "'3' is not one of 0, 1, 2, unseen, other"),
        ("ask.0 revv", "unknown operation 'revv'; did you mean 'rev'"),
        ("ask.0", "0 operations; a task has one to 5"),
        ("ask.0 rev rol rev rol rev rol", "6 operations"),
        ("ask.0 rev +1", "do not mix"),
        ("corpus.words", "'words' is not one of letters, digits, once"),
        ("corpus.letters rev", "1 operations"),
        ("mixed.0 letters 7 a", "as 'mixed.0 letters 3 a'"),
    ],
)
def test_wrong_programs_are_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=r"^suite program") as error:
        procedural.example(name, "train", 0)
    assert message in str(error.value)
