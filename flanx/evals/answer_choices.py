"""Answers from a small set: the letter of an option, or one of two words."""

import re
from collections.abc import Mapping, Sequence

from flanx.evals.answer_text import CONCLUDING, DENIED, NOTHING, UNCLEAR, Mention, Reading, comparable, given, sentences

Options = Mapping[str, str]  # {letter: text}

LETTERS = "ABCDEFGHIJKLMNOPQR"  # BIG-Bench Hard goes up to (R)
WORDS = {"yes_no": ("yes", "no"), "true_false": ("true", "false"), "validity": ("valid", "invalid")}

_NAMED = r"(?:options?|choices?|answers?|letter)"
_MARKED = r"\(\s*([A-Za-z])\s*\)"
# A letter without brackets: neither a word ("A city", "I think") nor part of one.
_BARE = r"(?<![\w'(./-])([A-Z])(?![\w'])(?!\.\w)"
_LETTER = re.compile(
    rf"{_MARKED}|(?<!\w)\(([A-Z])(?!\w)|{_BARE}|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s+([a-z])(?![\w'])"
)
_WORD_BEHIND = {  # continuations that make these two letters words
    "A": re.compile(r"\s+(?!(?:is|was|or|and|but|because|seems|must|would|should|has|as|since|which)\b)[a-z]"),
    "I": re.compile(r"\s+(?!(?:is|or|and|because|since)\b)[a-z]"),
}
_CORRECT = (
    r"(?:is|must be|would be|seems|looks)\s+(?:therefore\s+|clearly\s+|also\s+)?(?:the\s+)?"
    r"(?:correct|right|best|true)(?:\s+(?:one|answer|option|choice))?"
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
_ORDINAL = re.compile(rf"\b({'|'.join(_ORDINALS)})\s+(?:option|choice|answer|one)\b", re.IGNORECASE)
_OPTION = re.compile(r"(?:^|\s)\(([A-Z])\)\s*(.*?)\s*(?=\s\([A-Z]\)\s|\n|$)")


def options_of(prompt: str) -> dict[str, str]:
    """{letter: text} of the options "(A) ..." of a prompt's last question; {} if there are none."""
    found: dict[str, str] = {}
    for match in _OPTION.finditer(prompt):
        if match[1] == "A":
            found = {}
        if match[1] == chr(ord("A") + len(found)):
            found[match[1]] = match[2]
    return found if len(found) > 1 else {}


# --- letters ---------------------------------------------------------------------------------------------------------


def letter(announced: str, options: Options) -> Reading:
    """The letter that announced text gives: explicitly, by ordinal ("the second option"), or by an option's text."""
    for sentence in sentences(_brackets(announced))[:1]:
        reading = given(sentence, _letters(sentence, options), conclusions=True)
        if reading == NOTHING:
            reading = given(sentence, _texts(sentence, options))
        if reading == NOTHING and (ordinal := _ORDINAL.search(sentence)):
            return _known(LETTERS[_ORDINALS.index(ordinal[1].lower())], options)
        return reading
    return NOTHING


def first_letter(text: str, options: Options) -> Reading:
    """The letter that an output without a rationale gives."""
    text = _brackets(text)
    if label := re.match(r"\W*([A-Za-z])\s*(?:[.):]|,|-\s|$)", text):
        value, rest = label[1].upper(), text[label.end() :]
        is_label = not rest[:1].isalnum() or comparable(rest).startswith(
            comparable(options.get(value, "?"))
        )  # not U.S.
        if value in LETTERS and is_label and not re.match(r"\s*(?:is|isn't)\b", rest):
            first = sentences(text)[0]
            return UNCLEAR if given(first, _letters(first, options)) == UNCLEAR else _known(value, options)
    for sentence in sentences(text):
        reading = letter(sentence, options)
        if reading not in (NOTHING, DENIED):
            return reading
    return NOTHING


_OPENING = re.compile(
    r"^(?:(?:i\s+(?:think|believe|would say)\s+(?:that\s+)?)?(?:it|this)(?:\s+is|'s|\s+must be)\s+"
    r"|(?:i|we)\s+(?:would\s+|will\s+)?(?:choose|pick|select|go with|say|think)\s+)",
    re.IGNORECASE,
)
_ALONE = re.compile(
    rf"[^\w(]*(?P<named>{_NAMED}\s+)?(?P<open>\()?\s*(?P<letter>[A-Za-z])(?!\w)\s*(?P<close>\))?"
    rf"(?:\W*|\W+{_CORRECT}\W*|\s*[.:]?\s+(?P<text>.*))",
    re.IGNORECASE,
)


def concluding_letter(text: str, options: Options) -> Reading:
    """The letter that the last sentence of an output gives, if that sentence is nothing but an answer.

    Parts of a rationale that walks through the options, such as `Option (B): "text".`, never count, even at the end.
    """
    *earlier, last = sentences(_brackets(text)) or [""]
    starts_line = bool(earlier) and _brackets(text).rpartition("\n")[2].strip() == last
    last = _OPENING.sub("", CONCLUDING.sub("", last, count=1))
    for key, value in options.items():  # only options of a word or two: longer ones may be sentences of the rationale
        if comparable(value) == comparable(last) and len(value.split()) <= 2 and not last.startswith('"'):
            return Reading(key)
    marked = [found.upper() for found in re.findall(_MARKED, last)]
    if len(marked) > 1 and len(set(marked)) == 1 and not re.sub(_MARKED, "", last).strip(" .,"):  # (B) (B) (B)
        return _known(marked[0], options)
    denied = re.fullmatch(rf"not\W+{_MARKED}.*\b(?:so|but|it is)\W+(?:it is\W+)?{_MARKED}\W*", last, re.IGNORECASE)
    if denied:
        return _known(denied[2].upper(), options)
    match = _ALONE.fullmatch(last)
    return (
        _known(match["letter"].upper(), options) if match and _closes(match, earlier, starts_line, options) else NOTHING
    )


def _closes(match: re.Match[str], earlier: Sequence[str], starts_line: bool, options: Options) -> bool:
    """Whether a last sentence of the form `_ALONE` is an answer rather than the end of a truncated rationale."""
    last, value = match[0], match["letter"].upper()
    others = set(re.findall(_MARKED, " ".join(earlier))) - {value}
    ends = re.search(rf"[.!。]$|{_CORRECT}\W*$", last, re.IGNORECASE)
    if match["text"] and (match["named"] or comparable(match["text"]) != comparable(options.get(value, ""))):
        return False
    if others and (match["text"] or match["named"]):
        return False
    if ends or not earlier:
        return True
    # Not the start of a list of the options, the article "A", or a name.
    is_word = not match["close"] and (value in "AI" or earlier[-1].endswith("?"))
    return not (others or starts_line or is_word)


def _brackets(text: str) -> str:
    """Rewrites letters in any kind of brackets with round ones."""
    text = re.sub(r"[\[{<【〔「『〈《〖❨⟨]\s*([A-Za-z])\s*[\]}>】〕」』〉》〗❩⟩]", r"(\1)", text)
    return text.replace("$", "").replace("}", "").replace("{", "")


def _letters(text: str, options: Options) -> list[Mention]:
    """The letters that a sentence mentions."""
    found = []
    for match in _LETTER.finditer(text):
        value = match[1] or match[2] or match[3] or match[4]
        if match[3] and value in "AI" and _WORD_BEHIND[value].match(text, match.end()):
            continue
        if value.upper() in (options or LETTERS):
            found.append(Mention(match.start(), match.end(), value.upper()))
            second = re.match(r"/([A-Z])(?!\w)", text[match.end() :])  # B/C
            if second and second[1] in (options or LETTERS):
                found.append(Mention(match.end() + 1, match.end() + 2, second[1]))
    if not found and (alone := re.fullmatch(r"\W*([A-Za-z])\W*", text)) and alone[1].upper() in (options or LETTERS):
        found = [Mention(0, len(text), alone[1].upper())]
    return found


def _known(value: str, options: Options) -> Reading:
    return Reading(value) if value in (options or LETTERS) else NOTHING


def _texts(sentence: str, options: Options) -> list[Mention]:
    """The options whose texts begin a sentence, end it after "is", or are joined to one that does."""
    found: list[Mention] = []
    for key, value in sorted(options.items(), key=lambda option: -len(option[1])):
        text = comparable(value)
        for match in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", sentence, re.IGNORECASE) if text else ():
            if not any(match.start() < other.end and other.start < match.end() for other in found):
                found.append(Mention(match.start(), match.end(), key))
    found.sort()
    if not found:
        return []
    opening = re.fullmatch(rf"\W*(?:(?:not|so|the|{_NAMED})\s+)*", sentence[: found[0].start], re.IGNORECASE)
    closing = re.search(
        r"(?:\b(?:is|are|was|not|be)|'s)\s+(?:the\s+|a\s+)?$", sentence[: found[0].start], re.IGNORECASE
    )
    return found if opening or (closing and not sentence[found[-1].end :].strip(" .!\"')")) else []


# --- one of two words ------------------------------------------------------------------------------------------------

# Other ways to say "yes" or "valid", in an output that says nothing else.
_STATEMENTS = {
    "yes_no": re.compile(
        r"(?:we|you|i)\s+(?:do\s+|would\s+|will\s+)?(not\s+)?(?:return|end up|are back)\s+(?:to|at)\s+"
        r"(?:the|our|your)\s+(?:start|origin)\w*(?:\s+(?:point|position))?",
        re.IGNORECASE,
    ),
}


def word(announced: str, kind: str) -> Reading:
    """The word that announced text gives: "not valid" is invalid; "not false" is an expression, not an answer."""
    first = (sentences(announced) or [""])[0]
    if kind == "true_false":  # the value of an equation, or of "... is True"
        first = re.split(r"=|\bis\b", first)[-1]
    words = WORDS[kind]
    if kind == "validity" and re.search(
        rf"\b(?:{'|'.join(words)})\b", turn := re.split(r"(?<!anything) but ", first)[-1], re.IGNORECASE
    ):
        first = turn
    mentions = [
        Mention(match.start(), match.end(), match[0].lower())
        for match in re.finditer(rf"\b(?:{'|'.join(words)})\b", first, re.IGNORECASE)
    ]
    reading = given(first, mentions, conclusions=True)
    if reading.why == "denied" and kind == "validity" and {mention.value for mention in mentions} == {"valid"}:
        return Reading("invalid")
    return reading


def first_word(text: str, kind: str) -> Reading:
    """The word that an output without a rationale gives."""
    alone = [s for s in sentences(text) if comparable(s) in WORDS[kind]]
    if len({comparable(s) for s in alone}) > 1:
        return UNCLEAR
    start = re.match(rf"\W*({'|'.join(WORDS[kind])})\b", text, re.IGNORECASE)
    if kind == "yes_no":  # "no" is too common a word to search for further in
        return word(text, kind) if start else _statement(text, kind)
    for sentence in sentences(text):
        reading = word(re.sub(r"^\W*is\b.*\?$", "", sentence, flags=re.IGNORECASE), kind)
        if reading != NOTHING:
            return reading
    return NOTHING


def concluding_word(text: str, kind: str) -> Reading:
    """The word that the last sentence of an output gives, if that sentence is nothing but an answer."""
    found = sentences(text)
    if not found:
        return NOTHING
    words = "|".join(WORDS[kind])
    last = CONCLUDING.sub("", found[-1], count=1)
    so = r".*\b(?:so|therefore|thus|hence)"  # ", so: yes"
    if match := re.fullmatch(rf"(?:\W*|{so}\W+)({words})\b(?:,.*\.|\W*)", last, re.IGNORECASE):
        return Reading(match[1].lower())
    if len(found) > 1 and kind != "true_false":
        return NOTHING
    if kind == "validity" and re.fullmatch(
        r"(?:the|this)?\s*(?:argument|it|reasoning|conclusion)?\s*(?:is|isn't|cannot|can't|could)\b[\w\s']*\b(?:in)?valid\.",
        last,
        re.IGNORECASE,
    ):
        return word(last, kind)
    if (
        kind == "true_false"
        and re.fullmatch(r"(?:(?:not|and|or|true|false|[()=.\s])+)", text, re.IGNORECASE)
        and "=" in last
    ):
        return word(last, kind)
    return _statement(last, kind)


def _statement(text: str, kind: str) -> Reading:
    match = _STATEMENTS[kind].match(text.strip()) if kind in _STATEMENTS else None
    if not match or text.strip()[match.end() :].strip(" ."):
        return NOTHING
    return Reading(WORDS[kind][1 if match[1] else 0])
