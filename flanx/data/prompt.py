"""From named fields to the text that a model sees: templates, option lists, few-shot prompts.

Every choice (template, inversion, markers, few-shot style, exemplars) is a draw that depends on (task, style,
rendering, row id, what is drawn) and on nothing else: no generator state, the same on every machine and in any order.
"""

import bisect
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flanx.data.fields import BadRow, text_of

STYLES = ("zsopt", "zsnoopt", "fsopt", "fsnoopt")  # zero- or few-shot, with or without the list of options
MAX_INPUT_TOKENS = 1920  # few-shot prompts are pruned to this (paper.md 1.7)
INVERSION_RATE = 0.3  # against 1 for the task itself (paper.md 1.6)
SHOTS = 5  # exemplars of half of the few-shot prompts; the others: binomial(25, 1/10), at least 1 (paper.md 1.7)
SHOT_TABLE = tuple(itertools.accumulate(math.comb(25, k) * 9 ** (25 - k) / 10**25 for k in range(26)))  # of that rule
BARE_SHARE = 10  # one few-shot prompt in ten has exemplars and no instruction: the template `none`


def draw(key: str, label: str, n: int) -> int:
    """A whole number in [0, n), a pure function of the texts `key` and `label`."""
    digest = hashlib.blake2b(f"{label}\x1f{key}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % n


# ---- templates -------------------------------------------------------------------------------------------------------

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
class Prompt:
    """One template. `plain` is (head, input, target) without the option list, `listed` the same with it."""

    name: str
    plain: tuple
    listed: tuple
    fields: frozenset[str]
    labelled: bool  # the input begins with a label of its own, as in "Question: {question}"
    cued: bool  # the input ends with a cue for the target, as in "...\nAnswer:"
    shot: "Shot | None" = None  # a few-shot style of its own, as imported templates have

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


# ---- option lists and few-shot styles --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """A few-shot style: what stands before each input, before each target, and between two exemplars."""

    input: str
    target: str
    separator: str


@dataclass(frozen=True)
class Style:
    """`templates/style.toml`: headings, markers and separators of option lists, and the few-shot styles.

    A marker holds `{}` for the option's text and at most one of `{A} {a} {1} {I} {i}` for its place in the list."""

    headings: tuple[str, ...]
    markers: tuple[str, ...]
    separators: tuple[str, ...]
    shots: tuple[Shot, ...]


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


def list_options(style: Style, options: Sequence[str], key: str) -> tuple[str, list[str]]:
    """The option list as text, with drawn heading, marker and separator; and each option as an answer would say it.

    With letters or numbers the answer is the mark alone ("(B)"), with bullets it is the option's text."""
    heading = style.headings[draw(key, "heading", len(style.headings))]
    marker = style.markers[draw(key, "marker", len(style.markers))]
    many_lines = any("\n" in option for option in options)
    separator = "\n" if many_lines else style.separators[draw(key, "separator", len(style.separators))]
    kind = _KIND.search(marker)
    before, after = marker.split("{}", 1)
    items, answers = [], []
    for place, option in enumerate(options):
        mark = before.replace(kind[0], _enumerator(kind[1], place)) if kind else before
        items.append(mark + option + after)
        answers.append(mark.strip() if kind else option)
    return f"{heading}{separator if separator == chr(10) else ' '}{separator.join(items)}", answers


# ---- rendering -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendered:
    """One example as the model sees it, and where it comes from."""

    inputs: str
    targets: str
    task: str
    dataset: str
    template: str
    style: str
    shots: int
    row: str


def _values(
    prompt: Prompt, record: dict[str, Any], style: Style, key: str, listed: bool
) -> tuple[dict[str, str], bool]:
    """The record's fields as texts, with `options` and `answer` in the drawn markers; whether the list is shown."""
    try:
        values = {name: text_of(record[name], name).strip() for name in prompt.fields if name != "options"}
    except KeyError as e:
        raise BadRow(f"no field {e} for template {prompt.name}") from e
    options = record.get("options")
    listed = listed and bool(options) and "options" in prompt.fields
    if listed:
        texts = [text_of(o, "options").strip() for o in options]
        values["options"], answers = list_options(style, texts, key)
        if "answer" in values and values["answer"] in texts:
            values["answer"] = answers[texts.index(values["answer"])]
    return values, listed


def _say(prompt: Prompt, record: dict[str, Any], style: Style, key: str, listed: bool) -> tuple[str, str, str]:
    """Head, input and target of one record. Raises BadRow where the target is empty."""
    values, listed = _values(prompt, record, style, key, listed)
    head, body, target = (fill(text, values) for text in (prompt.listed if listed else prompt.plain))
    body, target = body.strip(), target.strip()
    if not target:
        raise BadRow("empty target")
    if not (head + body).strip():
        raise BadRow("empty input")
    return head, body, target


class Renderer:
    """Renders the rows of one task in one style: `render(row id, fields)`.

    `pool` gives the exemplars: (row id, fields) of rows of this task's train split, asked for on first use and only by
    few-shot styles. `count` is the number of tokens of a text. `worked` are blocks with a worked example inside the
    prompt: half of the few-shot prompts, where the row has such an example. `few` and `noopt` are blocks that stand in
    for `blocks` in few-shot styles, and in the zero-shot one without options. `shots` is the number of exemplars, else
    drawn. `keep_unshot` keeps a few-shot example without any exemplar (evaluation splits); else it is None, as a
    training example is dropped.
    """

    def __init__(
        self, task: str, dataset: str, blocks: Sequence[Block], style: Style, prompt_style: str,
        inversions: Sequence[Block] = (),
        few: Sequence[Block] = (),
        noopt: Sequence[Block] = (),
        worked: Sequence[Block] = (),
        shots: int | None = None,
        pool: Callable[[], Sequence[tuple[str, dict[str, Any]]]] = tuple, count: Callable[[str], int] = len,
        rendering: int = 0, keep_unshot: bool = False,
    ) -> None:  # fmt: skip
        self.task, self.dataset, self.style, self.prompt_style = task, dataset, style, prompt_style
        self.listed = prompt_style in ("zsopt", "fsopt")
        self.few = prompt_style in ("fsopt", "fsnoopt")
        blocks = (few if self.few else noopt if not self.listed else ()) or blocks
        self.prompts = tuple(p for block in blocks for p in block.prompts)
        self.nones = () if self.few and few else tuple(block.none for block in blocks)
        self.inversions = tuple(p for block in inversions for p in block.prompts)
        self.worked = tuple(p for block in worked for p in block.prompts) if self.few else ()
        self.shots, self.keep_unshot = shots, keep_unshot
        self.pool = functools.cache(pool)
        self.count = functools.lru_cache(maxsize=20_000)(count)
        self.key = f"{task}\x1f{prompt_style}\x1f{rendering}\x1f"

    def choose(self, key: str, record: dict[str, Any]) -> Prompt:
        """The template of one row."""
        if self.worked and draw(key, "worked", 2):
            prompt = self.worked[draw(key, "worked template", len(self.worked))]
            if prompt.fields <= record.keys():
                return prompt
        if self.inversions and draw(key, "inversion", 1300) < round(1300 * INVERSION_RATE / (1 + INVERSION_RATE)):
            return self.inversions[draw(key, "inverted template", len(self.inversions))]
        if self.few and self.nones and draw(key, "bare", BARE_SHARE) == 0:
            return self.nones[draw(key, "template", len(self.nones))]
        return self.prompts[draw(key, "template", len(self.prompts))]

    def render(self, row: str, record: dict[str, Any], prompt: Prompt | None = None) -> Rendered | None:
        """One example. Raises BadRow where the row makes an empty input or target."""
        key = self.key + row
        prompt = prompt or self.choose(key, record)
        head, body, target = _say(prompt, record, self.style, key, self.listed)
        if not self.few or prompt in self.worked:
            return self._made(f"{head}{body}".strip(), target, prompt, int(self.few), row)
        shot = prompt.shot or self.style.shots[draw(key, "shot style", len(self.style.shots))]
        before = "" if prompt.labelled and not prompt.shot else shot.input
        after = shot.target
        if prompt.cued and not prompt.shot:
            after = "\n" if after.startswith("\n") else " "
        query = f"{before}{body}{after.rstrip()}"
        shots: list[str] = []
        budget = MAX_INPUT_TOKENS - self.count(f"{head}{query}") - 2
        for text in self._exemplars(key, row, prompt, (body, target), self._shots(key)):
            text = f"{before}{text[0]}{after}{text[1]}{shot.separator}"
            budget -= self.count(text) + 1
            if budget < 0:
                break
            shots.append(text)
        if not shots and not self.keep_unshot:
            return None
        if not shots:
            return self._made(f"{head}{body}".strip(), target, prompt, 0, row)
        return self._made(f"{head}{''.join(shots)}{query}".strip(), target, prompt, len(shots), row)

    def _made(self, inputs: str, targets: str, prompt: Prompt, shots: int, row: str) -> Rendered:
        return Rendered(inputs, targets, self.task, self.dataset, prompt.name, self.prompt_style, shots, row)

    def _shots(self, key: str) -> int:
        """Half of the `opt` prompts have five exemplars; the others as many of 25 as would draw the same template."""
        if self.shots:
            return self.shots
        if self.listed and draw(key, "shot rule", 2):
            return SHOTS
        return max(1, bisect.bisect(SHOT_TABLE, draw(key, "shots", 2**32) / 2**32))

    def _exemplars(
        self, key: str, row: str, prompt: Prompt, query: tuple[str, str], shots: int
    ) -> list[tuple[str, str]]:
        """(input, target) of `shots` distinct rows of the pool; never the query's row, nor one that reads like it.

        An inverted prompt may ask the same of many rows ("write a negative review"); there the pair is what counts.
        """
        pool = self.pool()
        found: list[tuple[str, str]] = []
        paired = prompt in self.inversions or prompt.shot is not None
        seen = {"\x1f".join(query) if paired else query[0]}
        for attempt in range(4 * shots if pool else 0):
            other, record = pool[draw(key, f"exemplar {attempt}", len(pool))]
            if other == row:
                continue
            try:
                _, body, target = _say(prompt, record, self.style, key, self.listed)
            except BadRow:
                continue
            reading = f"{body}\x1f{target}" if paired else body
            if reading not in seen:
                seen.add(reading)
                found.append((body, target))
                if len(found) == shots:
                    break
        return found
