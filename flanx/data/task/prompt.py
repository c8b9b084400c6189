"""From named fields to the text that a model sees: templates, option lists, few-shot prompts.

Every choice (template, inversion, markers, few-shot style, exemplars) is a draw that depends on (task, style,
rendering, row id, what is drawn) and on nothing else: no generator state, the same on every machine and in any order.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flanx.data.task.options import Style, list_options
from flanx.data.task.row import BadRow, draw, text_of
from flanx.data.task.template import Block, Prompt, fill

MAX_INPUT_TOKENS = 1920  # few-shot prompts are pruned to this (paper.md 1.7)
SHOTS = 5  # exemplars of half of the few-shot prompts; the others: binomial(25, 1/10), at least 1 (paper.md 1.7)
SHOT_TABLE = tuple(itertools.accumulate(math.comb(25, k) * 9 ** (25 - k) / 10**25 for k in range(26)))  # of that rule
BARE_SHARE = 10  # one few-shot prompt in ten has exemplars and no instruction: the template `none`


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
    if not (body.isascii() and target.isascii()):
        try:
            f"{head}{body}{target}".encode()
        except UnicodeEncodeError as e:
            raise BadRow(f"{e.object[e.start]!a} is half a character (a lone surrogate)") from e
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
        rendering: int = 0, keep_unshot: bool = False, inversion: float = 0.3,
    ) -> None:  # fmt: skip
        self.task, self.dataset, self.style, self.prompt_style = task, dataset, style, prompt_style
        self.listed = prompt_style in ("zsopt", "fsopt")
        self.few = prompt_style in ("fsopt", "fsnoopt")
        blocks = (few if self.few else noopt if not self.listed else ()) or blocks
        self.prompts = tuple(p for block in blocks for p in block.prompts)
        self.nones = () if self.few and few else tuple(block.none for block in blocks)
        self.inversions = tuple(p for block in inversions for p in block.prompts)
        self.worked = tuple(p for block in worked for p in block.prompts) if self.few else ()
        self.inverted_of_1300 = round(1300 * inversion / (1 + inversion))
        self.inverted = {p.name for p in self.inversions}
        self.shots, self.keep_unshot = shots, keep_unshot
        self.pool = functools.cache(pool)
        self.count = count
        self.key = f"{task}\x1f{prompt_style}\x1f{rendering}\x1f"

    def choose(self, key: str, record: dict[str, Any]) -> Prompt:
        """The template of one row."""
        if self.worked and draw(key, "worked", 2):
            prompt = self.worked[draw(key, "worked template", len(self.worked))]
            if prompt.fields <= record.keys():
                return prompt
        if self.inversions and draw(key, "inversion", 1300) < self.inverted_of_1300:
            return self.inversions[draw(key, "inverted template", len(self.inversions))]
        if self.few and self.nones and draw(key, "bare", BARE_SHARE) == 0:
            return self.nones[draw(key, "template", len(self.nones))]
        return self.prompts[draw(key, "template", len(self.prompts))]

    def render(self, row: str, record: dict[str, Any], prompt: Prompt | None = None) -> Rendered | None:
        """One example. Raises BadRow where the row makes an empty input or target."""
        key = self.key + row
        prompt = prompt or self.choose(key, record)
        head, body, target = _say(prompt, record, self.style, key, self.listed)
        if not self.few or (self.worked and prompt in self.worked):
            return self._made(f"{head}{body}".strip(), target, prompt, int(self.few), row)
        shot = prompt.shot or self.style.shots[draw(key, "shot style", len(self.style.shots))]
        before = "" if prompt.labelled and not prompt.shot else shot.input
        after = shot.target
        if prompt.cued and not prompt.shot:
            after = "\n" if after.startswith("\n") else " "
        query = f"{before}{body}{after.rstrip()}"
        found = self._exemplars(key, row, prompt, (body, target), self._shots(key))
        shots = self._prune(f"{head}{query}", [f"{before}{a}{after}{b}{shot.separator}" for a, b in found])
        if not shots and not self.keep_unshot:
            return None
        if not shots:
            return self._made(f"{head}{body}".strip(), target, prompt, 0, row)
        return self._made(f"{head}{''.join(shots)}{query}".strip(), target, prompt, len(shots), row)

    def _prune(self, query: str, shots: list[str]) -> list[str]:
        """The first exemplars that fit beside the query.

        No vocabulary makes more than one token of an ASCII character (and one in front of a text), so that most prompts
        are seen to fit without being tokenized."""
        texts = [query, *shots]
        if sum(len(text) + 2 for text in texts) < MAX_INPUT_TOKENS and all(map(str.isascii, texts)):
            return shots
        budget = MAX_INPUT_TOKENS - self.count(query) - 2
        for place, text in enumerate(shots):
            budget -= self.count(text) + 1
            if budget < 0:
                return shots[:place]
        return shots

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
        paired = prompt.name in self.inverted or prompt.shot is not None
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
