"""From what a model wrote to the answer that it gave, in a form that can be compared.

`extract(text, kind, cot, language)` returns a canonical answer, or None where there is none to be found: that is
counted as an extraction failure, not as a wrong answer. It never raises. `canonical(gold, kind)` is the same for a
gold answer. Kinds:

    letter      "(B)", "B.", "answer is (B)" -> "B"
    number      "$1,234.50", "3/4", "২৫" -> a reduced fraction as text, "2469/2", "3/4", "25"
    yes_no, true_false, validity    -> one of the words of CHOICES
    brackets    closing brackets, separated by single spaces
    words       a list of words in order, lower case, separated by single spaces
    text        lower case, single spaces, no quotes or punctuation around it
    exact       the text as it is, stripped
    final       the text after the last "Answer:" or "answer is", unchanged
    last        the same; where no answer is announced, the whole text

With a rationale (`cot`) the last announced answer counts, without one the first.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction

Parser = Callable[[str, "str | None", bool, str], "str | None"]

# How an answer is announced. The phrases of the eleven MGSM languages are those of the exemplars' answers
# (google-research/url-nlp, mgsm/exemplars.py); German has both forms, since harnesses look for either.
CLOSING = {
    "en": r"(?:the|my|correct|final|right|best)\s+(?:final\s+|correct\s+|right\s+)?(?:answer|choice|option)"
    r"\s*(?:is|:|=|would be|should be|must be)|\banswer\s*(?:is\b|:|=)|####|\\boxed",
    "de": r"die\s+antwort\s+(?:lautet|ist)",
    "es": r"la\s+respuesta\s+(?:final\s+)?es",
    "fr": r"la\s+r[ée]ponse\s+est",
    "ru": r"ответ\s*(?:[—–:-]|равен|это)",
    "sw": r"jibu\s+(?:la\s+mwisho\s+)?ni",
    "ja": r"答え?は",
    "zh": r"答案(?:是|为|為|：|:)",
    "th": r"คำตอบ(?:คือ|:)",
    "te": r"సమాధానం",
    "bn": r"উত্তর(?:টি)?\s*(?:হল|হলো|:)",
}
_CLOSING = re.compile("|".join(CLOSING.values()), re.IGNORECASE)

CHOICES = {
    "yes_no": ("yes", "no"),
    "true_false": ("true", "false"),
    "validity": ("valid", "invalid"),
}
LITERAL = ("exact", "final", "last")  # compared character by character
KINDS = ("letter", "number", *CHOICES, "brackets", "words", "text", *LITERAL)

# Languages that write 1.234,5 (a full stop between thousands), and those that separate thousands by a space.
_COMMA_DECIMAL = {"de", "es", "fr", "ru"}
_SPACE_THOUSANDS = {"fr", "ru"}
_MAX_DIGITS = 40  # longer runs of digits are runaway text, not answers

_MARK = re.compile(r"\\text\{|\\mathrm\{|\\\(|\\\)|\\\[|\\\]|\*\*|__|`")  # markup that may surround an answer
_BRACKETS = "()[]{}<>"
_LETTER = "[A-R]"  # BIG-Bench Hard goes up to (R)


def extract(text: str, kind: str, cot: bool = False, language: str = "en") -> str | None:
    """The canonical answer in `text`, or None."""
    if kind == "exact":
        return text.strip() or None
    if kind in ("final", "last"):
        announced = re.split(r"\b[Aa]nswer(?:\s+is|:)", text)[1:]
        if not announced:
            return (text.strip() or None) if kind == "last" else None
        return announced[-1].strip().split("\n")[0].strip() or None
    text = plain(text)
    if not text:
        return None
    announced = _announced(text, cot)
    return _PARSERS[kind](text, announced, cot, language)


def canonical(gold: str, kind: str, language: str = "en") -> str:
    """The canonical form of a gold answer; one that its kind cannot parse (a few in BIG-Bench Hard) stays text."""
    if kind in LITERAL:
        return gold.strip()
    found = extract(gold, kind, False, language)
    return found if found is not None else _text(plain(gold))


def same(text: str, gold: str, kind: str, cot: bool = False, language: str = "en") -> bool | None:
    """Whether `text` gives the answer `gold`; None where no answer can be found in it."""
    wanted = canonical(gold, kind, language)
    found = extract(text, kind, cot, language)
    if found == wanted or kind in LITERAL:
        return None if found is None else found == wanted
    text = plain(text)
    announced = _announced(text, cot)
    if _text(announced if announced is not None else text) == _text(plain(gold)) != "":
        return True
    return None if found is None else False


def has_stop(text: str, stop: Sequence[str]) -> bool:
    """Whether one of the stop texts occurs in a text, other than at its very beginning."""
    return any(each in text.lstrip() for each in stop)


def until_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts; leading blanks are stripped first, so none of them stops it."""
    text = text.lstrip()
    return text[: min((text.find(each) for each in stop if each in text), default=len(text))]


def plain(text: str) -> str:
    """Composed characters, ASCII digits and signs, no markup; line breaks stay."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n")
    if not text.isascii():
        text = "".join(_plain_character(c) for c in text)
    return _MARK.sub("", text).strip()


def _plain_character(c: str) -> str:
    if c in _SAME_AS:
        return _SAME_AS[c]
    digit = unicodedata.decimal(c, None) if ord(c) > 127 else None
    return c if digit is None else str(digit)


_SAME_AS = {"−": "-", "﹣": "-", "－": "-", "（": "(", "）": ")", "．": ".", "，": ",", "：": ":", "％": "%", "／": "/"}
_SAME_AS |= {"٫": ".", "٬": ",", "\u200b": "", "\u200c": "", "\u200d": "", "\ufeff": "", "’": "'", "‘": "'"}
_SAME_AS |= {"“": '"', "”": '"', "＝": "=", "＄": "$", "\u2060": ""}


def _announced(text: str, cot: bool) -> str | None:
    """What follows the closing phrase (the last one with a rationale, else the first), or None without one."""
    found = list(_CLOSING.finditer(text))
    if not found:
        return None
    return text[(found[-1] if cot else found[0]).end() :].replace("\\boxed", "").lstrip(" \t\n:=—–").rstrip()


# --- parsers: (text, announced answer or None, cot, language) -> answer or None --------------------------------------


def _letter(text: str, announced: str | None, cot: bool, language: str) -> str | None:
    if announced is not None:
        found = re.match(rf"[\s\"'{{$]*(?:(?:option|choice|answer)\s+)?\(?\s*({_LETTER})\s*(?:\)|(?![\w']))", announced)
        if found and not re.match(r"\s*(?:A|I) [a-z]", announced):
            return found[1]
        found = re.search(rf"\(({_LETTER}|{_LETTER.lower()})\)", announced.split("\n")[0])
        return found[1].upper() if found else None
    if found := re.fullmatch(rf"\W*({_LETTER}|{_LETTER.lower()})\W*", text):
        return found[1].upper()
    marked = re.findall(rf"\(\s*({_LETTER})\s*\)", text)
    if marked:
        return marked[-1 if cot else 0]
    if found := re.match(rf"\W*({_LETTER})\s*(?:[.):,]|\n|-\s)", text):
        return found[1]
    named = re.findall(rf"\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+({_LETTER})\b", text)
    return named[-1 if cot else 0] if named else None


_NUMBER = re.compile(
    r"""(?<![\w.,])                                # not inside a word or a longer number
        (?P<sign>-\s?(?=[$€£¥₹฿]?\d)|[+])?
        (?:[$€£¥₹฿]\s?)?
        (?P<sign2>-)?
        (?P<body>\d[\d.,'\u00a0\u2009\u202f ]*\d|\d|\.\d+)
        (?:\s?/\s?(?P<below>\d+)(?![\d/]))?""",
    re.VERBOSE,
)


def _numbers(text: str, language: str) -> list[str]:
    """Every number in the text, canonical, in order."""
    found = []
    # A letter may touch a number in scripts without spaces ("答えは11です"), so those letters are separated first.
    text = re.sub(r"([^\W\d_a-zA-Z])(?=[\d$€£¥₹฿-])", r"\1 ", text)
    for match in _NUMBER.finditer(text):
        pieces = _split_groups(match["body"], language)
        minus = bool(match["sign"] and "-" in match["sign"]) or bool(match["sign2"])
        if match["sign"] and "-" in match["sign"] and re.search(r"[\d)]\s*$", text[: match.start()]):
            minus = False  # 12 - 5 and 3-5 contain no negative number
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            value = _value(piece, match["below"] if last else None, language)
            if value is not None:
                found.append(str(-value if minus and number == 0 else value))
        if len(pieces) == 2 and match["below"] and len(found) > 1:  # 1 1/2
            whole, part = Fraction(found[-2]), Fraction(found[-1])
            if whole.denominator == 1 and 0 < part < 1:
                found[-2:] = [str(whole - part if whole < 0 or minus else whole + part)]
    return found


def _split_groups(body: str, language: str) -> list[str]:
    """Splits "1 234" where the blank does not separate thousands."""
    body = re.sub("[\u00a0\u2009\u202f](?=\\d{3}(?!\\d))", "'", body)
    if language in _SPACE_THOUSANDS:
        body = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "'", body)
    return [piece for piece in re.split("[\u00a0\u2009\u202f ]+", body) if piece.strip(".,'")]


def _value(piece: str, below: str | None, language: str) -> Fraction | None:
    """One number, thousands separators and decimal mark distinguished; None for a runaway one or a division by zero."""
    piece = piece.strip(",'").rstrip(".").replace("'", "")
    if sum(map(str.isdigit, piece)) > _MAX_DIGITS or (below and len(below) > _MAX_DIGITS):
        return None
    if "." in piece and "," in piece:
        decimal = max(piece.rfind("."), piece.rfind(","))
        whole, part = piece[:decimal], piece[decimal + 1 :]
    elif "," in piece:
        grouped = re.fullmatch(r"\d{1,3}(,\d{2,3})*,\d{3}", piece)
        whole, _, part = (piece, "", "") if grouped else piece.rpartition(",")
        if not grouped and "," in whole:  # 1,2,3: a list, of which the last counts
            whole, part = part, ""
    elif "." in piece:
        grouped = re.fullmatch(r"\d{1,3}(\.\d{3})+", piece) and (language in _COMMA_DECIMAL or piece.count(".") > 1)
        whole, _, part = (piece, "", "") if grouped else piece.rpartition(".")
        if not grouped and "." in whole:
            return None
    else:
        whole, part = piece, ""
    whole = re.sub(r"[.,]", "", whole) or "0"
    if not (whole + part).isdigit():
        return None
    value = Fraction(int(whole + part), 10 ** len(part))
    if below is not None:
        return value / int(below) if int(below) else None
    return value


def _number(text: str, announced: str | None, cot: bool, language: str) -> str | None:
    if announced is None:
        found = _numbers(text, language)
        return found[-1] if found else None
    line = next((line for line in announced.split("\n") if line.strip()), "")
    sentence = re.split(r"(?<=[^\d\s])[.。।](?:\s|$)|[!?。।]", line)[0] or line
    after = sentence.rpartition("=")[2] if "=" in sentence else sentence
    for span in (after, sentence, line):
        if found := _numbers(span, language):
            return found[0]
    return None


def _choice(words: tuple[str, str]) -> Parser:
    pattern = re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)

    def read(text: str, announced: str | None, cot: bool, language: str) -> str | None:
        if announced is not None:
            found = pattern.search(re.split(r"[\n.]", announced, maxsplit=1)[0] or announced)
            return found[1].lower() if found and not _denied(announced, found.start()) else None
        if found := re.match(rf"\W*({'|'.join(words)})\b", text, re.IGNORECASE):
            return found[1].lower()
        if words == CHOICES["yes_no"]:  # "no" is too common a word to look for it further in
            found = re.search(r"\b(yes|no)\W*$", text, re.IGNORECASE)
            return found[1].lower() if found and (cot or "\n" in text) else None
        hits = [m for m in pattern.finditer(text) if not _denied(text, m.start())]
        if cot:
            return hits[-1][1].lower() if hits else None
        named = {m[1].lower() for m in hits}
        return named.pop() if len(named) == 1 else None

    return read


def _denied(text: str, start: int) -> bool:
    return bool(re.search(r"\b(?:not|neither|nor|whether)\s+(?:\w+\s+)?$", text[:start], re.IGNORECASE))


def _closing_brackets(text: str, announced: str | None, cot: bool, language: str) -> str | None:
    span = announced if announced is not None else text
    line = next((line for line in span.split("\n") if any(c in _BRACKETS for c in line)), "")
    return " ".join(c for c in line if c in _BRACKETS) or None


def _words(text: str, announced: str | None, cot: bool, language: str) -> str | None:
    span = announced if announced is not None else text
    line = next((line for line in span.split("\n") if line.strip()), "")
    found = [w.strip("\"'.,;:!?[]()") for w in re.split(r"[\s,;<]+", line)]
    return " ".join(w.lower() for w in found if w) or None


def _free(text: str, announced: str | None, cot: bool, language: str) -> str | None:
    span = announced if announced is not None else text
    return _text(next((line for line in span.split("\n") if line.strip()), "")) or None


def _text(text: str) -> str:
    text = " ".join(text.lower().split())
    return text.strip(" \"'.,;:!?")


_PARSERS = {
    "letter": _letter,
    "number": _number,
    "brackets": _closing_brackets,
    "words": _words,
    "text": _free,
    **{kind: _choice(words) for kind, words in CHOICES.items()},
}
