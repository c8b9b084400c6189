"""Extracts the answer from a model's output, in a canonical form that can be compared.

`read(text, kind, cot, language, options)` returns a canonical answer and how it was read. If there is none, that is
counted as an extraction failure, never as a wrong answer. It never raises. `canonical(gold, kind)` does the same for
a gold answer. Kinds:

    letter      "(B)", "B.", "answer is (B)", the text of option B -> "B"
    number      "$1,234.50", "3/4", "২৫", "12 thousand", "eighteen" -> a reduced fraction as text, "2469/2", "3/4", "25"
    yes_no, true_false, validity    -> one of the words of `answer_choices.WORDS`
    brackets    closing brackets, separated by single spaces
    words       a list of words in order, lower case, separated by single spaces
    text        lower case, single spaces, no surrounding quotes or punctuation
    exact       the text as it is, stripped
    phrase      the text before the first punctuation mark or line break, lower case, without a leading article
    pronoun     "he" or "she", whichever's forms occur in the text; "both" if both do
    final       the text after the last "Answer:" or "answer is", as it is
    last        the same; if nothing is announced, the text as it is (a fallback)

With a rationale (`cot`), only the last announced answer counts; without one, the first answer in the output does. Two
answers ("(A) or (B)") count as none. A suite with rationales may define a fallback for a finished output that announces
nothing: its closing sentence, if that is nothing but an answer ("Therefore (B).", "3 + 9 = 12"). Scores count the
answers read this way (`read_by_fallback`).
"""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from flanx.evals import answer_choices as choices
from flanx.evals import answer_numbers as numbers
from flanx.evals.answer_text import (
    DENIED,
    NOTHING,
    Reading,
    announcements,
    comparable,
    plain,
    sentences,
    until_next_question,
)

# Bumped when any reading changes: tests/corpus/readings.jsonl holds the readings of each version. Scores of different
# versions are not comparable; `flanx rescore` makes them comparable.
EXTRACTOR_VERSION = 2

LITERAL = ("exact", "final", "last")  # compared character by character
KINDS = ("letter", "number", *choices.WORDS, "brackets", "words", "text", *LITERAL, "phrase", "pronoun")
FALLBACKS = ("conclusion", "none")

ANNOUNCED, DIRECT, FALLBACK = "announced", "direct", "fallback"
_BRACKETS = "()[]{}<>"
_CORRECTED = re.compile(r"\b(?:sorry|wait|no|actually|correction|i mean)\W*(?:so\s+|that\s+)?$", re.IGNORECASE)
_NEW_START = re.compile(r"[.!?…。]\s+(?:sorry|wait|no|actually|correction|i mean)\s*[,:]\s*", re.IGNORECASE)
_PRONOUNS = {"he": {"he", "him", "his", "himself"}, "she": {"she", "her", "hers", "herself"}}
_TRIED = 20  # the most announcements examined in an output that loops


class Answer(NamedTuple):
    """An answer in canonical form, or None, and how it was read: "announced", "direct", or "fallback"."""

    value: str | None
    source: str


def read(
    text: str,
    kind: str,
    cot: bool = False,
    language: str = "en",
    options: Mapping[str, str] | None = None,
    fallback: bool = True,
) -> Answer:
    """The answer that an output gives; `options`: {letter: text} of the question's options."""
    if kind in _WHOLE:
        return Answer(_WHOLE[kind](text) or None, DIRECT)
    if kind in ("final", "last"):
        parts = re.split(r"\b[Aa]nswer(?:\s+is|:)", text)[1:]
        if not parts:
            return Answer((text.strip() or None) if kind == "last" else None, FALLBACK)
        return Answer(parts[-1].strip().split("\n")[0].strip() or None, ANNOUNCED)
    text = until_next_question(plain(text))
    announced = announcements(text)
    # Without a rationale the first counts, unless corrected ("... Sorry, the answer is B").
    last_first = cot or any(_CORRECTED.search(text[: part.start]) for part in announced[1:_TRIED])
    for part in announced[:-_TRIED:-1] if last_first else announced[:_TRIED]:
        reading = _announced(part.text, kind, language, options or {})
        if part.inverted and reading.answer is None:
            continue
        if reading not in (NOTHING, DENIED) or (part.text.strip("$ :") and reading != DENIED):
            return Answer(reading.answer, ANNOUNCED)
    if any(not part.inverted for part in announced):  # all of them denied, or cut short
        return Answer(None, ANNOUNCED)
    if not text or (cot and not fallback):
        return Answer(None, FALLBACK if cot else DIRECT)
    reading = (_concluding if cot else _direct)(text, kind, language, options or {})
    return Answer(reading.answer, FALLBACK if cot else DIRECT)


def extract(text: str, kind: str, cot: bool = False, language: str = "en") -> str | None:
    """The canonical answer in `text`, or None."""
    return read(text, kind, cot, language).value


def canonical(gold: str, kind: str) -> str:
    """The canonical form of a gold answer; one that its kind cannot read (a few in BIG-Bench Hard) is kept as text.

    MGSM writes gold numbers the English way in every language ("114,200").
    """
    if kind in LITERAL:
        return gold.strip()
    value = extract(gold, kind)
    return value if value is not None else comparable(plain(gold))


def same(
    text: str,
    gold: str,
    kind: str,
    cot: bool = False,
    language: str = "en",
    options: Mapping[str, str] | None = None,
    fallback: bool = True,
) -> bool | None:
    """Whether `text` gives the answer `gold`; None if no answer can be extracted."""
    answer = read(text, kind, cot, language, options, fallback).value
    if answer is None and kind not in LITERAL and extract(gold, kind) is None:  # "Monsters, Inc" for a letter
        answer = read(text, "text", cot, language, None, fallback).value
    if answer is None or answer == canonical(gold, kind):
        return None if answer is None else True
    # MGSM writes "2,125" in every language: an output that repeats it is right even where a comma marks decimals.
    return kind == "number" and answer == extract(gold, kind, False, language)


def loops(text: str) -> bool:
    """Whether an output ends by repeating the same text: at least four times, over at least 60 characters."""
    tail = text.rstrip()[-2000:]
    for period in range(1, len(tail) // 4 + 1):
        span = max(4 * period, 60)
        if span <= len(tail) and tail[-span:-period] == tail[period - span :]:
            return True
    return False


# --- kinds without announcements: text -> answer or "" ----------------------------------------------------------------


def _phrase(text: str) -> str:
    """A referent as in PaLM (arXiv 2204.02311): case-insensitive, up to punctuation or a line break; and as in Flan
    (arXiv 2210.11416): without a leading article. Hyphens and apostrophes are parts of words."""
    begin = re.split(r"[^\w\s'-]|\n", re.sub(r"^\W+", "", plain(text)).lower(), maxsplit=1)[0]
    return re.sub(r"^(?:the|an?)\s+", "", " ".join(begin.split()))


def _pronoun(text: str) -> str:
    """The pronoun whose forms a translation into English uses."""
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    found = [pronoun for pronoun, forms in _PRONOUNS.items() if words & forms]
    return "both" if len(found) > 1 else "".join(found)


_WHOLE: dict[str, Callable[[str], str]] = {"exact": str.strip, "phrase": _phrase, "pronoun": _pronoun}


# --- by kind: (announced text, kind, language, options) -> reading ---------------------------------------------------


def _announced(text: str, kind: str, language: str, options: Mapping[str, str]) -> Reading:
    """The answer that an announcement gives."""
    if kind == "letter":
        return choices.letter(text, options)
    if kind == "number":
        return numbers.number((sentences(text) or [""])[0], language)
    if kind in choices.WORDS:
        return choices.word(text, kind)
    return _list(text, kind)


def _direct(text: str, kind: str, language: str, options: Mapping[str, str]) -> Reading:
    """The answer that an output without a rationale gives."""
    if kind in ("letter", "number") and (turns := list(_NEW_START.finditer(text))):  # "20. Sorry, 18."
        corrected = _direct(text[turns[-1].end() :], kind, language, options)
        return corrected if corrected != NOTHING else _direct(text[: turns[-1].start()], kind, language, options)
    if kind == "letter":
        return choices.first_letter(text, options)
    if kind == "number":
        return numbers.number(text, language)
    if kind in choices.WORDS:
        return choices.first_word(text, kind)
    return _list(text, kind)


def _concluding(text: str, kind: str, language: str, options: Mapping[str, str]) -> Reading:
    """The answer given by the last sentence of a finished output that announces nothing."""
    if kind == "letter":
        return choices.concluding_letter(text, options)
    if kind == "number":
        last = re.sub(r"[\s.。।]+$", "", (sentences(text) or [""])[-1])
        if re.fullmatch(r"-?[$€£¥₹฿]?\d[\d.,' /]*%?", last):
            return numbers.number(last, language)
        reading = numbers.equation(text, language)
        return reading if reading != NOTHING else numbers.repeated(text, language)
    if kind in choices.WORDS:
        return choices.concluding_word(text, kind)
    is_one = len(sentences(text)) <= 1 and "\n" not in text
    return _list(text, kind) if is_one else NOTHING


def _list(text: str, kind: str) -> Reading:
    """Brackets, words or free text: what the first line gives, or a list of words, one per line."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if kind == "brackets":
        line = next((line for line in lines if any(c in _BRACKETS for c in line)), "")
        return Reading(" ".join(c for c in line if c in _BRACKETS) or None)
    first = lines[0] if lines else ""
    if kind == "text":
        return Reading(comparable(first) or None)
    items = [re.sub(r"^(?:\d+[.):]|[-*•·])\s*", "", line) for line in lines]
    if len(items) > 1 and all(len(item.split()) == 1 for item in items[:2]):
        first = " ".join(itertools.takewhile(lambda item: len(item.split()) == 1, items))
    first = re.sub(r"\(\d+\)|(?<![^\s,;(])(?:\d+[.):]|[a-z]\))(?=\s)", " ", first)  # 1. apple 2. banana
    first = re.sub(
        r",?\s*(?:in|by)\s+(?:alphabetical|lexicographic\w*|sorted)\s+order.*|,\s*sorted\b.*|[.]\s.*", "", first
    )
    first = re.sub(r",\s*and\s", " ", first)
    found = [word.strip("\"'.,;:!?[](){}*•") for word in re.split(r"[\s,;<>|→•、]+|->|(?<!\w)[-*](?!\w)", first)]
    return Reading(" ".join(word.lower() for word in found if word) or None)
