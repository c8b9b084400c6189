"""Letters, options and pairs of words; most cases are in corpus/extraction.tsv and extraction_options.tsv."""

import pytest

from flanx.evals import answer_choices as choices
from flanx.evals.answer_text import NOTHING, UNCLEAR, Reading

CITIES = {"A": "London", "B": "Paris", "C": "Rome", "D": "Oslo"}


def test_options_of_the_last_question_of_a_prompt() -> None:
    assert choices.options_of("Q: What?\n(A) London (B) Paris (C) Rome (D) Oslo\nA:") == CITIES
    shot = "Q: Which?\nOptions:\n(A) x\n(B) y\n(C) z\nA: (B)\n\n"
    assert choices.options_of(shot + "Q: Which?\nOptions:\n(A) one day\n(B) two days\nA:") == {
        "A": "one day", "B": "two days",
    }  # fmt: skip
    assert choices.options_of("How many eggs (A) are there?") == {}
    assert choices.options_of("Q: 2 + 3?\nA:") == {}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(B).", "B"), ("【B】", "B"), ("{B}", "B"), ("<B>", "B"), ("Paris (B)", "B"), ("Paris.", "B"),
        ("the second option", "B"), ("not (A) but (B)", "B"), ("not London but Paris", "B"),
        ("(E)", None), ("I", None), ("A city such as Paris", None), ("(A) or (B)", None), ("London or Paris", None),
        ("not (B)", None), ("none of the above", None),
    ],
)  # fmt: skip
def test_announced_letters(text: str, letter: str | None) -> None:
    assert choices.letter(text, CITIES).answer == letter


def test_direct_letters() -> None:
    for text in ("b) paris", "B - Paris", "B.Paris", "(A) is wrong; (B) is right", "Not (A), so (B)", "It is Paris."):
        assert choices.first_letter(text, CITIES) == Reading("B"), text
    assert choices.first_letter("A, B", CITIES) == UNCLEAR
    assert choices.first_letter("As an AI, I cannot say", CITIES) == NOTHING


def test_closing_letters() -> None:
    earlier = "It is large. "
    for text in ("(B)", "b", "Therefore (B).", "So it is B.", "(B) is correct.", "Paris.", "B) Paris", "(B) (B)"):
        assert choices.concluding_letter(earlier + text, CITIES) == Reading("B"), text
    for text in (
        "The ironic one is (B).",
        "Option (B): Paris",
        "(A) or (B)",
        "A",
        "The capital is Paris.",
        "Look at (B)",
    ):
        assert choices.concluding_letter(earlier + text, CITIES) == NOTHING, text
    for text in ("(A) is old.\n(B", "It is large.\n(A)", "It is large.\nOption (A)", 'It is one of four. "Paris"'):
        assert choices.concluding_letter(text, CITIES) == NOTHING, text  # goes through the options, and is cut


@pytest.mark.parametrize(
    ("kind", "text", "word"),
    [
        ("yes_no", "not no but yes", "yes"),
        ("yes_no", "no, sorry, yes", "yes"),
        ("yes_no", "yes or no", None),
        ("true_false", "not False = True", "true"),
        ("true_false", "not False", None),
        ("validity", "not valid", "invalid"),
        ("validity", "far from valid", "invalid"),
        ("validity", "that it isn't deductively valid", "invalid"),
        ("validity", "not invalid", None),
    ],
)
def test_announced_words(kind: str, text: str, word: str | None) -> None:
    assert choices.word(text, kind).answer == word


def test_direct_and_closing_words() -> None:
    assert choices.first_word("Yes Yes Yes", "yes_no") == Reading("yes")
    assert choices.first_word("Yes. No.", "yes_no") == UNCLEAR
    assert choices.first_word("I have no idea", "yes_no") == NOTHING
    assert choices.first_word("False or True is True", "true_false") == Reading("true")
    assert choices.concluding_word("There is no doubt, so: yes", "yes_no") == Reading("yes")
    assert choices.concluding_word("We do not return to the start.", "yes_no") == Reading("no")
    assert choices.concluding_word("By (1) it holds. The argument is valid.", "validity") == NOTHING
    assert choices.concluding_word("The argument is valid.", "validity") == Reading("valid")
