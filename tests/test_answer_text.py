"""Plain text, sentences, announcements, and which of several answers a sentence gives."""

import re

import pytest

from flanx.evals import answer_text
from flanx.evals.answer_text import DENIED, NOTHING, UNCLEAR, Mention, Reading


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("２５％", "25%"),
        ("৯ ౯ ๙ ۹", "9 9 9 9"),
        ("10³ and x²", "10^3 and x^2"),
        ("1½ cups, ⅚", "1 1/2  cups,  5/6"),
        (r"\frac{3}{4} or \dfrac34", " 3/4  or  3/4".strip()),
        (r"\boxed{\text{B}}", r"\boxed B"),
        (r"1{,}234 and 12\,345 and 5 \times 3", "1,234 and 12 345 and 5 * 3"),
        ("\u200e−3–4\u2060", "-3-4"),
        ("**bold** and `code` and <b>B</b>", "bold and code and B"),
        ("9*2=<<9*2=18>>18", "9*2=18"),
        ("10 ** 3", "10^3"),
    ],
)
def test_plain(text: str, plain: str) -> None:
    assert answer_text.plain(text) == plain


def test_the_text_ends_at_the_label_of_a_next_question() -> None:
    for text in (
        "The answer is 5.\nQ: What",
        "The answer is 5. Question: What",
        "The answer is 5. Q: What",
        "The answer is 5.\n\nFrage: Was",
        "The answer is 5. Задача: что",
        "The answer is 5. 問題：何",
        "The answer is 5. โจทย์: อะไร",
    ):
        assert answer_text.until_next_question(answer_text.plain(text)) == "The answer is 5."
    assert answer_text.until_next_question("Question: what? 5") == "Question: what? 5"
    assert answer_text.until_next_question("See the FAQ: 5") == "See the FAQ: 5"


def test_sentences_end_at_full_stops_of_all_scripts_and_not_inside_numbers() -> None:
    assert answer_text.sentences("It is 3.5. So 4!\nগাড়ি আছে। 5个。好") == [
        "It is 3.5.", "So 4!", "গাড়ি আছে।", "5个。", "好",
    ]  # fmt: skip
    assert answer_text.sentences("12 тыс. рублей") == ["12 тыс рублей"]
    assert answer_text.sentences(" . !\n") == []


def test_announcements_in_order_before_and_behind_their_answers() -> None:
    found = answer_text.announcements("So 4 is the answer. The answer is 5. Answer: 6")
    assert [(each.text, each.inverted) for each in found] == [("So 4", True), ("5.", False), ("6", False)]
    assert not answer_text.announcements("Step-by-Step Answer: Tom has 5 pens.")  # the label of a rationale
    assert [each.text for each in answer_text.announcements("ধাপে ধাপে উত্তর: 3 + 2 = 5টি। উত্তর হল 5।")] == ["5।"]


def mentions(text: str) -> list[Mention]:
    return [Mention(match.start(), match.end(), match[0]) for match in re.finditer(r"\b[A-D]\b", text)]


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("B", Reading("B")),
        ("not A but B", Reading("B")),
        ("not A, not C, but B", Reading("B")),
        ("neither A nor C, so B", Reading("B")),
        ("B rather than A", Reading("B")),
        ("A is wrong and B is right", Reading("B")),
        ("A, sorry, B", Reading("B")),
        ("B because A is wrong", Reading("B")),
        ("not A", DENIED),
        ("not A or B", DENIED),
        ("A is incorrect", DENIED),
        ("A or B", UNCLEAR),
        ("both A and B", UNCLEAR),
        ("A, B", UNCLEAR),
        ("between A and B", UNCLEAR),
        ("nothing", NOTHING),
    ],
)
def test_which_answer_is_given(text: str, reading: Reading) -> None:
    assert answer_text.given(text, mentions(text)) == reading


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("de", "nicht A, sondern B"),
        ("es", "no A sino B"),
        ("fr", "pas A mais B"),
        ("ru", "не A, а B"),
        ("sw", "si A bali B"),
    ],
)
def test_denials_of_other_languages(language: str, text: str) -> None:
    assert answer_text.given(text, mentions(text), language) == Reading("B")


def test_a_conclusion_counts_only_where_it_is_asked_for() -> None:
    text = "A and B hold, so C"
    assert answer_text.given(text, mentions(text), conclusions=True) == Reading("C")
    assert answer_text.given(text, mentions(text)) == UNCLEAR
