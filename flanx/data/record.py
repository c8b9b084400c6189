"""Named functions from a raw record to fields, for the few data sets that no operation of `fields` can read.

Each is a row of FUNCTIONS: what it reads, what it writes, and the function itself. It gets only the columns that it
names and the row's own draw; it returns the written fields, or None to leave the row out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Function:
    """`run(columns, draw) -> fields or None`, with the names of both sides."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    run: Callable[[dict[str, Any], Callable[[str, int], int]], dict[str, Any] | None]


FUNCTIONS: dict[str, Function] = {}
