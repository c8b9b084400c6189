"""The operations of the embedded suite, and how their arguments are parsed from text.

An operation maps text to text, each of a certain kind. "items" means a word, a list of one-letter items, or digits; the
output has the kind of the input. The operations are in `text.py`, `number.py` and `world.py`, their wordings in
`wording.toml`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Given = Mapping[str, str]
Steps = Callable[[str, Given], list[str]]
NOTHING = "none"  # the text of an empty list


@dataclass(frozen=True)
class Operation:
    takes: str
    gives: str
    apply: Callable[[str, Given], str]  # (text, fields of the question) -> text


def show(value: object) -> str:
    """A value as text: booleans as yes or no, lists joined by spaces, and empty ones as NOTHING."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or NOTHING
    return str(value) or NOTHING


def group(takes: str, gives: str, read: Callable[[str, Given], tuple], **functions: Callable) -> dict[str, Operation]:
    """One operation per function; `read` parses the function's arguments from the text."""

    def bind(function: Callable) -> Callable[[str, Given], str]:
        return lambda x, given: show(function(*read(x, given)))

    return {name: Operation(takes, gives, bind(function)) for name, function in functions.items()}


def items(**functions: Callable[[list[str]], list[str]]) -> dict[str, Operation]:
    """Operations that map words to words and lists to lists."""

    def bind(function: Callable) -> Callable[[str, Given], str]:
        return lambda x, given: (" " if " " in x else "").join(function(split(x))) or NOTHING

    return {name: Operation("items", "items", bind(function)) for name, function in functions.items()}


def split(x: str) -> list[str]:
    return x.split() if " " in x else list(x)


def read_text(x: str, given: Given) -> tuple:
    return (x,)


def read_parts(x: str, given: Given) -> tuple:
    return tuple(x.split())


def read_letters(x: str, given: Given) -> tuple:
    return (split(x),)


def read_numbers(x: str, given: Given) -> tuple:
    return tuple(map(int, x.split()))


def read_number_list(x: str, given: Given) -> tuple:
    return (list(map(int, x.split())),)


def read_ruled(x: str, given: Given) -> tuple:
    return x, given["p"], given["q"]
