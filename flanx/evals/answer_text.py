"""The text of an output, prepared for extraction: plain characters, sentences, announcements, and denials.

The phrases of the eleven languages are in answers.toml. All of them count in every language, since models also answer
in English.
"""

import functools
import importlib.resources
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# A letter, digit or vowel sign, which continues a word. `\w` alone misses the vowel signs of Bengali, Telugu and Thai.
WORD = r"[\w\u0981-\u0983\u09bc-\u09cd\u09d7\u0c00-\u0c04\u0c3e-\u0c56\u0e31-\u0e3a\u0e47-\u0e4e]"


@functools.cache
def languages() -> dict[str, dict[str, Any]]:
    """The tables of answers.toml, normalized as `plain` normalizes outputs."""
    text = importlib.resources.files("flanx.evals").joinpath("answers.toml").read_text(encoding="utf-8")
    return tomllib.loads(unicodedata.normalize("NFKC", text))


def phrases(key: str, used: Iterable[str] = ()) -> list[str]:
    """The entries of a key in the languages `used` (all by default), as regular expressions, longest first."""
    found = {each for language in used or languages() for each in languages()[language].get(key, ())}
    return sorted((whole_words(each) for each in found), key=len, reverse=True)


def whole_words(phrase: str) -> str:
    """A regular expression for a phrase at word boundaries; scripts without spaces have no such boundaries."""
    if not re.match(r"[\w']", phrase) or re.match("[\u0e00-\u0eff\u3040-\u9fff]", phrase):
        return phrase
    return (rf"(?<!{WORD})" if phrase[0] != "n" or phrase[1:2] != "'" else "") + rf"{phrase}(?!{WORD})"


# --- plain text -----------------------------------------------------------------------------------------------------

_CHARACTERS = dict.fromkeys(map(ord, "‐‑‒–−"), "-") | dict.fromkeys(map(ord, "’‘`´"), "'")
_CHARACTERS |= dict.fromkeys(map(ord, "“”„«»"), '"') | {ord("٫"): ".", ord("٬"): ",", ord("×"): "*", ord("÷"): "/"}
_LATEX = [
    (r"(?<=\d)\s*\*\*\s*(?=\d)", "^"),
    (r"<<[^<>\n]*>>", ""),  # GSM8K's calculator annotations
    (r"\\[dt]?frac\s*\{\s*([\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}", r" \1/\2 "),
    (r"\\[dt]?frac\s*(\d)\s*(\d)", r" \1/\2 "),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"(?<=\d)\{([,.])\}(?=\d)", r"\1"),
    (r"(?<=\d)(?:\\[,;:! ]|~)(?=\d{3})", " "),
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r"\1"),
    (r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r"\\boxed \1 "),
    (r"\^\s*\{\s*(-?\d+)\s*\}", r"^\1"),
    (r"\\(?:times|cdot)(?![a-zA-Z])", "*"),
    (r"\\div(?![a-zA-Z])", "/"),
    (r"\\(?:left|right|displaystyle|quad)(?![a-zA-Z])", ""),
    (r"\\([%$#&_{}])", r"\1"),
    (r"\\[()\[\],;:!]|\*\*|__|`", ""),
    (r"<(b|i|em|strong)>(.*?)</\1>", r"\2"),
]
_LATEX_PATTERNS = [(re.compile(pattern), text) for pattern, text in _LATEX]


def plain(text: str) -> str:
    """Applies NFKC, maps digits and signs to ASCII and removes markup; keeps line breaks."""
    text = text.replace("\r\n", "\n")
    for pattern, replacement in _LATEX_PATTERNS:
        text = pattern.sub(replacement, text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", "".join(map(_character, text.translate(_CHARACTERS))))
        text = re.sub(r"(?<=\^)\d+(?:\^\d+)*", lambda power: power[0].replace("^", ""), text)
        text = "".join(c if c.isascii() else _ascii_digit(c) for c in text).translate(_CHARACTERS)
    return text.strip()


def _character(c: str) -> str:
    """Rewrites what NFKC would garble: fractions and superscripts (10³ is not 103); drops invisible marks."""
    if c.isascii():
        return c
    form = unicodedata.decomposition(c)
    if form.startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", c).replace("\u2044", "/") + " "
    if form.startswith("<super>") and c.isdigit():
        return f"^{unicodedata.digit(c)}"
    return "" if unicodedata.category(c) == "Cf" else "/" if c == "\u2044" else c


def _ascii_digit(c: str) -> str:
    digit = unicodedata.decimal(c, None)
    return c if digit is None else str(digit)


def comparable(text: str) -> str:
    """Lower case, single spaces, no surrounding quotes or punctuation."""
    return " ".join(text.lower().split()).strip(" \"'.,;:!?")


# --- sentences -------------------------------------------------------------------------------------------------------

_SHORT = re.compile(r"\b(Rs|approx|ca|No|Nr|Mio|Mrd|Tsd|тыс|млн|млрд|руб|vs)\.(?=\s)")  # not ends of sentences
_END = re.compile(r"[.!?](?=[\s\"')\]]|$)|(?<=\d)\.(?=[^\W\d_a-zA-Z])|[。।!?！？]|\n")
_LONG_LABEL, _LETTER_LABEL = (
    "|".join(re.escape(each) for table in languages().values() for each in table["label"] if (len(each) > 1) == long)
    for long in (True, False)
)
_LABEL = re.compile(
    rf"\n\s*(?:{_LONG_LABEL}|{_LETTER_LABEL})\s?:"
    rf"|(?<=[\s.!?。।！？])(?:{_LONG_LABEL})\s?:|(?<=[.!?)] )(?:{_LETTER_LABEL})\s?:"
)


def until_next_question(text: str) -> str:
    """The text before the label of a question that the model invented ("Q:", "Frage:"); a leading label is kept."""
    match = _LABEL.search(text, 1)
    return text[: match.start()].rstrip() if match else text


def sentences(text: str) -> list[str]:
    """The sentences or lines of a text with their full stops; blank ones are dropped."""
    text, found, start = _SHORT.sub(r"\1", text), [], 0
    for match in _END.finditer(text):
        found.append(text[start : match.end()].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if re.search(r"[^\s.!?\"')\]]", sentence)]


# --- announcements ---------------------------------------------------------------------------------------------------

ANNOUNCE = re.compile("|".join(e for table in languages().values() for e in table["announce"]), re.IGNORECASE)
INVERTED = re.compile("|".join(e for table in languages().values() for e in table["inverted"]), re.IGNORECASE)
_RATIONALE = re.compile(rf"(?:{'|'.join(phrases('rationale'))})\s?:", re.IGNORECASE)
CONCLUDING = re.compile(rf"^\s*(?:{'|'.join(phrases('concluding'))})[\s,:]*", re.IGNORECASE)


_LONGEST = 300  # characters of a sentence that ends in "... is the answer"


class Announced(NamedTuple):
    """A part of an output where an answer is announced: after a phrase, or (`inverted`) before one."""

    start: int
    text: str
    inverted: bool


def announcements(text: str) -> list[Announced]:
    """All announcements in order; the announced text extends to the next announcement."""
    text = _RATIONALE.sub(lambda label: " " * len(label[0]), text)
    matches = list(ANNOUNCE.finditer(text))
    ends = [*(match.start() for match in matches), len(text)]
    found = []
    for match, end in zip(matches, ends[1:], strict=True):
        behind = ANNOUNCE.sub(" ", text[match.end() : end]).lstrip(" \t\n:=—").rstrip()
        found.append(Announced(match.start(), behind, False))
    for match in INVERTED.finditer(text):
        before = sentences(text[max(0, match.start() - _LONGEST) : match.start()])
        if before and not text[: match.start()].rstrip().endswith((".", "\n")):
            found.append(Announced(match.start(), before[-1], True))
    return sorted(found)


# --- which of the mentioned answers is given -------------------------------------------------------------------------


class Mention(NamedTuple):
    """An answer that a sentence mentions, and its position."""

    start: int
    end: int
    value: str


class Reading(NamedTuple):
    """The answer that part of an output gives, or None.

    why: the reason for None: "denied", "unclear" (two answers), or "" if there is no answer at all.
    """

    answer: str | None
    why: str = ""


NOTHING, DENIED, UNCLEAR = Reading(None), Reading(None, "denied"), Reading(None, "unclear")

_REASON = re.compile(r"\b(?:because|since|as it|as they|given that)\b", re.IGNORECASE)
_CORRECTION = re.compile(r"\b(?:sorry|wait|actually|i mean|correction|scratch that|or rather)\b", re.IGNORECASE)
_CONCLUSION = re.compile(r"\b(?:so|therefore|thus|hence)\b", re.IGNORECASE)
_PUNCTUATION = r"[\s)(\"',.;\[\]]*"


@functools.cache
def _patterns(language: str) -> dict[str, re.Pattern[str]]:
    """Patterns that deny, allow or join answers in a language and in English."""
    used = ("en", language)
    deny, denied, allow, either, ranges = (
        f"(?:{'|'.join(phrases(key, used))})" for key in ("deny", "denied", "allow", "either", "range")
    )
    return {
        "deny": re.compile(deny, re.IGNORECASE),
        "denied": re.compile(rf"[\s)\]\"',]*{denied}", re.IGNORECASE),
        "allow": re.compile(rf"{allow}|[;:]", re.IGNORECASE),
        "either": re.compile(
            rf"{_PUNCTUATION}(?:{either}|[/&])?{_PUNCTUATION}(?:(?:also|the|option)\s+)?\(?", re.IGNORECASE
        ),
        "range": re.compile(rf"{ranges}\W*$", re.IGNORECASE),
    }


def given(text: str, mentions: Sequence[Mention], language: str = "en", conclusions: bool = False) -> Reading:
    """The answer that a sentence gives, out of those that it mentions.

    Denied answers do not count ("not A but B", "A is wrong"), and an open choice ("A or B") gives none. A correction
    ("A, sorry, B") counts; with `conclusions`, so does what follows the last "so".
    """
    if not mentions:
        return NOTHING
    reason = _REASON.search(text, mentions[0].end)
    patterns, affirmed, end, is_denied = _patterns(language), [], 0, False
    for mention in mentions:
        if reason and mention.start > reason.start():
            break
        between = text[end : mention.start]
        denials = list(patterns["deny"].finditer(between))
        if denials:
            behind = between[denials[-1].end() :]
            is_denied = not patterns["allow"].search(behind) and len(behind.split()) <= 4
        else:
            is_denied = is_denied and patterns["either"].fullmatch(between) is not None and "," not in between
        denied = patterns["denied"].match(text, mention.end)
        if not is_denied and not denied:
            affirmed.append(mention)
        end = denied.end() if denied and not is_denied else mention.end
    for pattern in (_CORRECTION, _CONCLUSION) if conclusions else (_CORRECTION,):
        if turns := list(pattern.finditer(text)):
            affirmed = [mention for mention in affirmed if mention.start > turns[-1].start()] or affirmed
    if not affirmed:
        return DENIED
    first = affirmed[0]
    for other in affirmed[1:]:
        if other.value != first.value:
            joined = patterns["either"].fullmatch(text[first.end : other.start])
            return UNCLEAR if joined or patterns["range"].search(text[: first.start]) else Reading(first.value)
        first = other
    return Reading(first.value)
