"""Templates: a text with `{fields}`, a prompt of head, input and target, a block of prompts for a cluster of tasks."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}|[{}]")


def compile_text(text: str) -> tuple[tuple[str, str | None], ...]:
    """A template text as (literal, field or None) pairs. Raises ValueError on a brace that is no field."""
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
            raise ValueError(f"a lone '{hit[0]}' in {text!r}; write it twice for a brace")
    return (*pieces, (literal + text[end:], None))


def fill(pieces: Sequence[tuple[str, str | None]], values: dict[str, str]) -> str:
    """The text of compiled pieces; values are inserted as they are and never looked into."""
    return "".join([literal + values[name] if name else literal for literal, name in pieces])


_LABEL = re.compile(r"\s*[A-Z][\w' ]{0,24}[:.)]\s")


@dataclass(frozen=True)
class Shot:
    """A few-shot style: what stands before each input, before each target, and between two exemplars."""

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
    labelled: bool  # the input begins with a label of its own, as in "Question: {question}"
    cued: bool  # the input ends with a cue for the target, as in "...\nAnswer:"
    shot: Shot | None = None  # a few-shot style of its own, as imported templates have

    @classmethod
    def parse(cls, name: str, texts: Any) -> "Prompt":
        """A prompt from [input, target], [head, input, target], or {head, input, target, shot}. Raises ValueError."""
        shot = None
        if isinstance(texts, dict):
            if set(texts) - {"head", "shot"} != {"input", "target"}:
                raise ValueError("a prompt's table holds input, target, and if need be head and shot")
            shot = Shot(*texts["shot"]) if "shot" in texts else None
            texts = [texts.get("head", ""), texts["input"], texts["target"]]
        if not isinstance(texts, list) or len(texts) not in (2, 3) or not all(isinstance(t, str) for t in texts):
            raise ValueError("a prompt is [input, target] or [head, input, target]")
        head, body, target = texts if len(texts) == 3 else ["", *texts]
        if "{options}" in target or "{options}" in head:
            raise ValueError("{options} can stand in the input only")
        without = re.sub(r"\n*\{options\}", "", re.sub(r"^\{options\}\n*", "", body))
        if not without.strip() or not target.strip():
            raise ValueError("an input or a target is empty")
        plain = tuple(compile_text(t) for t in (head, without, target))
        listed = tuple(compile_text(t) for t in (head, body, target))
        names = frozenset(field for text in listed for _, field in text if field)
        if not any(field for _, field in plain[2]):
            raise ValueError("the target holds no field")
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
    """A block from its TOML table. Raises ValueError that names the prompt and the reason."""
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
