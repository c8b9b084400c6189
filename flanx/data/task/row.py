"""Values of a row: looking one up by path, writing one as text, drawing one by the row's own key.

A row that cannot be used raises BadRow (counted, reported) or SkipRow (left out on purpose).
"""

import decimal
import hashlib
import math
from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
Draw = Callable[[str, int], int]  # (label, n) -> an integer in [0, n), the same for the same row and label


class BadRow(Exception):
    """A row that is invalid for this task: counted, reported, and an error above a limit."""


class SkipRow(Exception):
    """A row that the task leaves out on purpose (a filter, a hidden label, an empty list)."""


def walk(value: Any, path: str) -> Any:
    """The value at `a.b` of a nested record, or the list of values for a list of records. Raises BadRow."""
    for part in path.split("."):
        if isinstance(value, list):
            value = [walk(item, part) for item in value]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            raise BadRow(f"no column '{path}'")
    return value


def lookup(made: Record, raw: Record, path: str) -> Any:
    """The value at a path in the operations' output so far, else in the raw record. Raises BadRow.

    A column whose own name contains dots is found by that name."""
    if path in raw and path not in made:
        return raw[path]
    return walk(made if path.split(".", 1)[0] in made else raw, path)


def text_of(value: Any, name: str = "value") -> str:
    """A value as prompt text: numbers with all their digits, integers without a fraction, lists joined by commas.
    Raises BadRow for values without a text form: NaN and infinities, null, dictionaries, bytes."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value, name)
    if isinstance(value, (list, tuple)):
        return ", ".join(text_of(item, name) for item in value)
    raise BadRow(f"'{name}' is {type(value).__name__}, not text")


def whole(text: str) -> str:
    """The text unchanged. Raises BadRow if it has a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise BadRow(f"{text[e.start]!a} is half a character (a lone surrogate)") from e
    return text


def _number(value: float, name: str) -> str:
    """The shortest decimals that round-trip; an exponent only below 1e-7 and from 1e21 up."""
    if not math.isfinite(value):
        raise BadRow(f"'{name}' is {value}, not a number")
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return f"{decimal.Decimal(repr(value)):f}" if 1e-7 <= abs(value) < 1e21 else repr(value)


def draw(key: str, label: str, n: int) -> int:
    """An integer in [0, n), a pure function of the strings `key` and `label`."""
    digest = hashlib.blake2b(f"{label}\x1f{key}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % n
