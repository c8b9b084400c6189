"""Templates: texts with `{fields}`, prompts of head, input and target, blocks of prompts for a cluster of tasks, and
the option lists that fill a prompt's `{options}`."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flanx.data.task.row import draw

_TOKEN = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}|[{}]")


def compile_text(text: str) -> tuple[tuple[str, str | None], ...]:
    """A template text as (literal, field or None) pairs. Raises ValueError for a brace that is not part of a field."""
    pieces: list[tuple[str, str | None]] = []
    literal, end = "", 0
    for hit in _TOKEN.finditer(text):
        literal += text[end : hit.start()]
        end = hit.end()
        if hit[1]:
            pieces.append((literal, hit[1]))
            literal = ""
        elif len(hit[0]) == 2:
            literal += hit[0][0]
        else:
            raise ValueError(f"a single '{hit[0]}' in {text!r}; write it twice for a brace")
    return (*pieces, (literal + text[end:], None))


def fill(pieces: Sequence[tuple[str, str | None]], values: dict[str, str]) -> str:
    """The text of compiled pieces; values are inserted verbatim and never interpreted."""
    return "".join([literal + values[name] if name else literal for literal, name in pieces])


_LABEL = re.compile(r"\s*[A-Z][\w' ]{0,24}[:.)]\s")


@dataclass(frozen=True)
class Shot:
    """A few-shot style: the texts before each input, before each target, and between two exemplars."""

    input: str
    target: str
    separator: str


@dataclass(frozen=True)
class Prompt:
    """One template. `plain` is (head, input, target) without the option list, `listed` the same with it."""

    name: str
    plain: tuple
    listed: tuple
    fields: frozenset[str]
    labelled: bool  # the input begins with its own label, as in "Question: {question}"
    cued: bool  # the input ends with a cue for the target, as in "...\nAnswer:"
    shot: Shot | None = None  # its own few-shot style, as in imported templates

    @classmethod
    def parse(cls, name: str, texts: Any) -> "Prompt":
        """A prompt from [input, target], [head, input, target], or {head, input, target, shot}. Raises ValueError."""
        shot = None
        if isinstance(texts, dict):
            if set(texts) - {"head", "shot"} != {"input", "target"}:
                raise ValueError("the table of a prompt has the keys input and target, and optionally head and shot")
            shot = Shot(*texts["shot"]) if "shot" in texts else None
            texts = [texts.get("head", ""), texts["input"], texts["target"]]
        if not isinstance(texts, list) or len(texts) not in (2, 3) or not all(isinstance(t, str) for t in texts):
            raise ValueError("a prompt is [input, target] or [head, input, target]")
        head, body, target = texts if len(texts) == 3 else ["", *texts]
        if "{options}" in target or "{options}" in head:
            raise ValueError("{options} is allowed in the input only")
        without = re.sub(r"\n*\{options\}", "", re.sub(r"^\{options\}\n*", "", body))
        if not without.strip() or not target.strip():
            raise ValueError("an input or a target is empty")
        plain = tuple(compile_text(t) for t in (head, without, target))
        listed = plain if body == without else (plain[0], compile_text(body), plain[2])
        names = frozenset(field for text in listed for _, field in text if field)
        if not any(field for _, field in plain[2]):
            raise ValueError("the target has no field")
        last, begin = plain[1][-1], plain[1][0]
        labelled = bool(_LABEL.match(begin[0] + ("x" if begin[1] else "")))
        cued = last[1] is None and last[0].rstrip().endswith((":", "=", ">"))
        return cls(name, plain, listed, names, labelled, cued, shot)


@dataclass(frozen=True)
class Block:
    """A cluster of templates: `prompts`, and the bare form `none`."""

    name: str
    prompts: tuple[Prompt, ...]
    none: Prompt

    @functools.cached_property
    def fields(self) -> frozenset[str]:
        return frozenset().union(*(p.fields for p in (*self.prompts, self.none)))


def parse_block(name: str, table: dict[str, Any]) -> Block:
    """A block from its TOML table. Raises ValueError naming the prompt and the reason."""
    unknown = set(table) - {"none", "prompts"}
    if unknown:
        raise ValueError(f"unknown key '{sorted(unknown)[0]}' (a block has `none` and `prompts`)")
    if not table.get("prompts") or "none" not in table:
        raise ValueError("a block needs `none` and at least one prompt")
    prompts = []
    for i, texts in enumerate([*table["prompts"], table["none"]]):
        label = f"{name}:{i}" if i < len(table["prompts"]) else f"{name}:none"
        try:
            prompts.append(Prompt.parse(label, texts))
        except ValueError as e:
            raise ValueError(f"{label}: {e}") from e
    return Block(name, tuple(prompts[:-1]), prompts[-1])


# ---- option lists ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """`templates/style.toml`: headings, markers and separators of option lists, and the few-shot styles.

    A marker ends with `{}`, the option's text, and has at most one of `{A} {a} {1} {I} {i}`, the option's number;
    without one it is a bullet."""

    headings: tuple[str, ...]
    markers: tuple[str, ...]
    separators: tuple[str, ...]
    shots: tuple[Shot, ...]

    @functools.cached_property
    def bullets(self) -> tuple[str, ...]:
        return tuple(marker for marker in self.markers if not _KIND.search(marker))


_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii", "xiii", "xiv", "xv", "xvi")


def _enumerator(kind: str, index: int) -> str:
    """The letter or number of option `index` (from 0) for a kind of enumeration."""
    if kind == "1":
        return str(index + 1)
    if kind in "Ii":
        text = _ROMAN[index] if index < len(_ROMAN) else str(index + 1)
        return text.upper() if kind == "I" else text
    letters = ""
    number = index + 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters if kind == "A" else letters.lower()


_KIND = re.compile(r"\{([Aa1Ii])\}")
_CLOSED = {"(": ")", "[": "]", "<": ">"}
_LIKE_A_MARKER = re.compile(r"\W*(?:[-+]?\d[\d.,]*%?|[A-Za-z]|[ivxIVX]+)\W*")


def _marks(marker: str, index: int) -> tuple[str, str | None]:
    """The text before an option, and how an answer refers to it: "(B)", "B" for "B." or "B)", None for a bullet."""
    before = marker.removesuffix("{}")
    kind = _KIND.search(before)
    if kind is None:
        return before, None
    enumerator = _enumerator(kind[1], index)
    left, right = before[: kind.start()][-1:], before[kind.end() :][:1]
    closed = _CLOSED.get(left) == right != ""
    return before.replace(kind[0], enumerator), f"{left}{enumerator}{right}" if closed else enumerator


def list_options(style: Style, options: Sequence[str], key: str) -> tuple[str, list[str]]:
    """The option list as text, with drawn heading, marker and separator; and each option as an answer refers to it.

    If the markers are letters or numbers the answer is the marker, with its brackets if they close ("(B)", else "B"),
    as extraction expects; with bullets it is the option's text. Options that look like markers themselves (numbers,
    single letters) always get bullets: in "(1) 0, (2) 1" the answer "1" would be ambiguous."""
    heading = style.headings[draw(key, "heading", len(style.headings))]
    bullets = all(_LIKE_A_MARKER.fullmatch(option) for option in options)
    markers = style.bullets if bullets else style.markers
    marker = markers[draw(key, "marker", len(markers))]
    many_lines = any("\n" in option for option in options)
    separator = "\n" if many_lines else style.separators[draw(key, "separator", len(style.separators))]
    marks = [_marks(marker, index) for index in range(len(options))]
    items = [before + option for (before, _), option in zip(marks, options, strict=True)]
    answers = [option if name is None else name for (_, name), option in zip(marks, options, strict=True)]
    return f"{heading}{separator if separator == chr(10) else ' '}{separator.join(items)}", answers
