"""Numbers as models write them in the languages of MGSM: digits, scales, fractions, words, and simple arithmetic.

A number's canonical form is a reduced fraction as text: "18", "3/4", "-2469/2".
"""

import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from flanx.evals.answer_text import NOTHING, WORD, Reading, given, languages, phrases, sentences

_MAX_DIGITS = 40  # longer runs of digits are runaway text, not answers
_MAX_SENTENCE, _MAX_SENTENCES = 400, 10  # the most characters and sentences searched for a number
_MAX_POWER, _MAX_DEPTH, _MAX_TERMS = 40, 10, 40  # limits for evaluating an expression
_CURRENCY = r"(?:(?:\b(?:US|R|CA|A))?[$€£¥₹฿₽৳]|\b(?:USD|EUR|Rs|INR)\b)"
_BLANK = r"(?:\s|%|" + _CURRENCY + ")*"


def number(text: str, language: str) -> Reading:
    """The number given by the first sentence that contains one."""
    text = re.sub(r"\b\d{1,2}:\d{2}(?::\d{2})?\b|\b\d+/\d+/\d+\b", " ", text)  # times and dates are not numbers
    for sentence in sentences(text)[:_MAX_SENTENCES]:
        reading = _of_sentence(sentence, language)
        if reading != NOTHING:
            return reading
    return NOTHING


def equation(text: str, language: str) -> Reading:
    """The result of an output that contains only equations, such as "3 + 9 = 12"."""
    if re.fullmatch(r"[\d\s.,$€£¥%()+*/=^x-]+=[\d\s.,$€£¥%-]*\d[\s.%]*", text):
        return _of_sentence(sentences(text)[-1], language)
    return NOTHING


def repeated(text: str, language: str) -> Reading:
    """The number of a last sentence that repeats, in the same words, the result of the equation before it."""
    *earlier, last = sentences(text) or [""]
    if not earlier or "=" in last or not re.search(r"[.!。।！]$", text):
        return NOTHING
    mentions = _mentions(last[:_MAX_SENTENCE], language)
    result = _mentions(earlier[-1].rpartition("=")[2][:_MAX_SENTENCE], language)
    if "=" not in earlier[-1] or not result or {mention.value for mention in mentions} != {result[0].value}:
        return NOTHING
    first, again = (set(re.findall(r"\w+", re.sub(r"[\d.,]+", " ", each.lower()))) for each in (earlier[-1], last))
    return Reading(result[0].value) if again <= first else NOTHING


def _of_sentence(sentence: str, language: str) -> Reading:
    """The number that a sentence gives: the result of its equation, or the first number mentioned."""
    sentence = sentence[:_MAX_SENTENCE]
    sentence = re.sub(r"(?<=[\d%])\s*\([^()]*[=a-zA-Z][^()]*\)", " ", sentence)  # an aside, as in "18 (16 + 2 = 18)"
    if "=" in sentence:
        left, right = sentence.partition("=")[0], sentence.rpartition("=")[2]
        results, before = _mentions(right, language), _mentions(left, language)
        if before and before[-1].literal and not (results and results[0].literal):  # 18 = 9 * 2, 18 = x
            return Reading(before[-1].value)
        if results:
            return given(right, results, language)
        return Reading(before[-1].value) if before else NOTHING
    return given(sentence, _mentions(sentence, language), language)


class _Number(NamedTuple):
    """A number in a text, like `answer_text.Mention`; `literal`: written as one number, not as an expression."""

    start: int
    end: int
    value: str
    literal: bool


def _mentions(text: str, language: str) -> list[Any]:
    """Every number in a text in order, with expressions evaluated; number words only if there are no digits."""
    text = re.sub(r"(?<=\d)\s*[x·∙⋅]\s*(?=[\d$(])", "*", text)
    text = _AFTER_DIGITS.sub(lambda match: _AND_A_HALF[match[0].lower()], text)
    text = re.sub(r"(?<=\d)\s+and\s+(?=\d+/\d)", " ", text)  # 2 and 1/2
    tokens = _tokens(text, language)
    found, index = [], 0
    while index < len(tokens):
        parser = _Parser(text, tokens, index)
        value = parser.sum()
        if value is None:
            index = max(index + 1, parser.index)
            continue
        end = tokens[parser.index - 1].end
        if re.search(_minus(language), text[: tokens[index].start]):
            value = -value
        found.append(_Number(tokens[index].start, end, str(value), parser.numbers == 1))
        index = parser.index
    return found or _words(text, language)


# --- digits ----------------------------------------------------------------------------------------------------------


class _Token(NamedTuple):
    start: int
    end: int
    kind: str  # "number", or the sign itself
    value: Fraction


_LITERAL = r"\d{1,3}(?: \d{3})+(?!\d)(?:[.,]\d+)?|\d[\d.,'_]*\d|\d|(?<!\d)\.\d+"


@functools.cache
def _literal(language: str) -> re.Pattern[str]:
    scales = "|".join(sorted(map(re.escape, _scales(language)), key=len, reverse=True))
    ending = rf"(?!{WORD})" if not languages()[language].get("compound") or language == "de" else "(?![a-z])"
    scale = rf"(?:\s?-?(?i:{scales}){ending}\.?|[kKMB](?![A-Za-z]))"
    prefix = rf"(?:(?i:{scales})\s+)?" if languages()[language].get("prefix_scale") else ""
    return re.compile(
        rf"""(?P<mixed>(?<![\w.,])\d+\s+\d+\s?/\s?\d+)(?![\d/])
        |(?<![A-Za-z_\d])(?<!\d[.,])(?<![A-Za-z]-)(?P<prefix>{prefix.replace(" ", "[ ]")})
         (?P<body>{_LITERAL.replace(" ", "[ ]")})(?!\d)(?P<power>[eE][+-]?\d{{1,2}}(?!\d))?
         (?P<scale>(?:{scale.replace(" ", "[ ]")}){{0,3}})(?![xyzn](?![A-Za-z]))
        |(?P<sign>[-+*/^()=])""",
        re.VERBOSE,
    )


@functools.cache
def _scales(language: str) -> dict[str, int]:
    """{word: factor}; the single letters k, M and B are read only directly after digits."""
    tables = languages()
    found = {**tables["en"]["scales"], **tables[language]["scales"]}
    return {word.lower(): factor for word, factor in found.items() if len(word) > 1 or not word.isascii()}


_LETTERS = {"k": 1000, "K": 1000, "M": 10**6, "B": 10**9}


def _tokens(text: str, language: str) -> list[_Token]:
    found: list[_Token] = []
    for match in _literal(language).finditer(text):
        if match["sign"]:
            found.append(_Token(match.start(), match.end(), match["sign"], Fraction(0)))
            continue
        if match["mixed"]:
            whole, above, below = map(int, re.findall(r"\d+", match["mixed"]))
            value = Fraction(whole) + Fraction(above, below) if below else None
        else:
            value = _value(match["body"], language)
        if value is None:
            continue
        factor = _factor((match["prefix"] or "") + (match["scale"] or ""), language)
        if match["power"]:
            factor *= Fraction(10) ** int(match["power"][1:])
        end = match.end()
        last = found[-1] if found else None
        if (  # 2 million 500 thousand, 1万2345
            last
            and last.kind == "number"
            and last.value.denominator == 1
            and value * factor < _last_scale(text, last, language)
            and text[last.end : match.start()].strip() in ("", *languages()[language].get("joins", ()))
        ):
            found[-1] = _Token(last.start, end, "number", last.value + value * factor)
        else:
            found.append(_Token(match.start(), end, "number", value * factor))
    return found


def _factor(text: str, language: str) -> Fraction:
    """The product of the scales in a text."""
    scales, factor = _scales(language), Fraction(1)
    pattern = "|".join(sorted(map(re.escape, scales), key=len, reverse=True))
    for word in re.findall(rf"(?i:{pattern})|[kKMB]", text):
        factor *= _LETTERS.get(word) or scales[word.lower()]
    return factor


def _last_scale(text: str, token: _Token, language: str) -> Fraction:
    """The smallest scale that a number ends with; 0 if there is none."""
    pattern = "|".join(sorted(map(re.escape, _scales(language)), key=len, reverse=True))
    match = re.search(rf"((?i:{pattern}))\.?$", text[token.start : token.end])
    return Fraction(_scales(language)[match[1].lower()]) if match else Fraction(0)


def _value(body: str, language: str) -> Fraction | None:
    """The value of digits with thousands separators and a decimal mark; None for runaway digits or a list."""
    body = re.sub("[' _]", "", body.rstrip(".,'"))
    if sum(map(str.isdigit, body)) > _MAX_DIGITS:
        return None
    comma = languages()[language].get("decimal") == ","
    groups = r"[1-9]\d{0,2}(?:\%s\d{3})+"
    if "." in body and "," in body:
        mark = max(body.rfind("."), body.rfind(","))
        whole, part = re.sub("[.,]", "", body[:mark]), body[mark + 1 :]
    elif "," in body:
        grouped = re.fullmatch(r"[1-9]\d{0,2}(?:,\d{2,3})*,\d{3}", body) and (body.count(",") > 1 or not comma)
        whole, part = (body.replace(",", ""), "") if grouped else _split(body, ",")
    else:
        grouped = re.fullmatch(groups % ".", body) and (body.count(".") > 1 or comma)
        whole, part = (body.replace(".", ""), "") if grouped else _split(body, ".")
    if not (whole + part).isdigit():
        return None
    return Fraction(int(whole + part), 10 ** len(part))


def _split(body: str, mark: str) -> tuple[str, str]:
    whole, _, part = body.rpartition(mark) if mark in body else (body, "", "")
    return whole or "0", part


# --- arithmetic ------------------------------------------------------------------------------------------------------


class _Parser:
    """Evaluates an expression from token `index` on, with usual precedence; leaves signs without numbers alone."""

    def __init__(self, text: str, tokens: Sequence[_Token], index: int) -> None:
        self.text, self.tokens, self.index, self.numbers, self.depth = text, tokens, index, 0, 0

    def _next(self, kinds: str | tuple[str, ...]) -> str | None:
        """The kind of the next token if it is one of these and only spaces or a currency precede it."""
        if self.index >= len(self.tokens):
            return None
        token = self.tokens[self.index]
        before = self.tokens[self.index - 1].end if self.index else token.start
        is_next = self.numbers == 0 or re.fullmatch(_BLANK, self.text[before : token.start])
        return token.kind if token.kind in kinds and is_next else None

    def sum(self) -> Fraction | None:
        """term {+- term}"""
        value = self._product()
        while value is not None and (sign := self._next("+-")):
            start = self.index
            self.index += 1
            term = self._product()
            if term is None:
                self.index = start
                break
            value = value + term if sign == "+" else value - term
        return value

    def _product(self) -> Fraction | None:
        """power {*/ power}; None for a division by zero"""
        value = self._power()
        while value is not None and (sign := self._next("*/")):
            start = self.index
            self.index += 1
            factor = self._power()
            if factor is None:
                self.index = start
                break
            if sign == "/" and not factor:
                return None
            value = value * factor if sign == "*" else value / factor
        return value

    def _power(self) -> Fraction | None:
        """atom [^ atom]"""
        value = self._atom()
        if value is not None and self._next("^"):
            start = self.index
            self.index += 1
            power = self._atom()
            if power is None or power.denominator != 1 or abs(power) > _MAX_POWER or (not value and power < 0):
                self.index = start
            else:
                return value ** int(power)
        return value

    def _atom(self) -> Fraction | None:
        """a number, a sign and an atom, or a sum in parentheses"""
        start, sign = self.index, self._next(("number", "-", "+", "("))
        if sign is None or self.depth > _MAX_DEPTH or self.numbers > _MAX_TERMS:
            return None
        self.index += 1
        if sign == "number":
            self.numbers += 1
            return self.tokens[start].value
        self.depth += 1
        value = self.sum() if sign == "(" else self._atom()
        self.depth -= 1
        closed = sign != "(" or self._next(")")
        if value is None or not closed:
            self.index = start
            return None
        self.index += sign == "("
        return -value if sign == "-" else value


# --- words -----------------------------------------------------------------------------------------------------------


@functools.cache
def _minus(language: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{'|'.join(phrases('minus', ('en', language)))})\s*$", re.IGNORECASE)


@functools.cache
def _vocabulary(language: str) -> tuple[re.Pattern[str], re.Pattern[str], dict[str, tuple[int, bool]]]:
    """Patterns for a run of number words and for a single word, and {word: (value, whether it multiplies)}."""
    table = languages()[language]
    words = {word: (value, True) for word, value in table["scales"].items() if len(word) > 1 or not word.isascii()}
    words |= {word: (value, False) for word, value in table.get("numbers", {}).items()}
    for first, step, key in ((0, 1, "ones"), (20, 10, "tens")):
        for index, variants in enumerate(table.get(key, "").split()):
            words |= {word: (first + step * index, False) for word in variants.split("/")}
    one = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    joins = "|".join(table.get("joins", ())) or "(?!)"
    if table.get("compound"):
        edges = (rf"(?<!{WORD})", rf"(?!{WORD})") if language == "de" else ("", "")
        run = rf"{edges[0]}(?:{one})(?:[\s-]*(?:{joins})?[\s-]*(?:{one}))*{edges[1]}"
    else:
        ending = rf"(?:টি|টা|জন|টাকা)?(?!{WORD})"
        run = rf"(?<!{WORD})(?:{one})(?:[\s-]+(?:(?:{joins})\s+)?(?:{one}))*{ending}"
    return re.compile(run, re.IGNORECASE), re.compile(one, re.IGNORECASE), words


_HALVES = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "thirds": 3,
    "quarter": 4,
    "quarters": 4,
    "fourth": 4,
    "fourths": 4,
    "fifth": 5,
}
_FRACTION = re.compile(
    rf"\b(?:(?P<whole>[a-z]+)\s+and\s+)?(?:(?P<above>an?|\w+)[\s-]+)?(?P<below>{'|'.join(_HALVES)})\b", re.IGNORECASE
)
_AND_A_HALF = {" and a half": ".5", " and one half": ".5", " and a quarter": ".25", " and three quarters": ".75"}
_AFTER_DIGITS = re.compile(rf"(?<=\d)(?:{'|'.join(_AND_A_HALF)})\b", re.IGNORECASE)


def _words(text: str, language: str) -> list[Any]:
    """The numbers that a text spells out in its language, or else in English."""
    found: list[Any] = []
    text = re.sub("一(?=[共起样些定直般緒番致部])", " ", text)
    for used in dict.fromkeys((language, "en")):
        run, one, values = _vocabulary(used)
        found = []
        for match in run.finditer(text):
            value = _total([values[word.lower()] for word in one.findall(match[0])], used)
            if value is not None:
                value = -value if _minus(used).search(text[: match.start()]) else value
                found.append(_Number(match.start(), match.end(), str(value), True))
        if found:
            break
    for match in _FRACTION.finditer(text) if language == "en" and "dozen" not in text else ():
        values = _vocabulary("en")[2]
        above = values.get((match["above"] or "a").lower(), (1, False))[0]
        whole = values.get((match["whole"] or "").lower(), (0, False))[0]  # two and a half
        mixed = whole + Fraction(above, _HALVES[match["below"].lower()])
        found = [_Number(match.start(), match.end(), str(mixed), True)]
    return found


def _total(words: Sequence[tuple[int, bool]], language: str) -> int | None:
    """The value of number words in order, each (value, whether it multiplies); None if they are several numbers."""
    parts: list[int] = []
    if languages()[language].get("prefix_scale"):
        words = _scales_last(words)
    for value, multiplies in words:
        if multiplies:
            below = 0
            while parts and parts[-1] < value:
                below += parts.pop()
            parts.append((below or 1) * value)
        elif parts and not value:  # 一千零五
            continue
        elif not parts or _adds(parts[-1], value, language):
            parts.append(value)
        else:
            return None
    return sum(parts)


def _scales_last(words: Sequence[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """Swahili's "thousand two, hundred three" in the order of the other languages."""
    found: list[tuple[int, bool]] = []
    index = 0
    while index < len(words):
        scale, multiplies = words[index]
        index += 1
        if not multiplies:
            found.append((scale, False))
            continue
        start = index
        if index < len(words) and not words[index][1] and (scale > 100 or words[index][0] < 10):
            index += 1
            if words[start][0] >= 10 and index < len(words) and not words[index][1] and words[index][0] < 10:
                index += 1
        found += [*words[start:index], (scale, True)]
    return found


def _adds(last: int, value: int, language: str) -> bool:
    """Whether a word adds to the one before it: twenty five, fünf-und-zwanzig, soixante-douze."""
    if last > value:
        return last % 10 ** len(str(value)) == 0 or (language == "fr" and last in (60, 80) and 10 <= value < 20)
    return language == "de" and last < 10 and value >= 20 and value % 10 == 0
