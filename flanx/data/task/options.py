"""Lists of options as text, with a drawn heading, marker and separator, and what an answer says of them."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from flanx.data.task.row import draw
from flanx.data.task.template import Shot


@dataclass(frozen=True)
class Style:
    """`templates/style.toml`: headings, markers and separators of option lists, and the few-shot styles.

    A marker ends in `{}`, the option's text, and holds at most one of `{A} {a} {1} {I} {i}`, its place in the list; one
    without is a bullet."""

    headings: tuple[str, ...]
    markers: tuple[str, ...]
    separators: tuple[str, ...]
    shots: tuple[Shot, ...]

    @functools.cached_property
    def bullets(self) -> tuple[str, ...]:
        return tuple(marker for marker in self.markers if not _KIND.search(marker))


_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii", "xiii", "xiv", "xv", "xvi")


def _enumerator(kind: str, place: int) -> str:
    if kind == "1":
        return str(place + 1)
    if kind in "Ii":
        text = _ROMAN[place] if place < len(_ROMAN) else str(place + 1)
        return text.upper() if kind == "I" else text
    letters = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters if kind == "A" else letters.lower()


_KIND = re.compile(r"\{([Aa1Ii])\}")
_CLOSED = {"(": ")", "[": "]", "<": ">"}
_LIKE_A_MARK = re.compile(r"\W*(?:[-+]?\d[\d.,]*%?|[A-Za-z]|[ivxIVX]+)\W*")


def _marks(marker: str, place: int) -> tuple[str, str | None]:
    """What stands before an option, and what an answer says of it: "(B)", "B" for "B." or "B)", None for a bullet."""
    before = marker.removesuffix("{}")
    kind = _KIND.search(before)
    if kind is None:
        return before, None
    said = _enumerator(kind[1], place)
    left, right = before[: kind.start()][-1:], before[kind.end() :][:1]
    closed = _CLOSED.get(left) == right != ""
    return before.replace(kind[0], said), f"{left}{said}{right}" if closed else said


def list_options(style: Style, options: Sequence[str], key: str) -> tuple[str, list[str]]:
    """The option list as text, with drawn heading, marker and separator; and each option as an answer would say it.

    Where the marks are letters or numbers the answer is the mark, in its brackets if they close ("(B)", else "B"), as
    extraction reads it; with bullets it is the option's text. Options that read like marks themselves (numbers, single
    letters) always take bullets: of "(1) 0, (2) 1" nobody could say what "1" means."""
    heading = style.headings[draw(key, "heading", len(style.headings))]
    bullets = all(_LIKE_A_MARK.fullmatch(option) for option in options)
    markers = style.bullets if bullets else style.markers
    marker = markers[draw(key, "marker", len(markers))]
    many_lines = any("\n" in option for option in options)
    separator = "\n" if many_lines else style.separators[draw(key, "separator", len(style.separators))]
    marks = [_marks(marker, place) for place in range(len(options))]
    items = [before + option for (before, _), option in zip(marks, options, strict=True)]
    answers = [option if said is None else said for (_, said), option in zip(marks, options, strict=True)]
    return f"{heading}{separator if separator == chr(10) else ' '}{separator.join(items)}", answers
