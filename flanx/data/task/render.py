"""From a row's named fields to the texts that a model sees: templates, option lists, few-shot prompts.

Every choice (template, markers, few-shot style, exemplars) is a draw that depends only on (task, style, rendering, row
id, label of the choice): no generator state, the same on every machine and in any order.
"""

import bisect
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flanx.data.task import sources
from flanx.data.task.row import BadRow, Record, draw, text_of, whole
from flanx.data.task.spec import INVERTED, TaskSpec
from flanx.data.task.tables import Tables, load
from flanx.data.task.template import Block, Prompt, Style, fill, list_options
from flanx.errors import UserError

MAX_INPUT_TOKENS = 1920  # few-shot prompts are pruned to this (paper.md 1.7)
SHOTS = 5  # exemplars in half of the few-shot prompts; in the others binomial(25, 1/10), at least 1 (paper.md 1.7)
SHOT_TABLE = tuple(itertools.accumulate(math.comb(25, k) * 9 ** (25 - k) / 10**25 for k in range(26)))  # its CDF
BARE_SHARE = 10  # one few-shot prompt in ten has exemplars and no instruction: the template `none`
POOL = 2048  # rows of the train split that few-shot exemplars are drawn from
Pool = Sequence[tuple[str, Record]]  # (row id, fields)


@dataclass(frozen=True)
class Rendered:
    """One example as the model sees it, and its origin."""

    inputs: str
    targets: str
    task: str
    dataset: str
    template: str
    style: str
    shots: int
    row: str


class Parts(NamedTuple):
    """One example before its parts are joined: its input is head, shots and query, stripped."""

    head: str
    shots: tuple[str, ...]
    query: str
    target: str
    prompt: Prompt


def render_rows(
    spec: TaskSpec,
    style: str,
    split: str,
    data_dir: str | os.PathLike | None = None,
    rendering: int = 0,
    count: Callable[[str], int] = len,
    max_bad_rows: int = sources.MAX_BAD_ROWS,
    raw: Callable[[str], sources.Raw] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Rendered]:
    """Every example of a split or of a shard (i, n) of it, in source order; bad rows count towards the limit.

    A shard's examples are byte for byte those that the whole split yields for its rows. `raw(split)` replaces the
    task's own source."""

    def read(split: str, shard: tuple[int, int] = (0, 1)) -> Iterator[tuple[str, str, Record]]:
        return sources.rows(spec, split, data_dir, rendering, max_bad_rows, raw(split) if raw else None, shard)

    def pool() -> Pool:
        if "train" not in spec.splits:
            return []
        return [(row, record) for row, _, record in itertools.islice(read("train"), POOL)]

    renderer = Renderer(spec, load(), style, split, rendering, pool, count)
    bad = 0
    for row, location, record in read(split, shard):
        try:
            example = renderer.render(row, record)
        except BadRow as e:
            bad += 1
            sources.report_bad(spec, location, e, bad, max_bad_rows)
            continue
        if example is not None:
            yield example


def _fields_as_text(
    prompt: Prompt, record: Record, style: Style, key: str, listed: bool
) -> tuple[dict[str, str], bool]:
    """The record's fields as texts, with drawn markers in `options` and `answer`; and whether the list is shown."""
    try:
        values = {name: text_of(record[name], name).strip() for name in prompt.fields if name != "options"}
    except KeyError as e:
        raise BadRow(f"no field {e} for template {prompt.name}") from e
    options = record.get("options") or ()
    listed = listed and bool(options) and "options" in prompt.fields
    if listed:
        texts = [text_of(o, "options").strip() for o in options]
        values["options"], answers = list_options(style, texts, key)
        if "answer" in values and values["answer"] in texts:
            values["answer"] = answers[texts.index(values["answer"])]
    return values, listed


def _fill(prompt: Prompt, record: Record, style: Style, key: str, listed: bool) -> tuple[str, str, str]:
    """Head, input and target of one record. Raises BadRow if the input or the target is empty."""
    values, listed = _fields_as_text(prompt, record, style, key, listed)
    head, body, target = (fill(text, values) for text in (prompt.listed if listed else prompt.plain))
    body, target = body.strip(), target.strip()
    if not target:
        raise BadRow("empty target")
    if not (head + body).strip():
        raise BadRow("empty input")
    if not (body.isascii() and target.isascii()):
        whole(f"{head}{body}{target}")
    return head, body, target


def blocks_for(spec: TaskSpec, style: str) -> tuple[str, ...]:
    """Names of the template blocks for a prompt style: `few` and `noopt` replace `templates` if a row has them (`few`
    in few-shot styles, `noopt` in the zero-shot style without options)."""
    own = {"fsopt": spec.few, "fsnoopt": spec.few, "zsnoopt": spec.noopt}.get(style)
    return own or spec.templates


class Renderer:
    """Renders the rows of one task in one style: `render(row id, fields)`.

    `style` is a prompt style, or one with the suffix INVERTED: the inverted version of the task, over the same rows
    (only for training). `pool` returns the exemplars, rows of the task's train split; it is called on first use and
    only by few-shot styles. `count` returns the number of tokens of a text. A few-shot training example without room
    for any exemplar is left out (`render` returns None); otherwise it is kept.
    """

    def __init__(
        self, spec: TaskSpec, tables: Tables, style: str, split: str = "train", rendering: int = 0,
        pool: Callable[[], Pool] = tuple, count: Callable[[str], int] = len,
    ) -> None:  # fmt: skip
        plain = style.removesuffix(INVERTED)
        self.inverted = style != plain
        if plain not in spec.styles or (self.inverted and not spec.inversions):
            raise UserError(f"task {spec.name} has no style '{style}' (it has {', '.join(spec.versions)})")
        self.spec, self.style, self.look = spec, style, tables.style
        self.listed = plain in ("zsopt", "fsopt")
        self.few = plain in ("fsopt", "fsnoopt")
        self.train = split == "train" and not spec.held_out
        if self.inverted and not self.train:
            raise UserError(
                f"task {spec.name}: only what is trained on is inverted; its style {plain} has split {split}"
            )

        def blocks(names: Sequence[str]) -> list[Block]:
            return [tables.blocks[name] for name in names]

        own = blocks(spec.inversions if self.inverted else blocks_for(spec, style))
        self.prompts = _prompts(own)
        self.nones = () if self.inverted or (self.few and spec.few) else tuple(block.none for block in own)
        self.worked = _prompts(blocks(spec.worked)) if self.few and not self.inverted else ()
        self.pool = functools.cache(pool)
        self.count = count
        self.key = f"{spec.name}\x1f{plain}\x1f{rendering}\x1f"

    def choose(self, key: str, record: Record) -> Prompt:
        """The template of one row."""
        if self.worked and draw(key, "worked", 2):
            prompt = self.worked[draw(key, "worked template", len(self.worked))]
            if prompt.fields <= record.keys():
                return prompt
        if self.few and self.nones and draw(key, "bare", BARE_SHARE) == 0:
            return self.nones[draw(key, "template", len(self.nones))]
        return self.prompts[draw(key, "inverted template" if self.inverted else "template", len(self.prompts))]

    def render(self, row: str, record: Record, prompt: Prompt | None = None) -> Rendered | None:
        """One example. Raises BadRow if the row gives an empty input or target."""
        parts = self.parts(row, record, prompt)
        if parts is None:
            return None
        inputs = f"{parts.head}{''.join(parts.shots)}{parts.query}".strip()
        spec, count = self.spec, len(parts.shots) or int(self.few and parts.prompt in self.worked)
        return Rendered(inputs, parts.target, spec.name, spec.dataset, parts.prompt.name, self.style, count, row)

    def parts(self, row: str, record: Record, prompt: Prompt | None = None) -> Parts | None:
        """The parts of one example, which `render` joins into texts."""
        key = self.key + row
        prompt = prompt or self.choose(key, record)
        head, body, target = _fill(prompt, record, self.look, key, self.listed)
        if not self.few or (self.worked and prompt in self.worked):
            return Parts(head, (), body, target, prompt)
        shot = prompt.shot or self.look.shots[draw(key, "shot style", len(self.look.shots))]
        before = "" if prompt.labelled and not prompt.shot else shot.input
        after = shot.target
        if prompt.cued and not prompt.shot:
            after = "\n" if after.startswith("\n") else " "
        query = f"{before}{body}{after.rstrip()}"
        exemplars = self._exemplars(key, row, prompt, (body, target), self._shots(key))
        shots = self._prune(f"{head}{query}", [f"{before}{a}{after}{b}{shot.separator}" for a, b in exemplars])
        if shots:
            return Parts(head, tuple(shots), query, target, prompt)
        return None if self.train else Parts(head, (), body, target, prompt)

    def options(self, row: str, record: Record, prompt: Prompt) -> tuple[str, ...]:
        """The target with each of the row's options as its answer, in order; () if the row has no options or the target
        is not one of them."""
        key = self.key + row
        values, listed = _fields_as_text(prompt, record, self.look, key, self.listed)
        texts = [text_of(option, "options").strip() for option in record.get("options") or ()]
        marks = list_options(self.look, texts, key)[1] if listed else texts
        target = (prompt.listed if listed else prompt.plain)[2]
        answer = next((field for _, field in target if field and values[field] in marks), None)
        return tuple(fill(target, {**values, answer: mark}).strip() for mark in marks) if answer else ()

    def _prune(self, query: str, shots: list[str]) -> list[str]:
        """The leading exemplars that fit together with the query.

        No vocabulary uses more than one token per ASCII character (plus one before a text), so texts are counted only
        until the rest is known to fit, which for most prompts is from the start."""
        most = [len(text) + 2 if text.isascii() else MAX_INPUT_TOKENS for text in (query, *shots)]
        rest = sum(most)
        if rest < MAX_INPUT_TOKENS:
            return shots
        budget = MAX_INPUT_TOKENS - self.count(query) - 2
        for index, text in enumerate(shots):
            rest -= most[index]
            if rest <= budget:
                return shots
            budget -= self.count(text) + 1
            if budget < 0:
                return shots[:index]
        return shots

    def _shots(self, key: str) -> int:
        """Half of the `opt` prompts have five exemplars; the others as many of 25 as would draw the same template."""
        if self.spec.shots:
            return self.spec.shots
        if self.listed and draw(key, "shot rule", 2):
            return SHOTS
        return max(1, bisect.bisect(SHOT_TABLE, draw(key, "shots", 2**32) / 2**32))

    def _exemplars(
        self, key: str, row: str, prompt: Prompt, query: tuple[str, str], shots: int
    ) -> list[tuple[str, str]]:
        """(input, target) of `shots` distinct rows of the pool; never the query's row, nor one with the same text.

        An inverted prompt may be the same for many rows ("write a negative review"); there the pairs must differ.
        """
        pool = self.pool()
        chosen: list[tuple[str, str]] = []
        paired = self.inverted or prompt.shot is not None
        seen = {"\x1f".join(query) if paired else query[0]}
        for attempt in range(4 * shots if pool else 0):
            other, record = pool[draw(key, f"exemplar {attempt}", len(pool))]
            if other == row:
                continue
            try:
                _, body, target = _fill(prompt, record, self.look, key, self.listed)
            except BadRow:
                continue
            text = f"{body}\x1f{target}" if paired else body
            if text not in seen:
                seen.add(text)
                chosen.append((body, target))
                if len(chosen) == shots:
                    break
        return chosen


def _prompts(blocks: Sequence[Block]) -> tuple[Prompt, ...]:
    return tuple(prompt for block in blocks for prompt in block.prompts)
