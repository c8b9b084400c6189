"""Answers read from what models write: a corpus, a fuzz, and the gold answers of the real benchmarks."""

import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanx.evals import answer_text, answers

CORPUS = pathlib.Path(__file__).with_name("corpus") / "extraction.tsv"


def cases() -> list[tuple[str, ...]]:
    """(kind, mode, language, text, answer) of every line of the corpus."""
    lines = CORPUS.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("# "):
            cells = line.split("\t")
            assert len(cells) == 5, f"{CORPUS}:{number}: {len(cells)} cells"
            found.append(tuple(cells))
    return found


def test_corpus_is_large_and_names_known_kinds() -> None:
    assert len(cases()) >= 300
    assert {kind for kind, *_ in cases()} == set(answers.KINDS)
    assert {language for _, _, language, _, _ in cases()} == set(answer_text.languages())


def test_every_case_of_the_corpus() -> None:
    wrong = []
    for kind, mode, language, text, wanted in cases():
        text = text.replace("\\n", "\n").replace("\\\\", "\\")
        found = answers.extract(text, kind, mode == "cot", language)
        if (found if found is not None else "-") != wanted:
            wrong.append((kind, mode, language, text, wanted, found))
    assert not wrong, "\n".join(map(str, wrong))


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=60),
    st.sampled_from(answers.KINDS),
    st.booleans(),
    st.sampled_from(sorted(answer_text.languages())),
)
def test_no_text_makes_it_raise(text: str, kind: str, cot: bool, language: str) -> None:
    for prefix in ("", "The answer is "):
        found = answers.extract(prefix + text, kind, cot, language)
        assert found is None or found
        answers.same(prefix + text, text, kind, cot, language)


NUMBERS = "0123456789.,-/ $%=+\u00a0'(২٣৫๕"


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=NUMBERS, max_size=40), st.sampled_from(sorted(answer_text.languages())))
def test_no_run_of_digits_makes_it_raise(text: str, language: str) -> None:
    answers.extract(text, "number", False, language)


@pytest.mark.parametrize("size", [20_000])
def test_runaway_text_is_read_in_time(size: int) -> None:
    for piece in ("9", "1,", "the answer is ", "(", "a ", "Q: 1/", "- "):
        for kind in answers.KINDS:
            answers.extract(piece * (size // len(piece)), kind, True)


@pytest.mark.parametrize("language", sorted(answer_text.languages()))
@pytest.mark.parametrize("value", [0, 7, 1234, 114200])
def test_every_written_number_reads_back(language: str, value: int) -> None:
    assert answers.extract(str(value), "number", False, language) == str(value)
    written = f"{value:,}"
    if answer_text.languages()[language].get("decimal") == ",":
        written = written.replace(",", ".")
    assert answers.extract(written, "number", False, language) == str(value)
    assert answers.extract("-" + written, "number", False, language) == str(-value)
    assert answers.extract(f"{value:,}".replace(",", " "), "number", False, language) == str(value)
    assert answers.extract(f"{value:,}".replace(",", "\u202f"), "number", False, language) == str(value)


def test_same_tells_wrong_from_unreadable() -> None:
    assert answers.same("The answer is (B).", "(B)", "letter") is True
    assert answers.same("The answer is (C).", "(B)", "letter") is False
    assert answers.same("I do not know", "(B)", "letter") is None
    assert answers.same("Monsters, Inc", "Monsters, Inc", "letter") is True  # BBH: a few gold answers are free text
    assert answers.same("So the answer is Monsters, Inc.", "Monsters, Inc", "letter", cot=True) is True
    assert answers.same("The answer is 70000", "70,000", "number") is True
    assert answers.same("0.75", "3/4", "number") is True
    assert answers.same("OLLEH", "olleh", "exact") is False
    assert answers.same("rev; up. Answer: OLLEH", "OLLEH", "final", cot=True) is True
    assert answers.same("rev; up. Answer: olleh", "OLLEH", "final", cot=True) is False
    assert answers.same("OLLEH", "OLLEH", "final", cot=True) is None
