"""Values of a row: reading one by its path, writing one as text, drawing one by the row's own key.

What goes wrong with a row is a BadRow (counted, reported) or a SkipRow (left out on purpose).
"""

import hashlib
from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
Draw = Callable[[str, int], int]  # (label, n) -> an integer in [0, n), the same for the same row and label


class BadRow(Exception):
    """A row that cannot be a row of this task: counted, reported, and an error above a limit."""


class SkipRow(Exception):
    """A row that the task leaves out on purpose (a filter, a hidden label, an empty list)."""


def walk(value: Any, path: str) -> Any:
    """The value at `a.b` of a nested record; of a list of records, the list of theirs. Raises BadRow."""
    for part in path.split("."):
        if isinstance(value, list):
            value = [walk(item, part) for item in value]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            raise BadRow(f"no column '{path}'")
    return value


def lookup(made: Record, raw: Record, path: str) -> Any:
    """The value at a path of what the operations have made so far, else of the raw record. Raises BadRow."""
    return walk(made if path.split(".", 1)[0] in made else raw, path)


def text_of(value: Any, name: str = "value") -> str:
    """A value as the text of a prompt: whole numbers without a fraction, lists joined by a comma."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(text_of(item, name) for item in value)
    raise BadRow(f"'{name}' is {type(value).__name__}, not text")


def draw(key: str, label: str, n: int) -> int:
    """A whole number in [0, n), a pure function of the texts `key` and `label`."""
    digest = hashlib.blake2b(f"{label}\x1f{key}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % n
