"""Where an output ends even though the model continues: at the label of the next question.

A stop text that begins with a letter is a label ("Q:", "Frage:"): it ends an output wherever it occurs outside a word,
with any whitespace before it and before its colon, and with a half- or full-width colon. T5's SentencePiece turns line
breaks into spaces and full-width colons into half-width ones, so matching must not depend on them. Any other stop text
("\\n") is matched literally. None counts at the very beginning of an output, ignoring whitespace.
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
    """The regular expression for one stop text."""
    if not stop[:1].isalpha():
        return re.escape(stop)
    name = stop.strip().rstrip(_COLONS)
    colon = rf"\s*[{_COLONS}]" if name != stop.strip() else ""
    forms = dict.fromkeys((name.rstrip(), unicodedata.normalize("NFKC", name).rstrip()))
    return rf"\s*(?<!\w)(?:{'|'.join(map(re.escape, forms))}){colon}"


def has_stop(text: str, stop: Sequence[str]) -> bool:
    """Whether any stop text occurs in a text other than at its very beginning."""
    return bool(stop) and _pattern(tuple(stop)).search(text.lstrip(), 1) is not None


def until_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop text, without leading whitespace."""
    text = text.lstrip()
    match = _pattern(tuple(stop)).search(text, 1) if stop else None
    return text[: match.start()] if match else text
