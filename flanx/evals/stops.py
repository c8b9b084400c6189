"""Where an output ends although the model continues: at the label of a next question.

A stop text that begins with a letter is a label ("Q:", "Frage:"): it ends an output wherever it is outside a word,
with any white space before it and before its colon, and with a colon of either width. T5's SentencePiece turns line
breaks into blanks and wide colons into narrow ones, so nothing may depend on them. Any other stop text ("\\n") counts
as it is written. None counts at the very beginning of an output, white space aside.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

_COLONS = ":\uff1a"


@functools.lru_cache(maxsize=64)
def _pattern(stop: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(_one, stop)))


def _one(stop: str) -> str:
    """The regular expression of one stop text."""
    if not stop[:1].isalpha():
        return re.escape(stop)
    name = stop.strip().rstrip(_COLONS)
    colon = rf"\s*[{_COLONS}]" if name != stop.strip() else ""
    forms = dict.fromkeys((name.rstrip(), unicodedata.normalize("NFKC", name).rstrip()))
    return rf"\s*(?<!\w)(?:{'|'.join(map(re.escape, forms))}){colon}"


def has_stop(text: str, stop: Sequence[str]) -> bool:
    """Whether one of the stop texts occurs in a text, other than at its very beginning."""
    return bool(stop) and _pattern(tuple(stop)).search(text.lstrip(), 1) is not None


def until_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts, without the white space at its beginning."""
    text = text.lstrip()
    match = _pattern(tuple(stop)).search(text, 1) if stop else None
    return text[: match.start()] if match else text
